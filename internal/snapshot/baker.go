package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/cgroup"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/orphan"
	"github.com/kilnvm/kiln/internal/ready"
	"github.com/kilnvm/kiln/internal/vmm"
)

// Blobs keeps immutable files.
type Blobs interface {
	// Path returns where the blob of that digest is.
	Path(d kiln.Digest) string
	// Ingest moves the file at path among the blobs.
	Ingest(ctx context.Context, path, role string) (kiln.Blob, error)
	// Check makes sure that a blob is there and is what its name promises.
	Check(ctx context.Context, b kiln.Blob) error
}

// Options is what a baker is made of. Driver, Boot, Blobs and Dir are required.
type Options struct {
	Driver vmm.Driver
	Boot   kiln.BootBundle
	Blobs  Blobs
	// Dir holds what a bake needs while it runs. It should be on the file system of the
	// blobs. The baker creates it and New empties it: it belongs to one baker.
	Dir string
	// Network connects the VM that is captured, so that its start command can use it;
	// nil means that VMs have no network device.
	Network *network.Pool
	// BootTimeout bounds a boot up to the daemon's first answer; default 3 minutes.
	BootTimeout time.Duration
	// SaveTimeout bounds quiesce, capture and trial; default 5 minutes.
	SaveTimeout time.Duration
	Ready       ready.Limits
	// Groups bounds what VMs take from the host; nil bounds nothing. New empties it.
	Groups *cgroup.Tree
	Log    *slog.Logger // nil discards
}

// Baker makes golden snapshots. It is safe for concurrent use.
type Baker struct{ opts Options }

// maxMachineDir is vmm.Config's limit on the length of a machine's folder.
const maxMachineDir = 80

// New returns a baker after removing what an earlier one left in opts.Dir, VMs included.
func New(ctx context.Context, opts Options) (*Baker, error) {
	switch {
	case opts.Driver == nil, opts.Blobs == nil:
		return nil, errors.New("snapshot: Driver and Blobs are required")
	case !filepath.IsAbs(opts.Dir):
		return nil, fmt.Errorf("snapshot: folder %q is not absolute", opts.Dir)
	}
	if n := len(filepath.Join(opts.Dir, newName(), trialName)); n > maxMachineDir {
		return nil, kiln.Errorf(kiln.CodeInvalid, "folder %s is too long a path by %d bytes", opts.Dir, n-maxMachineDir).
			WithHint("addresses of Unix sockets are short: choose a data directory with a shorter path")
	}
	if opts.BootTimeout == 0 {
		opts.BootTimeout = 3 * time.Minute
	}
	if opts.SaveTimeout == 0 {
		opts.SaveTimeout = 5 * time.Minute
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if err := sweep(ctx, opts.Dir); err != nil {
		return nil, fmt.Errorf("snapshot: sweep %s: %w", opts.Dir, err)
	}
	if opts.Groups != nil {
		if err := opts.Groups.Sweep(ctx); err != nil {
			return nil, fmt.Errorf("snapshot: %w", err)
		}
	}
	return &Baker{opts: opts}, nil
}

// Key returns the key under which a snapshot of spec made here is stored.
func (b *Baker) Key(spec kiln.VMSpec) kiln.Digest {
	info := b.opts.Driver.Info()
	return kiln.SnapshotKey{
		VMSpec: spec, BootBundle: b.opts.Boot.Digest,
		VMM: info.Name + " " + info.Version, CPUFingerprint: info.CPU, Network: b.opts.Network != nil,
	}.Digest()
}

// sweep removes what a baker that was killed left: VMs first, then files.
func sweep(ctx context.Context, dir string) error {
	if _, err := orphan.EndHolders(ctx, dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o700)
}

// newName returns a name for a bake: a short one, because socket addresses are short.
func newName() string { return kiln.NewID("b")[:9] }
