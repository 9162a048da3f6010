package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// monitor speaks QMP, QEMU's JSON protocol ("QEMU Machine Protocol Specification"): one
// command at a time, answers in order, events in between.
type monitor struct {
	conn *net.UnixConn

	command sync.Mutex // held from a command to its answer
	answers chan answer
	greeted chan struct{}

	mu     sync.Mutex
	events map[string]int // how often each event has come
	status string         // of the last MIGRATION event
	signal chan struct{}  // closed and replaced with every event
	err    error          // why the connection ended
}

type answer struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

type message struct {
	answer
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Data     struct {
		Status string `json:"status"`
	} `json:"data"`
}

var errMonitor = errors.New("QEMU closed its monitor")

func newMonitor(conn *net.UnixConn) *monitor {
	m := &monitor{
		conn: conn, answers: make(chan answer, 1), greeted: make(chan struct{}),
		events: map[string]int{}, signal: make(chan struct{}),
	}
	go m.read()
	return m
}

func (m *monitor) read() {
	dec := json.NewDecoder(bufio.NewReader(m.conn))
	for {
		var msg message
		if err := dec.Decode(&msg); err != nil {
			m.mu.Lock()
			m.err = errMonitor
			close(m.signal)
			m.mu.Unlock()
			close(m.answers)
			return
		}
		switch {
		case msg.Greeting != nil:
			close(m.greeted)
		case msg.Event != "":
			m.mu.Lock()
			m.events[msg.Event]++
			if msg.Event == "MIGRATION" {
				m.status = msg.Data.Status
			}
			close(m.signal)
			m.signal = make(chan struct{})
			m.mu.Unlock()
		default:
			m.answers <- msg.answer
		}
	}
}

// greet waits for QEMU's greeting and leaves the negotiation mode.
func (m *monitor) greet(ctx context.Context) error {
	select {
	case <-m.greeted:
	case <-m.ended():
		return errMonitor
	case <-ctx.Done():
		return ctx.Err()
	}
	return m.run(ctx, "qmp_capabilities", nil)
}

// ended is closed when the connection has ended.
func (m *monitor) ended() <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			m.mu.Lock()
			signal, err := m.signal, m.err
			m.mu.Unlock()
			if err != nil {
				return
			}
			<-signal
		}
	}()
	return done
}

// run sends a command and waits for its answer.
func (m *monitor) run(ctx context.Context, name string, arguments any) error {
	return m.runWithFile(ctx, name, arguments, nil)
}

// runWithFile is run with a descriptor attached, which QEMU keeps a copy of.
func (m *monitor) runWithFile(ctx context.Context, name string, arguments any, file *os.File) error {
	request := map[string]any{"execute": name}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	m.command.Lock()
	if _, _, err := m.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		m.command.Unlock()
		return fmt.Errorf("%s: %w", name, errMonitor)
	}
	done := make(chan error, 1)
	go func() {
		defer m.command.Unlock()
		a, ok := <-m.answers
		switch {
		case !ok:
			done <- fmt.Errorf("%s: %w", name, errMonitor)
		case a.Error != nil:
			done <- fmt.Errorf("%s: %s", name, a.Error.Desc)
		default:
			done <- nil
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", name, ctx.Err())
	}
}

// awaitMigration waits until a migration, in or out, has completed.
func (m *monitor) awaitMigration(ctx context.Context) error {
	for {
		m.mu.Lock()
		signal, status, err := m.signal, m.status, m.err
		m.mu.Unlock()
		switch {
		case status == "completed":
			return nil
		case status == "failed":
			return errors.New("QEMU could not load or save the machine's state")
		case err != nil:
			return err
		}
		select {
		case <-signal:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *monitor) close() { m.conn.Close() }

// socketpair returns a connection and its other end as a file to inherit.
func socketpair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "qmp")
	mine := os.NewFile(uintptr(fds[0]), "qmp")
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		theirs.Close()
		return nil, nil, syscall.ENOTSOCK
	}
	return unixConn, theirs, nil
}
