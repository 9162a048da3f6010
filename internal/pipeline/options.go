package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/source"
	"github.com/kilnvm/kiln/internal/source/git"
	"github.com/kilnvm/kiln/internal/store"
)

// Images is the image stage.
type Images interface {
	// Resolve says which contents the FROM lines of src mean now, making them local.
	Resolve(ctx context.Context, src kiln.Source, progress kiln.Progress) ([]kiln.BaseImage, error)
	// Key covers all that the image depends on.
	Key(src kiln.Source, bases []kiln.BaseImage) kiln.Digest
	// Build builds the image. The caller closes it.
	Build(ctx context.Context, src kiln.Source, bases []kiln.BaseImage, progress kiln.Progress) (*kiln.Image, error)
}

// Rootfs is the rootfs stage.
type Rootfs interface {
	// FormatVersion changes whenever equal entries would give another file.
	FormatVersion() int
	// Write makes the root filesystem dst from src and returns its digest and size.
	// notes are for the build log.
	Write(ctx context.Context, src kiln.EntrySource, dst string) (blob kiln.Blob, notes []string, err error)
}

// Snapshots is the snapshot stage.
type Snapshots interface {
	// Key covers all that a snapshot depends on, this host included.
	Key(spec kiln.VMSpec) kiln.Digest
	// Bake makes the snapshot and stores its blobs.
	Bake(ctx context.Context, spec kiln.VMSpec, progress kiln.Progress) (kiln.Snapshot, error)
}

// Timeouts bound the stages of a build. Zero fields mean the values of DefaultTimeouts.
type Timeouts struct {
	Source, Image, Rootfs, Snapshot time.Duration
}

// DefaultTimeouts are generous for real builds on a small machine.
func DefaultTimeouts() Timeouts {
	return Timeouts{Source: 10 * time.Minute, Image: 30 * time.Minute, Rootfs: 10 * time.Minute, Snapshot: 10 * time.Minute}
}

func (t Timeouts) withDefaults() Timeouts {
	d := DefaultTimeouts()
	for _, f := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&t.Source, d.Source}, {&t.Image, d.Image}, {&t.Rootfs, d.Rootfs}, {&t.Snapshot, d.Snapshot}} {
		if *f.v == 0 {
			*f.v = f.def
		}
	}
	return t
}

// Options is what a service is made of. Store, Blobs, the three stages and Dir are
// required.
type Options struct {
	Store     *store.Store
	Blobs     *artifact.Blobs
	Images    Images
	Rootfs    Rootfs
	Snapshots Snapshots

	// Dir holds one log per build. It is created.
	Dir string
	// Node is the name under which this server owns builds; "" means "local". Two
	// servers on one database need two names.
	Node string
	// Parallel is how many builds, and how many bakes outside builds, run at once; 0
	// means 1.
	Parallel int
	Timeouts Timeouts
	// Attempts is how often a build is started before a fault of ours ends it; 0 means 3.
	Attempts int
	// RetryAfter is the pause before the second attempt; it doubles. 0 means 1 s.
	RetryAfter time.Duration
	// MaxContextBytes bounds an uploaded context; 0 means 2 GiB.
	MaxContextBytes int64
	// Sizes are this server's.
	Sizes kiln.SizeTable
	// SnapshotSizes are baked, one at a time, after a version was promoted, beside the
	// template's default size. What a restart interrupts is baked on demand.
	SnapshotSizes []string
	// MaxCaptureBytes bounds the captured file system of a sandbox; 0 means 64 GiB.
	MaxCaptureBytes int64
	// Limits bound what a context unpacks to.
	Limits source.Limits
	// Git bounds what is fetched from git repositories. Its Limits are those above.
	Git git.Options
	// OpenRoot reads the archive of a captured file system. Required for captures.
	OpenRoot func(*os.File) (kiln.EntrySource, error)
	// CurrentChanged is told that a template may have another current version, or none; nil
	// means that nobody wants to know. It returns at once.
	CurrentChanged func()
	Meter          Meter // nil: nobody counts
	// Traces takes the traces of builds; nil records none. A build goes on with the trace
	// of the request that asked for it.
	Traces trace.TracerProvider
	Log    *slog.Logger // nil discards
}

// Meter is told how builds go. Its methods return at once and are safe for concurrent use.
type Meter interface {
	// StageDone counts a stage that ended well.
	StageDone(r kiln.StageResult)
	// BuildReady, BuildCancelled and BuildFailed count builds by their end. A build that is
	// tried again has not ended. ours says that the failure was not its user's fault.
	BuildReady()
	BuildCancelled()
	BuildFailed(stage kiln.Stage, ours bool)
}

type noMeter struct{}

func (noMeter) StageDone(kiln.StageResult)   {}
func (noMeter) BuildReady()                  {}
func (noMeter) BuildCancelled()              {}
func (noMeter) BuildFailed(kiln.Stage, bool) {}

func (o Options) withDefaults() (Options, error) {
	if o.Store == nil || o.Blobs == nil || o.Images == nil || o.Rootfs == nil || o.Snapshots == nil || o.Dir == "" {
		return o, errors.New("pipeline: Store, Blobs, Images, Rootfs, Snapshots and Dir are required")
	}
	if o.Node == "" {
		o.Node = "local"
	}
	if o.Parallel < 1 {
		o.Parallel = 1
	}
	if o.Attempts < 1 {
		o.Attempts = 3
	}
	if o.RetryAfter <= 0 {
		o.RetryAfter = time.Second
	}
	if o.MaxContextBytes <= 0 {
		o.MaxContextBytes = 2 << 30
	}
	if o.MaxCaptureBytes <= 0 {
		o.MaxCaptureBytes = 64 << 30
	}
	o.Git.Limits = o.Limits
	if o.Git.MaxBytes == 0 {
		o.Git.MaxBytes = o.MaxContextBytes
	}
	if o.CurrentChanged == nil {
		o.CurrentChanged = func() {}
	}
	if o.Meter == nil {
		o.Meter = noMeter{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Timeouts = o.Timeouts.withDefaults()
	return o, nil
}
