package pipeline

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/kilnvm/kiln/internal/store"
)

const queueName = "builds"

// queue is the durable queue of builds. A job says only which build is due; whether it
// still is, the version's status decides.
type queue struct {
	client *river.Client[*sql.Tx]
	news   chan struct{}
}

type buildJob struct {
	BuildID string `json:"build_id"`
}

// Kind implements river.JobArgs.
func (buildJob) Kind() string { return "build" }

type worker struct {
	river.WorkerDefaults[buildJob]
	run func(buildID string)
}

// Work implements river.Worker. A build keeps its own account of failures and attempts,
// so a job always succeeds.
func (w *worker) Work(_ context.Context, job *river.Job[buildJob]) error {
	w.run(job.Args.BuildID)
	return nil
}

// newDriver returns River's driver for the database of the store. PostgreSQL notifies of new
// jobs itself; for SQLite news does.
func newDriver(db *store.Store, news chan struct{}) riverdriver.Driver[*sql.Tx] {
	if conns := db.Postgres(); conns != nil {
		return riverdatabasesql.NewWithPgxListener(db.DB(), conns)
	}
	return &promptDriver{Driver: riversqlite.New(db.DB()), wake: news}
}

func newQueue(ctx context.Context, opts Options, run func(buildID string)) (*queue, error) {
	news := make(chan struct{}, 1)
	driver := newDriver(opts.Store, news)
	log := slog.New(warnings{opts.Log.With("component", "queue").Handler()})
	m, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: log})
	if err != nil {
		return nil, fmt.Errorf("build queue: %w", err)
	}
	err = opts.Store.ChangeSchema(ctx, func(ctx context.Context) error {
		_, err := m.Migrate(ctx, rivermigrate.DirectionUp, nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("build queue: %w", err)
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &worker{run: run})
	client, err := river.NewClient(driver, &river.Config{
		Logger:      log,
		Workers:     workers,
		Queues:      map[string]river.QueueConfig{queueName: {MaxWorkers: opts.Parallel}},
		JobTimeout:  -1, // stages have deadlines
		MaxAttempts: 1,  // builds count their attempts
		// A job that a dead server left running is cleared away at leisure: its build got
		// a new job when the server started.
		RescueStuckJobsAfter: 24 * time.Hour,
		// New jobs are announced, so polling is only a second line.
		FetchCooldown:     10 * time.Millisecond,
		FetchPollInterval: 5 * time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("build queue: %w", err)
	}
	return &queue{client: client, news: news}, nil
}

// wake makes the queue of a SQLite database look for jobs at once. It is called after the transaction that
// inserted one.
func (q *queue) wake() {
	select {
	case q.news <- struct{}{}:
	default: // it is about to look
	}
}

// warnings is a handler that lets only warnings and errors pass.
type warnings struct{ slog.Handler }

// Enabled implements slog.Handler.
func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

func (q *queue) start() error {
	if err := q.client.Start(context.Background()); err != nil {
		return fmt.Errorf("build queue: %w", err)
	}
	return nil
}

// stop takes no more jobs and waits for those that run.
func (q *queue) stop(ctx context.Context) error {
	if err := q.client.Stop(ctx); err != nil {
		return fmt.Errorf("build queue: %w", err)
	}
	return nil
}

// Priorities of builds; the lower number goes first.
const (
	wanted    = river.PriorityDefault     // somebody asked for it
	unhurried = river.PriorityDefault + 2 // nobody has yet
)

// insert returns a function that queues a build within a transaction of the store.
func (q *queue) insert(buildID string, priority int, after time.Duration) store.TxFunc {
	return func(ctx context.Context, tx *sql.Tx) error {
		opts := &river.InsertOpts{Queue: queueName, Priority: priority}
		if after > 0 {
			opts.ScheduledAt = time.Now().Add(after)
		}
		if _, err := q.client.InsertTx(ctx, tx, buildJob{BuildID: buildID}, opts); err != nil {
			return fmt.Errorf("queue build %s: %w", buildID, err)
		}
		return nil
	}
}
