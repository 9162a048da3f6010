package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"sync"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/vmm"
)

// machine implements [vmm.Machine].
type machine struct {
	driver  *Driver
	cfg     vmm.Config
	memory  memory
	cmd     *exec.Cmd
	qmp     *monitor
	console *console
	stderr  tail
	channel channel // to the guest's daemon

	done   chan struct{}
	mu     sync.Mutex
	killed bool
	err    error // why it ended

	run     sync.Once
	running chan struct{} // closed when the guest begins to run

	starting chan struct{} // holds one token; its holder may use what follows
	first    *firstStart   // of a guest that has yet to come up; nil once it has, or if nothing is known to go wrong

	loaded []byte // the stream that a restored machine was loaded from
}

func newMachine(d *Driver, cfg vmm.Config, mem memory, console *console) *machine {
	return &machine{driver: d, cfg: cfg, memory: mem, console: console, done: make(chan struct{}), running: make(chan struct{}), starting: make(chan struct{}, 1)}
}

// PID implements [vmm.Machine].
func (m *machine) PID() int { return m.cmd.Process.Pid }

// Done implements [vmm.Machine].
func (m *machine) Done() <-chan struct{} { return m.done }

// Err implements [vmm.Machine].
func (m *machine) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// ConsoleLog implements [vmm.Machine].
func (m *machine) ConsoleLog() string { return m.console.path() }

// Pause implements [vmm.Machine].
func (m *machine) Pause(ctx context.Context) error { return m.qmp.run(ctx, "stop", nil) }

// Resume implements [vmm.Machine].
func (m *machine) Resume(ctx context.Context) error {
	err := m.qmp.run(ctx, "cont", nil)
	if err == nil {
		m.run.Do(func() { close(m.running) })
	}
	return err
}

// Dial implements [vmm.Machine].
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := m.dial(ctx)
	if err != nil {
		return nil, m.gone(err)
	}
	return conn, nil
}

// Call implements [vmm.Caller].
func (m *machine) Call(ctx context.Context, request []byte) ([]byte, error) {
	reply, err := m.channel.call(ctx, request)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, err
	}
	if err != nil {
		return nil, m.gone(err)
	}
	return reply, nil
}

// gone prefers the end of the machine over the failure of a connection as an explanation.
func (m *machine) gone(err error) error {
	select {
	case <-m.qmp.ended:
		<-m.done
	default:
		return err
	}
	if why := m.Err(); why != nil {
		return fmt.Errorf("machine %s: %w", m.cfg.ID, why)
	}
	return kiln.Errorf(kiln.CodeUnavailable, "the virtual machine %s has ended", m.cfg.ID)
}

// drain waits until QEMU takes nothing more from the guest's channel: a paused guest is
// still given what is on its way, and memory and device state, saved one after the other,
// would disagree. What stays in the socket is lost, as the link expects.
func (m *machine) drain(ctx context.Context) error {
	// QEMU's main loop reads the channel as long as the guest has buffers, and answers
	// commands in between.
	for calm, last := 0, -1; calm < 3; {
		if err := m.qmp.run(ctx, "query-status", nil); err != nil {
			return err
		}
		unread, err := m.channel.unread()
		if err != nil {
			return err
		}
		if calm++; unread != last {
			calm, last = 0, unread
		}
	}
	return nil
}
