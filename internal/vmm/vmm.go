// Package vmm says what a virtual machine monitor must be able to do for Kiln, in the
// order in which a template and its sandboxes need it:
//
//	boot      start a kernel with a root disk and a scratch disk
//	dial      reach the guest daemon
//	pause     stop the virtual CPUs
//	capture   save memory and device state to files
//	restore   start a private clone from such files, any number of times
//	kill      end it and release everything
//
// The contract fits Firecracker's API as well as QEMU's: memory is a file, device
// state is a second file, disks are named by path at both boot and restore, and the
// guest is reached through a connection that the host opens. Package vmm/vmmtest is its
// conformance suite; every driver runs it.
package vmm

import (
	"context"
	"errors"
	"net"

	"github.com/kilnvm/kiln"
)

// ErrBadState is in the chain of Restore's error when the files cannot be restored: they
// are missing, damaged, or of another machine. A cold boot may still work.
var ErrBadState = errors.New("saved machine cannot be restored")

// Driver starts virtual machines of one kind. It is safe for concurrent use.
type Driver interface {
	// Info says what this driver is on this host.
	Info() Info
	// Boot starts the kernel and returns when the VMM runs; the guest is reachable
	// when Machine.Dial succeeds. ctx bounds the start, not the life of the machine.
	Boot(ctx context.Context, cfg Config) (Machine, error)
	// Restore starts a private clone: memory is mapped copy-on-write and mem.Memory and
	// mem.State are never changed. cfg must describe the machine that was captured; only
	// Dir and disk paths may differ. The virtual CPUs stay paused until Machine.Resume.
	Restore(ctx context.Context, cfg Config, mem State) (Machine, error)
}

// Info describes a driver. Name, Version and CPU are part of every snapshot key: state
// saved under one is never loaded under another.
type Info struct {
	Name    string // "qemu-tcg", "qemu-kvm", "firecracker"
	Version string // of the VMM program, and of the machine that the driver has it make
	CPU     string // fingerprint of what the guest sees as its CPU
}

// Config is one virtual machine.
type Config struct {
	// ID names the machine in logs and process lists.
	ID string
	// Dir is an existing folder owned by this machine: sockets, console log, state.
	// The driver leaves nothing outside it. Its path is at most 80 bytes, because Unix
	// socket addresses are short.
	Dir  string
	Boot kiln.BootBundle
	Size kiln.Size
	// Rootfs is attached read-only, Scratch read-write, as first and second disk.
	Rootfs, Scratch string
	// Init is the init system that the guest hands over to, [kiln.VMSpec]'s; "" is none.
	// Restore ignores it: what runs is in memory.
	Init string
	// Memory is where guest memory lives when a booted machine is to be captured. Empty
	// means anonymous memory: such a machine cannot be captured. Ignored by Restore,
	// whose machines can always be captured.
	Memory string
	// Disk bounds the traffic of both disks together.
	Disk kiln.DiskLimits
	// Confine, unless nil, starts the VMM's process, on the thread that it is called on. When
	// it returns the process is bounded; neither has guest code run in it by then, nor has it
	// touched guest memory. Its error is that of Boot or Restore.
	Confine Confine
	// Network connects the VM; nil means that it has no network device. A machine is
	// restored with a device if and only if it was captured with one.
	Network *Network
}

// Network is a tap device for one VM. It exists before the VM starts and stays when the VM
// has ended; nobody else uses it meanwhile. Its rules are in force already: a driver that
// fails to attach it must not start the VM without.
type Network struct {
	Namespace string // path of the network namespace that the tap is in
	Tap       string // its name there
	MAC       string // of the guest's end
}

// State is a captured machine: its memory and the state of CPUs and devices.
type State struct {
	Memory string // path
	State  string // path
}

// Caller is a [Machine] whose guest can be told something before the first connection to
// it is made. Emulated machines have it: they pay for every line of code that their guest
// has not run before, and a connection needs many.
type Caller interface {
	// Call sends one short request to the guest daemon and returns its reply. The machine
	// need not run yet; the request waits for it. Once Dial has been called, or for a
	// request that is too long, the error is errors.ErrUnsupported.
	Call(ctx context.Context, request []byte) (reply []byte, err error)
}

// Machine is one running VM. Methods are safe for concurrent use.
type Machine interface {
	// Dial opens a new connection to the guest daemon, waiting until the guest listens
	// or ctx ends. Connections that were open at capture do not exist in a clone.
	Dial(ctx context.Context) (net.Conn, error)
	// Pause stops the virtual CPUs; Resume lets them run again. Both are idempotent.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Capture saves a paused machine: one that was booted with Config.Memory, or any that
	// was restored. What it saves is restored like any other State, any number of times.
	// A booted machine may be let run on for a moment, without connections, until it
	// idles; a restored one is saved as it is, because somebody may be working in it. On
	// return s.Memory and s.State, which must not have existed, are complete but not
	// synced, and the machine is still paused; it must be killed next, since s.Memory may
	// be the memory it runs on. All connections made by Dial are closed.
	Capture(ctx context.Context, s State) error
	// PID is the process to account resources to.
	PID() int
	// Done is closed when the VMM has ended; Err then says why (nil: it was killed or
	// the guest shut down).
	Done() <-chan struct{}
	Err() error
	// ConsoleLog is the path of what the guest printed on its serial console.
	ConsoleLog() string
	// Kill ends the VMM at once, waits for it, and removes what the driver made in Dir
	// except the console log. It is idempotent and ignores the state of ctx's caller:
	// it takes no context because it must always run to its end.
	Kill() error
}
