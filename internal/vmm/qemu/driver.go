// Package qemu drives QEMU's microvm machine, on KVM or on software emulation (TCG).
//
// A machine that is to be captured keeps its memory in a shared file. QEMU's capability
// x-ignore-shared leaves that file out of the saved state, so that a capture writes some
// ten kilobytes and a restore maps the file privately: each clone pays only for the
// pages that it changes. QMP and the console are descriptors inherited by QEMU, so nothing
// has to be waited for in the file system; the guest's channel is a Unix socket in
// Config.Dir, which a later process could dial again.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/hostcmd"
	"github.com/kilnvm/kiln/internal/vmm"
	"github.com/kilnvm/kiln/internal/vmm/tsc"
)

// Accelerators.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// Options configures a driver.
type Options struct {
	Binary string // a bare name is looked up in PATH; "" means qemu-system-x86_64
	Accel  string // KVM or TCG
}

// Driver implements [vmm.Driver].
type Driver struct {
	binary  string
	accel   string
	cmdline string // of the guest's kernel
	info    vmm.Info
	spawn   chan func()
}

var _ vmm.Driver = (*Driver)(nil)

// oldest is the first major version with everything that is used here.
const oldest = 6

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
			WithHint("apt-get install qemu-system-x86 seabios")
	}
	version, err := versionOf(ctx, binary)
	if err != nil {
		return nil, err
	}
	d := &Driver{
		binary: binary, accel: o.Accel, cmdline: cmdline, spawn: make(chan func()),
		info: vmm.Info{Name: "qemu-" + o.Accel, Version: version, CPU: "qemu64-max"},
	}
	if o.Accel == KVM {
		if d.info.CPU, err = hostCPU("/proc/cpuinfo"); err != nil {
			return nil, err
		}
	}
	if o.Accel == TCG {
		// KVM tells its guests; an emulated one that had to measure it could hang.
		d.cmdline += fmt.Sprintf(" tsc_early_khz=%d", tsc.KHz())
	}
	go d.spawner()
	return d, nil
}

// spawner starts all VMMs from one thread that lives as long as the program: the kernel
// sends PR_SET_PDEATHSIG when the *thread* that forked ends.
func (d *Driver) spawner() {
	runtime.LockOSThread()
	for start := range d.spawn {
		start()
	}
}

// start starts cmd on the spawner's thread.
func (d *Driver) start(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	d.spawn <- func() { done <- cmd.Start() }
	return <-done
}

var versionLine = regexp.MustCompile(`version (\d+)(\.[0-9.]+)`)

func versionOf(ctx context.Context, binary string) (string, error) {
	out, err := hostcmd.Output(ctx, binary, "--version")
	if err != nil {
		return "", kiln.Errorf(kiln.CodeUnavailable, "%s does not run: %w", binary, err)
	}
	m := versionLine.FindStringSubmatch(string(out))
	if m == nil {
		return "", kiln.Errorf(kiln.CodeUnavailable, "%s --version prints no version: %.80q", binary, out)
	}
	if major, err := strconv.Atoi(m[1]); err != nil || major < oldest {
		return "", kiln.Errorf(kiln.CodeUnavailable, "%s is version %s%s; Kiln needs %d or later", binary, m[1], m[2], oldest)
	}
	return m[1] + m[2], nil
}

// hostCPU fingerprints what a guest sees with -cpu host.
func hostCPU(cpuinfo string) (string, error) {
	text, err := os.ReadFile(cpuinfo)
	if err != nil {
		return "", fmt.Errorf("CPU fingerprint: %w", err)
	}
	first, _, _ := strings.Cut(string(text), "\n\n")
	key := kiln.NewKey(kiln.StageSnapshot, 1)
	for line := range strings.Lines(first) {
		name, value, _ := strings.Cut(line, ":")
		switch name = strings.TrimSpace(name); name {
		case "vendor_id", "cpu family", "model", "stepping", "flags":
			key.Add(name, strings.TrimSpace(value))
		}
	}
	return "host-" + key.Key().Short(), nil
}

// Info implements [vmm.Driver].
func (d *Driver) Info() vmm.Info { return d.info }

// Boot implements [vmm.Driver].
func (d *Driver) Boot(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
	m, err := d.launch(ctx, cfg, memory{path: cfg.Memory, shared: true}, false)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Restore implements [vmm.Driver].
func (d *Driver) Restore(ctx context.Context, cfg vmm.Config, s vmm.State) (vmm.Machine, error) {
	if err := checkState(cfg, s); err != nil {
		return nil, err
	}
	m, err := d.launch(ctx, cfg, memory{path: s.Memory}, true)
	if err != nil {
		return nil, err
	}
	if err := m.load(ctx, s.State); err != nil {
		return nil, errors.Join(m.explain(err), m.Kill())
	}
	return m, nil
}

// checkState refuses files that cannot be what Capture wrote before a process is started.
func checkState(cfg vmm.Config, s vmm.State) error {
	info, err := os.Stat(s.Memory)
	if err != nil {
		return fmt.Errorf("snapshot memory: %w", err)
	}
	if want := int64(cfg.Size.MemoryMiB) << 20; info.Size() != want {
		return kiln.Errorf(kiln.CodeInvalid, "snapshot memory %s has %d bytes, a VM of size %s has %d",
			s.Memory, info.Size(), cfg.Size.Name, want)
	}
	f, err := os.Open(s.State)
	if err != nil {
		return fmt.Errorf("snapshot state: %w", err)
	}
	defer f.Close()
	// QEMU's migration stream begins with "QEVM" and ends with a JSON description of the
	// devices (docs/devel/migration in QEMU's sources); a truncated one lacks its end.
	head, tail := make([]byte, 4), make([]byte, 1)
	if _, err := f.ReadAt(head, 0); err != nil || string(head) != "QEVM" {
		return kiln.Errorf(kiln.CodeInvalid, "snapshot state %s is not a QEMU migration stream", s.State)
	}
	if info, err = f.Stat(); err != nil {
		return fmt.Errorf("snapshot state: %w", err)
	}
	if _, err := f.ReadAt(tail, info.Size()-1); err != nil || tail[0] != '}' {
		return kiln.Errorf(kiln.CodeInvalid, "snapshot state %s is truncated", s.State)
	}
	return nil
}

// maxDir is the longest Config.Dir: a Unix socket address holds 108 bytes.
const maxDir = 80

// launch starts a VMM and returns when it answers on QMP.
func (d *Driver) launch(ctx context.Context, cfg vmm.Config, mem memory, incoming bool) (*machine, error) {
	if len(cfg.Dir) > maxDir {
		return nil, kiln.Errorf(kiln.CodeInvalid, "folder %s is longer than %d bytes, too long for its sockets", cfg.Dir, maxDir)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	console, err := newConsole(filepath.Join(cfg.Dir, consoleName))
	if err != nil {
		return nil, err
	}
	m := &machine{cfg: cfg, memory: mem, console: console, done: make(chan struct{})}
	ours, theirs, err := socketpair()
	if err != nil {
		console.Close()
		return nil, err
	}
	m.cmd = d.command(cfg, mem, incoming)
	m.cmd.ExtraFiles = []*os.File{theirs} // descriptor 3
	m.cmd.Stdout, m.cmd.Stderr = console, &m.stderr
	err = d.start(m.cmd)
	theirs.Close()
	if err != nil {
		ours.Close()
		console.Close()
		return nil, fmt.Errorf("start %s: %w", d.binary, err)
	}
	m.qmp = newMonitor(ours)
	go m.wait()
	if err := m.qmp.greet(ctx); err != nil {
		return nil, errors.Join(m.explain(err), m.Kill())
	}
	return m, nil
}

// killDelay is how long a dead VMM's output may stay open.
const killDelay = 2 * time.Second
