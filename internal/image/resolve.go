package image

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image/base"
)

// keyVersion changes whenever equal inputs would give another image.
const keyVersion = 1

// Resolve returns the base images of all stages that the build needs, COPY --from and
// RUN --mount included, in the order of their names, after making them available on
// this machine. When they are, it takes milliseconds: nothing is asked over the network
// unless the build wants newer ones (Options.Pull). A mistake in the Dockerfile that
// shows without running it is a *kiln.BuildError.
func (b *Builder) Resolve(ctx context.Context, src kiln.Source, progress kiln.Progress) ([]kiln.BaseImage, error) {
	file, err := readDockerfile(src)
	if err != nil {
		return nil, err
	}
	if candidates := candidateBases(src.Options); len(candidates) > 0 {
		return b.choose(ctx, src, file, candidates, progress)
	}
	bases, err := b.resolve(ctx, src, file, progress)
	if err != nil {
		return nil, file.resolveError(ctx, err)
	}
	return bases, nil
}

// resolve is Resolve with build arguments that are settled. An error is the one of the
// part that failed, still to be explained by [dockerfile.resolveError].
func (b *Builder) resolve(ctx context.Context, src kiln.Source, file *dockerfile, progress kiln.Progress) ([]kiln.BaseImage, error) {
	meta := &metaResolver{resolver: b.resolver, pull: src.Options.Pull, progress: progress, found: map[string]base.Image{}}
	platform := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	// The Dockerfile is converted as for a build, so that stages, arguments and
	// references mean here exactly what they mean there. Only the questions about
	// images are of interest; the outcome is dropped.
	_, err := dockerfile2llb.Dockerfile2LLB(ctx, file.content, dockerfile2llb.ConvertOpt{
		Config: dockerui.Config{
			BuildArgs:      src.Options.Args,
			Target:         src.Options.Target,
			BuildPlatforms: []ocispec.Platform{platform},
		},
		TargetPlatform: &platform,
		MetaResolver:   meta,
	})
	if err != nil {
		return nil, err
	}
	if err := file.checkStageNames(meta.images()); err != nil {
		return nil, err
	}
	bases := make([]kiln.BaseImage, 0, len(meta.found))
	for _, img := range meta.images() {
		bases = append(bases, img.BaseImage)
	}
	return bases, nil
}

// Key covers everything that the image depends on. What it cannot cover, the values of
// secrets and the content of caches, is an organisation's own, and so is such an image.
func (b *Builder) Key(src kiln.Source, bases []kiln.BaseImage) kiln.Digest {
	images := make([]string, 0, 2*len(bases))
	for _, img := range bases {
		images = append(images, img.Name, string(img.Digest))
	}
	key := kiln.NewKey(kiln.StageImage, keyVersion).
		Add("source", string(src.Digest)).
		Add("dockerfile", src.Options.Dockerfile).
		Add("target", src.Options.Target).
		AddMap("args", effectiveArgs(src.Options, bases)).
		AddList("bases", images)
	secrets := slices.Sorted(maps.Keys(src.Options.Secrets))
	if len(secrets) > 0 {
		key.AddList("secrets", secrets)
	}
	if src.OrgID != "" && (len(secrets) > 0 || b.mounts(src, bases)) {
		key.Add("organisation", src.OrgID)
	}
	return key.Key()
}

// mounts reports whether a step of the build may have mounts, or cannot rule it out.
func (b *Builder) mounts(src kiln.Source, bases []kiln.BaseImage) bool {
	file, err := readDockerfile(src)
	if err != nil || file.mounts() {
		return true
	}
	for _, want := range bases {
		img, err := b.resolver.Locate(want)
		if err != nil {
			return true
		}
		var content struct{ Config struct{ OnBuild []string } }
		if json.Unmarshal(img.Config, &content) != nil || slices.ContainsFunc(content.Config.OnBuild, hasMount) {
			return true
		}
	}
	return false
}

// metaResolver answers BuildKit's questions about image configurations from what the
// resolver finds, and notes what was asked. BuildKit asks for several at once.
type metaResolver struct {
	resolver *base.Resolver
	pull     bool
	progress kiln.Progress

	mu    sync.Mutex
	found map[string]base.Image
}

// ResolveImageConfig implements BuildKit's interface for it.
func (m *metaResolver) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	if opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		p := opt.ImageOpt.Platform
		if p.OS != "linux" || p.Architecture != "amd64" {
			return "", "", nil, &unsupportedPlatformError{name: ref, platform: p.OS + "/" + p.Architecture}
		}
	}
	m.mu.Lock()
	img, ok := m.found[ref]
	m.mu.Unlock()
	if !ok {
		var err error
		if img, err = m.resolver.Resolve(ctx, ref, m.pull, m.progress); err != nil {
			return "", "", nil, err
		}
		m.mu.Lock()
		m.found[ref] = img
		m.mu.Unlock()
	}
	return ref, digest.Digest(img.Digest), img.Config, nil
}

// images returns what was found, by name.
func (m *metaResolver) images() []base.Image {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]base.Image, 0, len(m.found))
	for _, img := range m.found {
		list = append(list, img)
	}
	slices.SortFunc(list, func(a, b base.Image) int { return strings.Compare(a.Ref.Full(), b.Ref.Full()) })
	return list
}

// unsupportedPlatformError is about a FROM --platform.
type unsupportedPlatformError struct{ name, platform string }

func (e *unsupportedPlatformError) Error() string {
	return "platform " + e.platform + " is not supported, only linux/amd64 is"
}

// Bootstrap makes a base image from its distribution's package archive, even if one is
// stored already.
func (b *Builder) Bootstrap(ctx context.Context, name string, progress kiln.Progress) (kiln.BaseImage, error) {
	ref, err := base.ParseName(name)
	if err != nil {
		return kiln.BaseImage{}, kiln.Errorf(kiln.CodeInvalid, "%w", err)
	}
	img, err := b.bootstrap.Bootstrap(ctx, ref, true, progress)
	return img.BaseImage, err
}

// Images lists the base images that are stored on this machine.
func (b *Builder) Images() ([]kiln.BaseImage, error) {
	images, err := b.resolver.Store.List()
	if err != nil {
		return nil, err
	}
	list := make([]kiln.BaseImage, len(images))
	for i, img := range images {
		list[i] = img.BaseImage
	}
	return list, nil
}
