package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/cgroup"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/ready"
	"github.com/kilnvm/kiln/internal/scratch"
	"github.com/kilnvm/kiln/internal/span"
	"github.com/kilnvm/kiln/internal/vmm"
)

// bake is one golden snapshot in the making.
type bake struct {
	*Baker
	spec     kiln.VMSpec
	progress kiln.Progress
	dir      string

	machine vmm.Machine
	client  *guest.Client
	slot    *network.Slot // nil without a network
}

// Bake boots spec, waits until it is ready, saves it, tries the result out and keeps it.
// A fault of the template (its commands, an open connection) is a [*kiln.BuildError].
// Whatever happens, no process and no temporary file is left.
func (b *Baker) Bake(ctx context.Context, spec kiln.VMSpec, progress kiln.Progress) (_ kiln.Snapshot, err error) {
	k := &bake{Baker: b, spec: spec, progress: progress, dir: filepath.Join(b.opts.Dir, newName())}
	if err := b.opts.Blobs.Check(ctx, spec.Rootfs); err != nil {
		return kiln.Snapshot{}, fmt.Errorf("snapshot: %w", err)
	}
	defer func() {
		if rerr := k.release(); rerr != nil {
			err = errors.Join(err, fmt.Errorf("snapshot: clean up: %w", rerr))
		}
	}()
	steps := []struct {
		name    string
		run     func(context.Context) error
		timeout time.Duration
	}{
		{"boot", k.boot, b.opts.BootTimeout},
		{"get ready", k.getReady, 0}, // bounded by the template's own limits
		{"save", k.save, b.opts.SaveTimeout},
		{"try out", k.tryOut, b.opts.SaveTimeout},
	}
	for _, s := range steps {
		if err := k.step(ctx, s.name, s.timeout, s.run); err != nil {
			return kiln.Snapshot{}, err
		}
	}
	var snap kiln.Snapshot
	err = k.step(ctx, "keep", 0, func(ctx context.Context) (err error) {
		snap, err = k.keep(ctx)
		return err
	})
	return snap, err
}

// step runs one step, tells how long it took and says in an error which one it was.
func (k *bake) step(ctx context.Context, name string, timeout time.Duration, run func(context.Context) error) error {
	begun, whole := time.Now(), ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	if err := span.Do(ctx, name, run); err != nil {
		var mistake *kiln.BuildError
		if errors.As(err, &mistake) {
			return err
		}
		if k.machine != nil {
			k.opts.Log.Error("bake failed", "step", name, "error", err, "console", consoleTail(k.machine))
		}
		if ctx.Err() != nil && whole.Err() == nil {
			return kiln.Errorf(kiln.CodeTimeout, "%s took longer than %v: %w", name, timeout, err).
				WithHint("this host may be too busy or too slow: build again; the server's log has what the guest printed")
		}
		if errors.Is(err, guest.ErrGone) {
			err = kiln.Errorf(kiln.CodeInternal, "%w", err) // there is no other sandbox to turn to, but another try
		}
		return k.explainFullDisk(fmt.Errorf("snapshot %s: %s: %w", k.spec.Size.Name, name, err))
	}
	k.log("%s %s: %s", k.spec.Size.Name, name, time.Since(begun).Round(time.Millisecond))
	return nil
}

// fullBelow is how many bytes a disk has at most for a failure to be put down to it: a VMM
// that cannot write its memory or state says so in its own words, or dies.
const fullBelow = 8 << 20

// explainFullDisk says so if a step failed because there is no room for its files. They are
// still there.
func (k *bake) explainFullDisk(err error) error {
	var fs unix.Statfs_t
	if kiln.CodeOf(err) != kiln.CodeInternal || unix.Statfs(k.dir, &fs) != nil || fs.Bavail*uint64(fs.Bsize) >= fullBelow {
		return err
	}
	return kiln.DiskFull(err)
}

func (k *bake) log(format string, args ...any) {
	k.progress.Log(kiln.StageSnapshot, fmt.Sprintf(format, args...))
}

// path returns where a file of this bake is.
func (k *bake) path(name string) string { return filepath.Join(k.dir, name) }

// Files and folders of a bake, inside its folder.
const (
	machineName = "vm"      // folder of the VM that is saved
	trialName   = "trial"   // folder of the clone that tries the result out
	liveDisk    = "live"    // scratch disk of the VM that is saved
	diskName    = "scratch" // the golden one: a copy made while the VM was paused
	memoryName  = "memory"
	stateName   = "vmstate"
)

// boot starts the VM on a fresh scratch disk and waits for its daemon.
func (k *bake) boot(ctx context.Context) error {
	if err := os.MkdirAll(k.path(machineName), 0o700); err != nil {
		return err
	}
	if err := scratch.Make(ctx, k.path(liveDisk), k.spec.ScratchMB); err != nil {
		return err
	}
	if err := k.connect(ctx, k.spec.Egress); err != nil {
		return err
	}
	cfg := k.config(machineName, liveDisk)
	cfg.Memory = k.path(memoryName)
	machine, err := k.opts.Driver.Boot(ctx, cfg)
	if err != nil {
		return err
	}
	k.hold(machine)
	return untilEnd(ctx, machine, k.client.WaitReady)
}

// getReady runs the template's commands.
func (k *bake) getReady(ctx context.Context) error {
	return untilEnd(ctx, k.machine, func(ctx context.Context) error {
		if err := ready.Configure(ctx, k.client, k.spec); err != nil {
			return err
		}
		return ready.Reach(ctx, k.client, k.spec, k.opts.Ready, k.progress)
	})
}

// save makes the files of the snapshot, all of one moment, and ends the VM.
func (k *bake) save(ctx context.Context) error {
	if err := untilEnd(ctx, k.machine, k.rehearse); err != nil {
		return err
	}
	if err := untilEnd(ctx, k.machine, k.quiesce); err != nil {
		return err
	}
	k.client.Close()
	if err := k.machine.Pause(ctx); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	state := vmm.State{Memory: k.path(memoryName), State: k.path(stateName)}
	if err := k.machine.Capture(ctx, state); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	if err := artifact.CopySparse(ctx, k.path(diskName), k.path(liveDisk)); err != nil {
		return fmt.Errorf("scratch disk: %w", err)
	}
	return k.stop()
}

// tryOut restores the files once and has the clone use its daemon and its disk.
func (k *bake) tryOut(ctx context.Context) error {
	if err := os.Mkdir(k.path(trialName), 0o700); err != nil {
		return err
	}
	const disk = "trial-disk"
	if err := artifact.CopySparse(ctx, k.path(disk), k.path(diskName)); err != nil {
		return err
	}
	if err := k.connect(ctx, kiln.EgressPolicy{Mode: kiln.EgressDenyAll}); err != nil {
		return err
	}
	state := vmm.State{Memory: k.path(memoryName), State: k.path(stateName)}
	machine, err := k.opts.Driver.Restore(ctx, k.config(trialName, disk), state)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	k.hold(machine)
	if err := machine.Resume(ctx); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	if err := untilEnd(ctx, machine, k.probe); err != nil {
		return err
	}
	return k.stop()
}

// keep moves the files among the blobs and describes them.
func (k *bake) keep(ctx context.Context) (kiln.Snapshot, error) {
	snap := kiln.Snapshot{
		Key: k.Key(k.spec), SizeName: k.spec.Size.Name, Rootfs: k.spec.Rootfs, CreatedAt: time.Now(),
	}
	for _, f := range []struct {
		name, role string
		blob       *kiln.Blob
	}{
		{memoryName, kiln.RoleMemory, &snap.Memory},
		{stateName, kiln.RoleVMState, &snap.VMState},
		{diskName, kiln.RoleScratch, &snap.Scratch},
	} {
		blob, err := k.opts.Blobs.Ingest(ctx, k.path(f.name), f.role)
		if err != nil {
			return kiln.Snapshot{}, err
		}
		// Checked now, while a build is waited for anyway, and not by the first sandbox.
		if err := k.opts.Blobs.Check(ctx, blob); err != nil {
			return kiln.Snapshot{}, err
		}
		*f.blob = blob
	}
	return snap, nil
}

func (k *bake) config(folder, disk string) vmm.Config {
	return vmm.Config{
		ID: filepath.Base(k.dir), Dir: k.path(folder), Boot: k.opts.Boot, Size: k.spec.Size,
		Rootfs: k.opts.Blobs.Path(k.spec.Rootfs.Digest), Scratch: k.path(disk), Network: k.network(),
		Confine: k.confine(), Init: k.spec.Init,
	}
}

// confine returns what puts a VMM of this bake into the bake's control group. A sweep finds
// it by its name.
func (k *bake) confine() vmm.Confine {
	if k.opts.Groups == nil {
		return nil
	}
	return k.opts.Groups.Confine(k.group(), cgroup.For(k.spec.Size))
}

func (k *bake) group() string { return filepath.Base(k.dir) }

// hold makes machine the one that release kills.
func (k *bake) hold(machine vmm.Machine) { k.machine, k.client = machine, guest.Of(machine) }

// stop ends the present VM.
func (k *bake) stop() error {
	var err error
	if k.machine != nil {
		k.client.Close()
		err = k.machine.Kill()
		k.machine, k.client = nil, nil
	}
	return errors.Join(err, k.disconnect())
}

// releaseTimeout bounds the wait for a VMM's last threads.
const releaseTimeout = 20 * time.Second

// release ends what still runs and removes what is left of the files.
func (k *bake) release() error {
	err := k.stop()
	if k.opts.Groups != nil {
		ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
		defer cancel()
		err = errors.Join(err, k.opts.Groups.Remove(ctx, k.group()))
	}
	return errors.Join(err, os.RemoveAll(k.dir))
}

// untilEnd runs f and gives it up at once when the VM ends by itself. It is the template's
// fault if its guest switched itself off.
func untilEnd(ctx context.Context, machine vmm.Machine, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-over:
		case <-machine.Done():
			cancel(fmt.Errorf("the VM ended by itself: %w", errors.Join(errEnded, machine.Err())))
		}
	}()
	err := f(ctx)
	if errors.Is(err, guest.ErrGone) {
		// The connection may break before the end of the VM is known, which explains it.
		select {
		case <-ctx.Done():
		case <-time.After(endNotice):
		}
	}
	if err != nil && errors.Is(context.Cause(ctx), errEnded) {
		if machine.Err() == nil {
			return &kiln.BuildError{Stage: kiln.StageSnapshot, Message: "the VM switched itself off",
				Hint: "something in the template does that, its init system or one of its commands", Err: context.Cause(ctx)}
		}
		return context.Cause(ctx)
	}
	return err
}

var errEnded = errors.New("VM ended")

// endNotice is how long a VM whose connection broke may take to be known as ended.
const endNotice = 2 * time.Second

// consoleTail returns the last lines that the guest printed, for the log.
func consoleTail(machine vmm.Machine) string {
	const limit = 2 << 10
	text, err := os.ReadFile(machine.ConsoleLog())
	if err != nil {
		return ""
	}
	return string(text[max(0, len(text)-limit):])
}
