package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/span"
	"github.com/kilnvm/kiln/internal/vmm"
	"github.com/kilnvm/kiln/internal/vmm/tsc"
)

// Accelerators.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// machineVersion stands for the machine that the driver has QEMU make, and for the kernel's
// command line: a saved state fits no other. Raise it with every change of either.
const machineVersion = "2"

// Options configures a driver.
type Options struct {
	Binary string // a bare name is looked up in PATH; "" means qemu-system-x86_64
	Accel  string // KVM or TCG
	// Channel to the guests: Vsock or Serial; "" means Vsock where the host has it.
	Channel string
	// Restarted is told of every guest that is started again before it has come up; nil means
	// that nobody wants to know. It returns at once.
	Restarted func()
	Log       *slog.Logger // nil discards
}

// Driver implements [vmm.Driver].
type Driver struct {
	binary  string
	accel   string
	channel string // Vsock or Serial
	cmdline string // of the guest's kernel
	sandbox bool   // QEMU can confine itself with seccomp
	info    vmm.Info
	counted func() // is told of restarts
	log     *slog.Logger
}

var _ vmm.Driver = (*Driver)(nil)

// New checks the program and returns a driver for it.
func New(ctx context.Context, o Options) (*Driver, error) {
	if o.Binary == "" {
		o.Binary = "qemu-system-x86_64"
	}
	if o.Accel != KVM && o.Accel != TCG {
		return nil, kiln.Errorf(kiln.CodeInvalid, "accelerator %q is neither %s nor %s", o.Accel, KVM, TCG)
	}
	binary, err := exec.LookPath(o.Binary)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "the virtual machine monitor %s is not installed: %w", o.Binary, err).
			WithHint(install)
	}
	version, err := versionOf(ctx, binary)
	if err != nil {
		return nil, err
	}
	channel, _, err := ChooseChannel(o.Channel)
	if err != nil {
		return nil, err
	}
	d := &Driver{
		binary: binary, accel: o.Accel, channel: channel, cmdline: cmdline, sandbox: canSandbox(ctx, binary),
		info: vmm.Info{Name: "qemu-" + o.Accel, Version: version + "+" + machineVersion}, counted: o.Restarted, log: o.Log,
	}
	if d.counted == nil {
		d.counted = func() {}
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if channel == Vsock { // another machine: its snapshots are others
		d.info.Name += "-" + Vsock
	}
	switch o.Accel {
	case KVM:
		d.info.CPU, err = hostCPU("/proc/cpuinfo")
	case TCG:
		// KVM tells its guests the frequency; an emulated one that had to measure it could
		// hang. It is the host's, so a snapshot's sense of time depends on it.
		khz := tsc.KHz()
		d.cmdline += fmt.Sprintf(" tsc=reliable no_timer_check tsc_early_khz=%d %s%d", khz, timerWord, timerKHz)
		d.info.CPU = emulatedCPU(khz)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Info implements [vmm.Driver].
func (d *Driver) Info() vmm.Info { return d.info }

// Boot implements [vmm.Driver].
func (d *Driver) Boot(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
	mem := memory{path: cfg.Memory, shared: cfg.Memory != ""}
	if mem.shared {
		if err := makeMemory(cfg.Memory, cfg.Size.MemoryMiB); err != nil {
			return nil, err
		}
	}
	m, err := d.launch(ctx, cfg, mem, false)
	if err != nil {
		return nil, err
	}
	if d.accel == TCG {
		m.first = &firstStart{log: d.log.With("vm", cfg.ID)}
		go m.endAfterReset()
	}
	if err := m.qmp.greet(ctx); err != nil {
		return nil, m.abandon(err)
	}
	if err := m.Resume(ctx); err != nil {
		return nil, m.abandon(err)
	}
	return m, nil
}

// Restore implements [vmm.Driver].
func (d *Driver) Restore(ctx context.Context, cfg vmm.Config, s vmm.State) (vmm.Machine, error) {
	state, err := readState(s.State)
	if err != nil {
		return nil, err
	}
	if err := checkMemory(s.Memory, cfg.Size); err != nil {
		return nil, err
	}
	var m *machine
	err = span.Do(ctx, "spawn VMM", func(ctx context.Context) error {
		m, err = d.launch(ctx, cfg, memory{path: s.Memory}, true)
		return err
	})
	if err != nil {
		return nil, err
	}
	greeted, loaded, err := m.load(state)
	if err == nil {
		err = span.Do(ctx, "greet VMM", greeted.await)
	}
	if err != nil {
		return nil, m.abandon(err)
	}
	if err := span.Do(ctx, "load state", func(ctx context.Context) error { return m.awaitLoad(ctx, loaded) }); err != nil {
		err = m.abandon(err)
		if ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", vmm.ErrBadState, err)
		}
		return nil, err
	}
	return m, nil
}

// makeMemory makes the file that will hold guest memory, all of it a hole.
func makeMemory(path string, mib int) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("guest memory: %w", err)
	}
	if err := errors.Join(f.Truncate(int64(mib)<<20), f.Close()); err != nil {
		return fmt.Errorf("guest memory: %w", err)
	}
	return nil
}

func checkMemory(path string, size kiln.Size) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%w: memory: %w", vmm.ErrBadState, err)
	}
	if want := int64(size.MemoryMiB) << 20; info.Size() != want {
		return fmt.Errorf("%w: memory %s has %d bytes, a VM of size %s has %d", vmm.ErrBadState, path, info.Size(), size.Name, want)
	}
	return nil
}
