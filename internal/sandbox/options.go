package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/cgroup"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/ready"
	"github.com/kilnvm/kiln/internal/vmm"
)

// Blobs finds the immutable files that VMs are started from.
type Blobs interface {
	// Path returns where the blob of that digest is, whether or not it exists.
	Path(d kiln.Digest) string
	// Check makes sure that a blob is there and is what its name promises. It is called
	// before every use, so it reads only what it has reason to doubt.
	Check(ctx context.Context, b kiln.Blob) error
	// Hold returns a context under which every blob that is checked stays until release.
	Hold(ctx context.Context) (_ context.Context, release func())
}

// Options is what a manager is made of. Driver, Boot, Store, Blobs, SnapshotKey and Dir
// are required.
type Options struct {
	Driver vmm.Driver
	Boot   kiln.BootBundle
	Store  Store
	Blobs  Blobs
	// SnapshotKey computes the key under which a usable golden snapshot is stored. A
	// snapshot made by another VMM, CPU, kernel or daemon has another key and is never
	// loaded.
	SnapshotKey func(kiln.VMSpec) kiln.Digest
	// RequestBake is told when a sandbox boots cold because no usable snapshot is there.
	// why is nil when there is none, else it says what is wrong with it. It returns at
	// once. nil means that nobody wants to know.
	RequestBake func(v *kiln.Version, size kiln.Size, why error)
	// Network connects sandboxes; nil means that they have no network. The manager does
	// not close it.
	Network *network.Pool
	// Dir holds one folder per living sandbox and nothing else. The manager creates it.
	Dir    string
	Sizes  kiln.SizeTable // this server's
	Limits Limits
	Warm   WarmLimits
	// Groups bounds what VMs take from the host; nil bounds nothing.
	Groups *cgroup.Tree
	// Ready bounds the template's own commands in a cold start.
	Ready ready.Limits
	Meter Meter // nil: nobody counts
	// Traces takes the traces that begin here, those of warm slots; nil records none. A start
	// is part of the trace of whoever asks for it.
	Traces trace.TracerProvider
	Log    *slog.Logger // nil discards
}

// Meter is told what happens to sandboxes. Its methods return at once and are safe for
// concurrent use.
type Meter interface {
	// Started counts a sandbox that runs and how long it took until its daemon answered.
	Started(t *kiln.Template, path kiln.BootMode, took time.Duration)
	// StartFailed counts a sandbox that was admitted and did not start.
	StartFailed(t *kiln.Template)
	// Refused counts a sandbox that was not admitted.
	Refused(why error)
	// Claimed counts a start that could have used a warm slot: whether there was one.
	Claimed(t *kiln.Template, hit bool)
	// Command counts a command that somebody asked for in a sandbox.
	Command()
}

type noMeter struct{}

func (noMeter) Started(*kiln.Template, kiln.BootMode, time.Duration) {}
func (noMeter) StartFailed(*kiln.Template)                           {}
func (noMeter) Refused(error)                                        {}
func (noMeter) Claimed(*kiln.Template, bool)                         {}
func (noMeter) Command()                                             {}

// Limits bounds what the manager accepts. A zero field means its default.
type Limits struct {
	DefaultTTL time.Duration // of a request that names none; kiln.DefaultTTL
	MaxTTL     time.Duration // kiln.MaxTTL
	MaxRunning int           // sandboxes alive at once; 0 means no bound
	MaxPerOrg  int           // of one organisation; 0 means no bound
	// OrgLimits are what MaxPerOrg is for some organisations; 0 means no bound for them.
	OrgLimits map[string]int
	// MaxStarting bounds simultaneous starts; others wait for their turn. More than the
	// host has processors only makes each of them slower. Default: twice the processors.
	MaxStarting int
	// ReserveMiB of the host's memory are never given to sandboxes. Default 512.
	ReserveMiB int
	// Overcommit is how many times over the host's memory may be promised: clones share
	// most of theirs. Default 2; 1 promises no byte twice.
	Overcommit float64
	// RestoreTimeout bounds a start from a snapshot, BootTimeout a cold start up to the
	// daemon's first answer, EndTimeout what it takes to release everything.
	// SaveTimeout bounds a pause.
	RestoreTimeout, BootTimeout, EndTimeout, SaveTimeout time.Duration
}

// maxMachineDir is vmm.Config's limit on the length of a machine's folder.
const maxMachineDir = 80

func (o *Options) validate() error {
	switch {
	case o.Driver == nil, o.Store == nil, o.Blobs == nil, o.SnapshotKey == nil:
		return errors.New("sandbox: Driver, Store, Blobs and SnapshotKey are required")
	case !filepath.IsAbs(o.Dir):
		return fmt.Errorf("sandbox: folder %q is not absolute", o.Dir)
	}
	if n := len(filepath.Join(o.Dir, kiln.NewSandboxID())); n > maxMachineDir {
		return kiln.Errorf(kiln.CodeInvalid, "sandbox folder %s is too long a path by %d bytes", o.Dir, n-maxMachineDir).
			WithHint("addresses of Unix sockets are short: choose a data directory with a shorter path")
	}
	return nil
}

func (o *Options) setDefaults() {
	if o.RequestBake == nil {
		o.RequestBake = func(*kiln.Version, kiln.Size, error) {}
	}
	if o.Meter == nil {
		o.Meter = noMeter{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &o.Limits
	setDefault(&l.DefaultTTL, kiln.DefaultTTL)
	setDefault(&l.MaxTTL, kiln.MaxTTL)
	setDefault(&l.MaxStarting, 2*runtime.NumCPU())
	setDefault(&l.ReserveMiB, 512)
	setDefault(&l.Overcommit, 2)
	setDefault(&l.RestoreTimeout, time.Minute)
	setDefault(&l.BootTimeout, 3*time.Minute)
	setDefault(&l.EndTimeout, 30*time.Second)
	setDefault(&l.SaveTimeout, 2*time.Minute)
}

func setDefault[T int | float64 | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// ofOrg returns how many sandboxes an organisation may have alive at once; 0 means no bound.
func (l *Limits) ofOrg(orgID string) int {
	if n, ok := l.OrgLimits[orgID]; ok {
		return n
	}
	return l.MaxPerOrg
}
