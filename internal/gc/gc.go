package gc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/store"
)

// Logs are the logs of builds.
type Logs interface {
	// Size returns how many bytes a build's log takes; 0 if there is none.
	LogSize(buildID string) int64
	// DropLog removes a build's log. It is no error if there is none.
	DropLog(buildID string) error
}

// Policy says what is kept although nothing refers to it.
type Policy struct {
	Keep           int           // the newest ready versions of every template
	SandboxHistory time.Duration // rows of ended sandboxes
	AuditHistory   time.Duration // events of the audit log
}

// Options is what a collector is made of. All but Log are required.
type Options struct {
	Store  *store.Store
	Blobs  *artifact.Blobs
	Logs   Logs
	Policy Policy
	// SnapshotKey returns the key of the snapshot that sandboxes of a version would use
	// now at a size.
	SnapshotKey func(v *kiln.Version, size string) (kiln.Digest, error)
	Log         *slog.Logger // nil discards
}

// Collector removes what is unused. It is safe for concurrent use; runs follow one another.
type Collector struct {
	opts Options
	log  *slog.Logger
	mu   sync.Mutex
}

// New returns a collector.
func New(opts Options) (*Collector, error) {
	if opts.Store == nil || opts.Blobs == nil || opts.Logs == nil || opts.SnapshotKey == nil {
		return nil, errors.New("gc: Store, Blobs, Logs and SnapshotKey are required")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Collector{opts: opts, log: opts.Log}, nil
}

// Loop collects every interval until ctx ends.
func (c *Collector) Loop(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		r, err := c.Run(ctx, false)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			c.log.ErrorContext(ctx, "garbage collection", "error", err)
		case len(r.Items) > 0:
			c.log.InfoContext(ctx, "garbage collected", "items", len(r.Items), "bytes", r.Bytes)
		}
	}
}

// Run removes what is unused, or with dryRun says what it would remove. When it fails or
// ctx ends, what was removed until then is gone and the rest is left for the next run.
func (c *Collector) Run(ctx context.Context, dryRun bool) (kiln.GarbageReport, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &run{Collector: c, dry: dryRun, gone: map[store.VersionRef]bool{}}
	r.report = kiln.GarbageReport{DryRun: dryRun, Items: []kiln.Garbage{}}
	for _, step := range []func(context.Context) error{r.versions, r.rebaked, r.snapshots, r.sandboxes, r.audit, r.cacheAndBlobs} {
		if err := step(ctx); err != nil {
			return r.report, fmt.Errorf("garbage collection: %w", err)
		}
	}
	return r.report, nil
}
