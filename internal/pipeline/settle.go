package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/store"
)

// settle writes down how an attempt ended.
func (j *job) settle(ctx context.Context, err error) {
	record, terminal := j.outcome(ctx, err)
	err = j.insist(ctx, "cannot store the end of a build", j.v.BuildID, record)
	if kiln.CodeOf(err) == kiln.CodeConflict {
		terminal = true // it has ended otherwise: its template was deleted
	} else if err != nil {
		return // the next server finds it in building
	}
	if terminal {
		j.forget(j.v.BuildID)
	}
}

// insist calls ask, by which the database stores or tells how a build goes on, until that
// succeeds or is a conflict. It works also when ctx has ended, and does not give up before
// the service does: a build must not stay pending or building.
func (s *Service) insist(ctx context.Context, failure, buildID string, ask func(context.Context) error) error {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		tryCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		err := ask(tryCtx)
		cancel()
		if err == nil || kiln.CodeOf(err) == kiln.CodeConflict {
			return err
		}
		s.log.Error(failure, "build", buildID, "error", err)
		select {
		case <-time.After(pause):
		case <-s.ctx.Done():
			return err
		}
	}
}

// outcome decides what an error means for the build. terminal is false when it is to be
// tried again.
func (j *job) outcome(ctx context.Context, err error) (record func(context.Context) error, terminal bool) {
	id, log := j.v.BuildID, j.log.With("build", j.v.BuildID, "template", j.v.TemplateID, "stage", j.stage)
	if err == nil {
		log.Info("build is ready", "version", j.v.Number)
		j.opts.Meter.BuildReady()
		return func(context.Context) error { return nil }, true
	}
	if errors.Is(context.Cause(ctx), errShutdown) {
		return func(ctx context.Context) error { return j.opts.Store.RequeueBuild(ctx, id, true, nil) }, false
	}
	why := j.explain(ctx, err)
	if j.retry(ctx, err) {
		pause := j.opts.RetryAfter << (j.attempt - 1)
		log.Error("build failed through a fault of ours and is tried again", "attempt", j.attempt, "after", pause, "error", err)
		return func(ctx context.Context) error {
			return j.opts.Store.RequeueBuild(ctx, id, false, j.queue.insert(id, wanted, pause))
		}, false
	}
	log.Info("build failed", "error", err)
	if errors.Is(context.Cause(ctx), errCancelled) {
		j.opts.Meter.BuildCancelled()
	} else {
		j.opts.Meter.BuildFailed(why.Stage, ours(err))
	}
	return func(ctx context.Context) error { return j.opts.Store.FailBuild(ctx, id, why) }, true
}

// retry reports whether an error is a fault of ours that may not happen again.
func (j *job) retry(ctx context.Context, err error) bool {
	return ours(err) && ctx.Err() == nil && j.attempt < j.opts.Attempts
}

// ours reports whether an error is neither the user's mistake nor something that the
// operator has to provide.
func ours(err error) bool { return kiln.CodeOf(err) == kiln.CodeInternal || store.Unreachable(err) }

// explain turns any error into what the user is shown.
func (j *job) explain(ctx context.Context, err error) *kiln.BuildError {
	if errors.Is(context.Cause(ctx), errCancelled) {
		return cancelled(j.stage)
	}
	var mistake *kiln.BuildError
	if errors.As(err, &mistake) {
		return mistake
	}
	var known *kiln.Error
	if errors.As(err, &known) && !ours(err) {
		return &kiln.BuildError{Stage: j.stage, Message: known.Message, Hint: known.Hint, Err: err}
	}
	return &kiln.BuildError{
		Stage: j.stage, Message: "internal error", Err: err,
		Hint: fmt.Sprintf("the server's log says more about build %s", j.v.BuildID),
	}
}

// forget releases what is kept in memory for a build that has not ended.
func (s *Service) forget(buildID string) {
	s.mu.Lock()
	delete(s.secrets, buildID)
	s.mu.Unlock()
	s.logs.end(buildID)
}

func (s *Service) secretsOf(buildID string) map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.secrets[buildID]
}
