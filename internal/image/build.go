package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	frontend "github.com/moby/buildkit/frontend/dockerfile/builder"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/progress/progressui"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

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
	images, err := b.locate(bases)
	if err != nil {
		return nil, err
	}
	src.Options.Args = effectiveArgs(src.Options, bases)
	opt, err := solveOpt(src, file)
	if err != nil {
		return nil, err
	}
	job := &job{file: file, orgID: src.OrgID, opt: opt, history: newHistory(), redact: newRedactor(src.Options.Secrets), progress: progress}
	root, err := b.daemon.solve(ctx, images, job.run)
	if err != nil {
		return nil, b.checkSpace(job.explain(ctx, err))
	}
	config, err := imageConfig(job.config)
	if err != nil {
		root.Close()
		return nil, err
	}
	return &kiln.Image{Config: config, Root: root}, nil
}

// fullBelow is the free space in bytes under which a failure that has no other
// explanation is put down to the disk.
const fullBelow = 32 << 20

// checkSpace says so if a build failed because its disk is full. BuildKit tells by a code
// in some places and only in words in others, so the disk is asked too. What the user's
// command reported about it is left as it is.
func (b *Builder) checkSpace(err error) error {
	var fault *kiln.BuildError
	isFault := errors.As(err, &fault)
	if b.opts.StateDir == "" || isFault && fault.ExitCode != 0 || !isFault && kiln.CodeOf(err) != kiln.CodeInternal {
		return err
	}
	var fs unix.Statfs_t
	full := unix.Statfs(b.opts.StateDir, &fs) == nil && fs.Bavail*uint64(fs.Bsize) < fullBelow
	if !full && grpcerrors.Code(err) != codes.ResourceExhausted {
		return err
	}
	if isFault {
		err = fault.Err // not the Dockerfile's fault after all
	}
	return &kiln.Error{
		Code:    kiln.CodeExhausted,
		Message: fmt.Sprintf("the disk of the build state folder %s is full", b.opts.StateDir),
		Hint:    "free space there, or limit the build cache",
		Err:     err,
	}
}

// locate finds the content of the bases again.
func (b *Builder) locate(bases []kiln.BaseImage) ([]base.Image, error) {
	images := make([]base.Image, len(bases))
	for i, want := range bases {
		img, err := b.resolver.Locate(want)
		if err != nil {
			return nil, kiln.Errorf(kiln.CodeUnavailable, "base image %s is no longer available: %w", want.Name, err).WithHint("build again")
		}
		images[i] = img
	}
	return images, nil
}

// solveOpt says what is to be built.
func solveOpt(src kiln.Source, file *dockerfile) (client.SolveOpt, error) {
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
	opt := client.SolveOpt{
		FrontendAttrs: attrs,
		LocalMounts:   map[string]fsutil.FS{"context": contextFS, "dockerfile": contextFS},
		SharedKey:     "kiln",
		Internal:      true, // no history entry: Kiln keeps its own
	}
	if len(src.Options.Secrets) > 0 {
		opt.Session = []session.Attachable{secretsprovider.FromMap(maps.Clone(src.Options.Secrets))}
	}
	return opt, nil
}

// job is one build.
type job struct {
	file     *dockerfile
	orgID    string
	opt      client.SolveOpt
	history  *history
	redact   redactor
	progress kiln.Progress
	config   []byte // image configuration, once built
}

// run performs the build. The Dockerfile frontend runs here, in this process, so that a
// Dockerfile means the same whatever version of BuildKit executes its steps.
func (j *job) run(ctx context.Context, t target) error {
	opt := j.opt
	opt.Exports = []client.ExportEntry{t.export}
	opt.OCIStores = t.bases.stores
	opt.AllowedEntitlements = t.entitlements
	opt.FrontendAttrs = maps.Clone(j.opt.FrontendAttrs)
	maps.Copy(opt.FrontendAttrs, t.bases.attrs)
	solve := func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		result, err := frontend.Build(ctx, privately(gw, j.orgID))
		if err != nil {
			return nil, err
		}
		j.config, err = configOf(result.Metadata)
		return result, err
	}
	statuses := make(chan *client.SolveStatus)
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		_, err := t.client.Build(groupCtx, opt, "", solve, statuses) // closes statuses
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
	events := newEventWriter(j.progress, j.redact)
	defer events.flush()
	for status := range statuses {
		j.history.record(status)
		events.write(status)
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
		Volumes: slices.Sorted(maps.Keys(c.Volumes)),
	}, nil
}
