package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/kilnvm/kiln"
)

var (
	errShutdown  = errors.New("the server is stopping")
	errCancelled = errors.New("the build was cancelled")
	errDeadline  = errors.New("the stage took too long")
)

// cleanupTime bounds what must still happen after a build was cancelled.
const cleanupTime = 30 * time.Second

// Service takes requests for builds and runs them. Its methods are safe for concurrent
// use.
type Service struct {
	opts  Options
	log   *slog.Logger
	logs  *buildLogs
	queue *queue
	bakes *bakes
	// ctx ends, with errShutdown, when the service is closed.
	ctx  context.Context
	stop context.CancelCauseFunc

	mu      sync.Mutex
	running map[string]context.CancelCauseFunc // builds, by ID
	secrets map[string]map[string][]byte       // of builds that have not ended, by ID
	uploads int                                // requests that may be about to use a source blob
	orphans map[kiln.Digest]bool               // source blobs that may be unused
	inTurn  map[string]bool                    // deferred builds that will be started without being asked for

	background sync.WaitGroup // builds of built-in templates in their turn, bakes of more sizes
	baking     sync.Mutex     // held by the bake of one more size
}

// Start takes up what an earlier server left unfinished and starts to work on the queue.
func Start(ctx context.Context, opts Options) (*Service, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Service{
		opts: opts, log: opts.Log,
		running: map[string]context.CancelCauseFunc{}, secrets: map[string]map[string][]byte{}, orphans: map[kiln.Digest]bool{},
		inTurn: map[string]bool{},
	}
	s.ctx, s.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := s.start(ctx); err != nil {
		s.stop(err)
		return nil, err
	}
	return s, nil
}

func (s *Service) start(ctx context.Context) (err error) {
	s.bakes = newBakes(s.ctx, s.opts)
	if s.logs, err = newBuildLogs(s.opts.Dir); err != nil {
		return err
	}
	if s.queue, err = newQueue(ctx, s.opts, s.run); err != nil {
		return err
	}
	if err := s.recover(ctx); err != nil {
		return err
	}
	return s.queue.start()
}

// recover ends or queues again every build that this node had not ended when it died.
func (s *Service) recover(ctx context.Context) error {
	ids, err := s.opts.Store.UnfinishedBuilds(ctx, s.opts.Node)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := s.recoverBuild(ctx, id); err != nil {
			return fmt.Errorf("take up build %s: %w", id, err)
		}
	}
	return nil
}

func (s *Service) recoverBuild(ctx context.Context, id string) error {
	b, err := s.opts.Store.Build(ctx, id)
	if err != nil {
		return err
	}
	s.log.InfoContext(ctx, "taking up an unfinished build", "build", id, "attempts", b.Attempts, "cancelled", b.Cancel)
	switch {
	case b.Cancel:
		return s.opts.Store.FailBuild(ctx, id, cancelled(kiln.StageSource))
	case b.Attempts >= s.opts.Attempts:
		return s.opts.Store.FailBuild(ctx, id, &kiln.BuildError{
			Stage: kiln.StageSource, Message: fmt.Sprintf("the server died %d times while it ran this build", b.Attempts),
			Hint: "look for a lack of memory or disk on the host, then rebuild",
		})
	case b.NeedsSecrets:
		return s.opts.Store.FailBuild(ctx, id, &kiln.BuildError{
			Stage: kiln.StageSource, Message: "the server was restarted and build secrets are stored nowhere", Hint: "rebuild and give the secrets again",
		})
	}
	s.logs.feed(id)
	return s.opts.Store.RequeueBuild(ctx, id, false, s.queue.insert(id, wanted, 0))
}

// Close stops running builds, which go on after the next Start, and waits for them.
func (s *Service) Close(ctx context.Context) error {
	s.stop(errShutdown)
	err := s.queue.stop(ctx)
	s.background.Wait() // it ends with s.ctx
	return errors.Join(err, s.bakes.wait(ctx))
}

func cancelled(stage kiln.Stage) *kiln.BuildError {
	return &kiln.BuildError{Stage: stage, Message: errCancelled.Error()}
}
