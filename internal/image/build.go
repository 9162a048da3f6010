package image

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/moby/buildkit/util/progress/progressui"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image/base"
)

// Build builds src on the given bases, which Resolve returned. Close the image when its
// entries have been read. A mistake of the user's is a *kiln.BuildError. Cancelling ctx
// stops the commands of the build.
func (b *Builder) Build(ctx context.Context, src kiln.Source, bases []kiln.BaseImage, progress kiln.Progress) (*kiln.Image, error) {
	file, err := readDockerfile(src)
	if err != nil {
		return nil, err
	}
	opt, err := b.solveOpt(src, file, bases)
	if err != nil {
		return nil, err
	}
	job := &job{file: file, opt: opt, history: newHistory(), redact: newRedactor(src.Options.Secrets), progress: progress}
	root, err := b.daemon.solve(ctx, job.run)
	if err != nil {
		return nil, job.explain(ctx, err)
	}
	config, err := imageConfig(job.config)
	if err != nil {
		root.Close()
		return nil, err
	}
	return &kiln.Image{Config: config, Root: root}, nil
}

// solveOpt says what is to be built, for client.Client.Build.
func (b *Builder) solveOpt(src kiln.Source, file *dockerfile, bases []kiln.BaseImage) (client.SolveOpt, error) {
	contextFS, err := fsutil.NewFS(src.Dir)
	if err != nil {
		return client.SolveOpt{}, fmt.Errorf("build context: %w", err)
	}
	attrs := map[string]string{
		"filename": file.path,
		"platform": "linux/amd64",
		"cmdline":  "builtin", // a "# syntax" line does not fetch another frontend
	}
	if src.Options.Target != "" {
		attrs["target"] = src.Options.Target
	}
	if src.Options.NoCache {
		attrs["no-cache"] = ""
	}
	for name, value := range src.Options.Args {
		attrs["build-arg:"+name] = value
	}
	stores, err := b.baseContexts(bases, attrs)
	if err != nil {
		return client.SolveOpt{}, err
	}
	opt := client.SolveOpt{
		FrontendAttrs: attrs,
		LocalMounts:   map[string]fsutil.FS{"context": contextFS, "dockerfile": contextFS},
		OCIStores:     stores,
		SharedKey:     "kiln",
		Internal:      true, // no history entry: Kiln keeps its own
	}
	if b.opts.Address == "" {
		// RUN --network=host is what RUN means in the child anyway; another daemon has
		// rules of its own.
		opt.AllowedEntitlements = []string{string(entitlements.EntitlementNetworkHost)}
	}
	if len(src.Options.Secrets) > 0 {
		opt.Session = []session.Attachable{secretsprovider.FromMap(maps.Clone(src.Options.Secrets))}
	}
	return opt, nil
}

// baseContexts makes the frontend take each base image, by digest, from the layout that
// has it.
func (b *Builder) baseContexts(bases []kiln.BaseImage, attrs map[string]string) (map[string]content.Store, error) {
	stores := map[string]content.Store{}
	ids := map[string]string{} // by layout folder
	for _, want := range bases {
		img, err := b.resolver.Locate(want)
		if err != nil {
			return nil, kiln.Errorf(kiln.CodeUnavailable, "base image %s is no longer available: %w", want.Name, err).WithHint("build again")
		}
		id, ok := ids[img.Layout]
		if !ok {
			id = fmt.Sprintf("layout%d", len(ids))
			ids[img.Layout] = id
			stores[id] = base.ContentStore(img.Layout)
		}
		attrs["context:"+contextName(img.Ref)] = fmt.Sprintf("oci-layout://%s@%s", id, img.Digest)
	}
	return stores, nil
}

// contextName is the name under which BuildKit looks for a replacement of an image.
func contextName(ref base.Name) string { return strings.TrimSuffix(ref.String(), ":latest") }

// job is one build.
type job struct {
	file     *dockerfile
	opt      client.SolveOpt
	history  *history
	redact   redactor
	progress kiln.Progress
	config   []byte // image configuration, once built
}

// run is a solveFunc.
func (j *job) run(ctx context.Context, c *client.Client, export client.ExportEntry) error {
	opt := j.opt
	opt.Exports = []client.ExportEntry{export}
	opt.FrontendAttrs = maps.Clone(j.opt.FrontendAttrs)
	solve := func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		result, err := gw.Solve(ctx, gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: j.opt.FrontendAttrs})
		if err != nil {
			return nil, err
		}
		j.config, err = configOf(result.Metadata)
		return result, err
	}
	statuses := make(chan *client.SolveStatus)
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		_, err := c.Build(groupCtx, opt, "", solve, statuses) // closes statuses
		return err
	})
	group.Go(func() error { return j.follow(statuses) })
	return group.Wait()
}

// follow passes progress on until the build has ended.
func (j *job) follow(statuses <-chan *client.SolveStatus) error {
	out := &lineWriter{progress: j.progress, redact: j.redact}
	defer out.flush()
	display, err := progressui.NewDisplay(out, progressui.PlainMode)
	shown := make(chan *client.SolveStatus)
	done := make(chan error, 1)
	go func() {
		if err != nil {
			for range shown {
			}
			done <- err
			return
		}
		// Its own end: the display must see the last lines of a cancelled build.
		_, err := display.UpdateFrom(context.Background(), shown)
		done <- err
	}()
	for status := range statuses {
		j.history.record(status)
		shown <- status
	}
	close(shown)
	return <-done
}

// explain turns an error of the daemon into one for people.
func (j *job) explain(ctx context.Context, err error) error {
	if kiln.CodeOf(err) != kiln.CodeInternal {
		return err
	}
	return j.file.solveError(ctx, err, j.history, j.redact)
}

// configOf finds the image configuration in the metadata of a result.
func configOf(metadata map[string][]byte) ([]byte, error) {
	platforms, err := exptypes.ParsePlatforms(metadata)
	if err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	return exptypes.ParseKey(metadata, exptypes.ExporterImageConfigKey, &platforms.Platforms[0]), nil
}

func imageConfig(b []byte) (kiln.ImageConfig, error) {
	var img ocispec.Image
	if len(b) > 0 {
		if err := json.Unmarshal(b, &img); err != nil {
			return kiln.ImageConfig{}, fmt.Errorf("image configuration: %w", err)
		}
	}
	c := img.Config
	return kiln.ImageConfig{
		Env: c.Env, User: c.User, WorkingDir: c.WorkingDir, Entrypoint: c.Entrypoint, Cmd: c.Cmd,
		ExposedPorts: slices.Sorted(maps.Keys(c.ExposedPorts)), Labels: c.Labels,
	}, nil
}
