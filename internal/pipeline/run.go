package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/source"
	"github.com/kilnvm/kiln/internal/span"
	"github.com/kilnvm/kiln/internal/store"
)

// job is one attempt to build one version.
type job struct {
	*Service
	v       *kiln.Version
	attempt int
	dir     string // private, removed at the end

	progress *logWriter
	stage    kiln.Stage // the one that runs, or ran last
	src      kiln.Source
}

// run is called by the queue. It returns when the build has ended or been put back.
func (s *Service) run(buildID string) {
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	// What the build takes or makes stays until its end is stored.
	ctx, release := s.opts.Blobs.Hold(ctx)
	defer release()
	// Registered before the claim: a cancellation either finds the build here or finds it
	// still pending and fails it there.
	s.mu.Lock()
	if s.running[buildID] != nil {
		s.mu.Unlock()
		return
	}
	s.running[buildID] = cancel
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.running, buildID)
		s.mu.Unlock()
	}()
	v, b, err := s.claim(ctx, buildID)
	if err != nil {
		return // it has ended, or another job runs it, or the next server finds it
	}
	if b.Cancel {
		cancel(errCancelled) // it was asked for while no attempt ran
	}
	j := &job{Service: s, v: v, attempt: b.Attempts, stage: kiln.StageSource}
	traced, end := span.Begin(span.WithParent(ctx, b.Traceparent), s.opts.Traces, "build", trace.SpanKindConsumer,
		attribute.String("kiln.template", v.TemplateID), attribute.Int("kiln.version", v.Number),
		attribute.String("kiln.build", buildID), attribute.Int("kiln.attempt", b.Attempts))
	err = j.build(traced, b.NeedsSecrets)
	end(err)
	j.settle(ctx, err)
}

// claim takes a build. It does not give up before the service does: the queue's job is used
// up, so that nothing else would start the build.
func (s *Service) claim(ctx context.Context, buildID string) (v *kiln.Version, b *store.Build, err error) {
	again := false
	err = s.insist(ctx, "cannot start a build", buildID, func(ctx context.Context) error {
		if again {
			// The claim before may have been stored although it failed.
			if err := s.opts.Store.RequeueBuild(ctx, buildID, true, nil); err != nil {
				return err
			}
		}
		again = true
		v, b, err = s.opts.Store.ClaimBuild(ctx, buildID)
		return err
	})
	return v, b, err
}

func (j *job) build(ctx context.Context, needsSecrets bool) (err error) {
	if j.progress, err = j.logs.open(j.v.BuildID); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.progress.Close()) }()
	if j.dir, err = j.opts.Blobs.TempDir("build"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(j.dir)) }()
	j.v.Stages = nil
	if j.attempt > 1 {
		j.progress.Log(kiln.StageSource, fmt.Sprintf("attempt %d", j.attempt))
	}
	if j.v.Options.Secrets = j.secretsOf(j.v.BuildID); needsSecrets && j.v.Options.Secrets == nil {
		return &kiln.BuildError{Stage: kiln.StageSource, Message: "the secrets of this build are gone", Hint: "rebuild and give them again"}
	}
	err = guarded(func() error { return j.stages(ctx) })
	switch {
	case err == nil:
	case errors.Is(context.Cause(ctx), errShutdown):
		j.progress.Log(j.stage, "interrupted: "+errShutdown.Error())
	default:
		j.progress.Log(j.stage, "failed: "+j.explain(ctx, err).Error())
	}
	return err
}

// guarded turns a panic into an error, so that a bug fails one build and not the server.
func guarded(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return fn()
}

func (j *job) stages(ctx context.Context) error {
	if err := j.step(ctx, kiln.StageSource, j.opts.Timeouts.Source, j.sourceStage); err != nil {
		return err
	}
	if err := j.imageAndRootfs(ctx); err != nil {
		return err
	}
	if err := j.step(ctx, kiln.StageSnapshot, 0, j.snapshotStage); err != nil {
		return err
	}
	return j.step(ctx, kiln.StagePromote, time.Minute, j.promote)
}

// step runs one stage within its deadline (0: the stage has its own) and stores its
// result.
func (j *job) step(ctx context.Context, stage kiln.Stage, limit time.Duration, run func(context.Context, *kiln.StageResult) error) error {
	j.stage = stage
	j.progress.begin(stage)
	begun := time.Now()
	stageCtx := ctx
	if limit > 0 {
		var cancel context.CancelFunc
		stageCtx, cancel = context.WithTimeoutCause(ctx, limit, errDeadline)
		defer cancel()
	}
	res := kiln.StageResult{Stage: stage}
	err := span.Do(stageCtx, string(stage), func(ctx context.Context) error {
		defer func() {
			span.Note(ctx, attribute.Bool("kiln.cached", res.Cached), attribute.String("kiln.key", string(res.Key)))
		}()
		return run(ctx, &res)
	})
	if err != nil {
		if errors.Is(context.Cause(stageCtx), errDeadline) {
			return tooLong(stage, limit, err)
		}
		return diskFull(err)
	}
	res.Duration = time.Since(begun)
	j.opts.Meter.StageDone(res)
	if stage == kiln.StagePromote {
		return nil // it has stored its result itself, with the promotion
	}
	return j.finished(ctx, res)
}

// finished stores the result of a stage and tells the user.
func (j *job) finished(ctx context.Context, res kiln.StageResult) error {
	j.v.Stages = append(j.v.Stages, res)
	what := "done in"
	if res.Cached {
		what = "unchanged, found in"
	}
	j.progress.end(res, fmt.Sprintf("%s %s", what, res.Duration.Round(time.Millisecond)))
	return j.opts.Store.SaveBuild(ctx, j.v)
}

// limitKeys are the server's settings that bound the stages.
var limitKeys = map[kiln.Stage]string{
	kiln.StageSource: "source_timeout", kiln.StageImage: "timeout", kiln.StageRootfs: "rootfs_timeout", kiln.StageSnapshot: "snapshot_timeout",
}

// tooLong says that a stage had no more time. The stage's own error may know what it was
// doing.
func tooLong(stage kiln.Stage, limit time.Duration, err error) *kiln.BuildError {
	fault := &kiln.BuildError{Stage: stage, Message: fmt.Sprintf("took longer than %s and was stopped", limit), Err: errDeadline}
	var known *kiln.Error
	if errors.As(err, &known) && known.Code == kiln.CodeTimeout {
		fault.Message = fmt.Sprintf("took longer than %s: %s", limit, known.Message)
	}
	if key := limitKeys[stage]; key != "" {
		fault.Hint = "the server's operator can raise build." + key
	}
	return fault
}

// diskFull turns the kernel's ways of saying so into an error that trying again does not
// mend, wherever in a stage it came from.
func diskFull(err error) error {
	if kiln.CodeOf(err) != kiln.CodeInternal || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return kiln.DiskFull(err)
}

// sourceStage reads the recipe: what is needed to learn the base images and, with them,
// whether anything has to be built at all.
func (j *job) sourceStage(ctx context.Context, res *kiln.StageResult) error {
	src, err := j.readSource(ctx, filepath.Join(j.dir, "recipe"), j.v)
	if err != nil {
		return err
	}
	if src.OrgID, err = j.opts.Store.TemplateOrg(ctx, j.v.TemplateID); err != nil {
		return err
	}
	j.src = src
	for _, w := range src.Warnings {
		j.progress.Log(kiln.StageSource, "warning: "+w)
	}
	res.Key = src.Digest
	var seen bool
	if res.Cached, err = j.opts.Store.CachedStage(ctx, kiln.StageSource, src.Digest, &seen); err != nil {
		return err
	}
	return j.opts.Store.CacheStage(ctx, kiln.StageSource, src.Digest, true)
}

// readSource reads what there is to read before a version is built: a captured file system
// has no recipe.
func (s *Service) readSource(ctx context.Context, dir string, v *kiln.Version) (kiln.Source, error) {
	if v.Options.Origin.Capture != nil {
		return kiln.Source{Digest: v.SourceDigest, Options: v.Options}, nil
	}
	return s.openRecipe(ctx, dir, v)
}

// openRecipe unpacks the recipe of a version into the new folder dir. The digest is the
// one that the version was made with.
func (s *Service) openRecipe(ctx context.Context, dir string, v *kiln.Version) (kiln.Source, error) {
	if err := s.unpack(v.SourceBlob, dir, func(f *os.File) error {
		return source.UnpackRecipe(ctx, f, dir, s.opts.Limits, v.Options.Dockerfile)
	}); err != nil {
		return kiln.Source{}, err
	}
	src, err := source.Recipe(dir, v.Options)
	if err != nil {
		// A Dockerfile behind a symlink, for one, needs more than the recipe's files.
		if src, err = s.openWhole(ctx, dir+"-whole", v); err != nil {
			return kiln.Source{}, err
		}
	}
	src.Digest = v.SourceDigest
	return describe(src, v), nil
}

// openWhole unpacks the whole context into the new folder dir.
func (s *Service) openWhole(ctx context.Context, dir string, v *kiln.Version) (kiln.Source, error) {
	if err := s.unpack(v.SourceBlob, dir, func(f *os.File) error {
		return source.Unpack(ctx, f, dir, s.opts.Limits)
	}); err != nil {
		return kiln.Source{}, err
	}
	src, err := source.Open(ctx, dir, v.Options)
	if err != nil {
		return kiln.Source{}, err
	}
	src.Digest = digestOf(v, src.Digest)
	return describe(src, v), nil
}

func (s *Service) unpack(blob kiln.Digest, dir string, unpack func(*os.File) error) error {
	f, err := s.opts.Blobs.Open(blob)
	if errors.Is(err, os.ErrNotExist) {
		return kiln.Errorf(kiln.CodeUnavailable, "the build context of this version is no longer stored: %w", err).
			WithHint("build it again from its directory")
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	return unpack(f)
}

func (j *job) snapshotStage(ctx context.Context, res *kiln.StageResult) error {
	size, err := j.opts.Sizes.ByName(j.v.DefaultSize())
	if err != nil {
		return err
	}
	res.Detail = size.Name
	var snap kiln.Snapshot
	quota, err := j.opts.Store.TemplateQuota(ctx, j.v.TemplateID)
	if err != nil {
		return err
	}
	snap, res.Cached, err = j.bakes.ensure(ctx, quota.Apply(j.v), size, j.progress)
	res.Key = snap.Key
	return err
}

func (j *job) promote(ctx context.Context, res *kiln.StageResult) error {
	j.v.EndedAt = time.Now().UTC()
	j.v.Stages = append(j.v.Stages, *res)
	if err := j.opts.Store.Promote(ctx, j.v); err != nil && !j.promoted(ctx, err) {
		return err
	}
	j.opts.CurrentChanged()
	j.background.Go(func() { j.bakeSizes(j.Service.ctx, j.v.TemplateID, j.v.Number) })
	j.progress.end(*res, fmt.Sprintf("version %d is ready", j.v.Number))
	return nil
}

// promoted reports whether a promotion that failed was stored all the same, so that only the
// answer was lost.
func (j *job) promoted(ctx context.Context, failure error) bool {
	if kiln.CodeOf(failure) == kiln.CodeConflict {
		return false // that is an answer
	}
	var stored *kiln.Version
	err := j.insist(ctx, "cannot tell whether a build is ready", j.v.BuildID, func(ctx context.Context) (err error) {
		stored, err = j.opts.Store.VersionByBuild(ctx, j.v.BuildID)
		return err
	})
	return err == nil && stored.Status == kiln.VersionReady
}
