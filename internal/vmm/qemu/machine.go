package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/link"
	"github.com/kilnvm/kiln/internal/vmm"
)

// machine implements [vmm.Machine].
type machine struct {
	cfg     vmm.Config
	memory  memory
	cmd     *exec.Cmd
	qmp     *monitor
	console *console
	stderr  tail
	link    *net.UnixConn // host end of the guest's channel

	done   chan struct{}
	mu     sync.Mutex
	killed bool
	err    error // why it ended

	dialing  chan struct{} // holds one token; its holder may use what follows
	session  *link.Session
	captured bool
	first    *firstStart // of a guest that has yet to come up; nil once it has, or if nothing is known to go wrong

	loaded []byte // the stream that a restored machine was loaded from
}

func newMachine(cfg vmm.Config, mem memory, console *console, link *net.UnixConn) *machine {
	return &machine{
		cfg: cfg, memory: mem, console: console, link: link,
		done: make(chan struct{}), dialing: make(chan struct{}, 1),
	}
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
func (m *machine) Resume(ctx context.Context) error { return m.qmp.run(ctx, "cont", nil) }

// Dial implements [vmm.Machine]. All connections share one session of the link, which is
// made anew when it has ended.
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	session, err := m.linked(ctx)
	if err != nil {
		return nil, m.gone(err)
	}
	conn, err := session.Open(ctx)
	if err != nil {
		return nil, m.gone(err)
	}
	return conn, nil
}

// linked returns the session of the link. One caller at a time makes it.
func (m *machine) linked(ctx context.Context) (*link.Session, error) {
	select {
	case m.dialing <- struct{}{}:
		defer func() { <-m.dialing }()
	case <-m.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if m.captured {
		return nil, kiln.Errorf(kiln.CodeConflict, "machine %s was captured and takes no connections", m.cfg.ID)
	}
	if m.session != nil {
		select {
		case <-m.session.Done():
			_ = m.session.Close() // its end is known; the next one starts afresh
		default:
			return m.session, nil
		}
	}
	session, err := m.connect(ctx)
	if err != nil {
		return nil, err
	}
	m.session = session
	return session, nil
}

// Call implements [vmm.Caller].
func (m *machine) Call(ctx context.Context, request []byte) ([]byte, error) {
	select {
	case m.dialing <- struct{}{}:
		defer func() { <-m.dialing }()
	case <-m.done:
		return nil, m.gone(net.ErrClosed)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if m.session != nil || m.captured || len(request) > link.MaxCall {
		return nil, errors.ErrUnsupported
	}
	reply, err := link.Call(ctx, m.link, request)
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
		unread, err := unreadBytes(m.link)
		if err != nil {
			return err
		}
		if calm++; unread != last {
			calm, last = 0, unread
		}
	}
	return nil
}

// unreadBytes returns how much of what was written to c its peer has yet to read, in the
// kernel's accounting.
func unreadBytes(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	n, nerr := 0, error(nil)
	err = raw.Control(func(fd uintptr) { n, nerr = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n, errors.Join(err, nerr)
}
