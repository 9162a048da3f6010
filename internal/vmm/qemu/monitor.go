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

	"golang.org/x/sys/unix"
)

// monitor speaks QMP, QEMU's JSON protocol ("QEMU Machine Protocol Specification"):
// commands are answered in their order, and events come in between.
type monitor struct {
	conn    *net.UnixConn
	greeted chan struct{}
	ended   chan struct{} // closed when everything that QEMU sent has been read

	mu       sync.Mutex
	waiting  []chan answer // for answers, in the order of commands
	closed   bool          // nothing will be answered any more
	changed  chan struct{} // closed and replaced with every event
	status   string        // of the last MIGRATION event
	shutdown string        // reason of the SHUTDOWN event
}

type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
}

type answer struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

type message struct {
	answer
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Data     struct {
		Status string `json:"status"`
		Reason string `json:"reason"`
	} `json:"data"`
}

var errMonitor = errors.New("QEMU closed its monitor")

func newMonitor(conn *net.UnixConn) *monitor {
	m := &monitor{
		conn: conn, greeted: make(chan struct{}), ended: make(chan struct{}), changed: make(chan struct{}),
	}
	go m.read()
	return m
}

func (m *monitor) read() {
	defer close(m.ended)
	defer m.conn.Close()
	dec := json.NewDecoder(bufio.NewReader(m.conn))
	for {
		var msg message
		if err := dec.Decode(&msg); err != nil {
			m.hangUp()
			return
		}
		switch {
		case msg.Greeting != nil:
			close(m.greeted)
		case msg.Event != "":
			m.note(msg)
		default:
			m.give(msg.answer)
		}
	}
}

// note remembers an event.
func (m *monitor) note(msg message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch msg.Event {
	case "MIGRATION":
		m.status = msg.Data.Status
	case "SHUTDOWN":
		m.shutdown = msg.Data.Reason
	}
	close(m.changed)
	m.changed = make(chan struct{})
}

// give hands an answer to whoever has waited longest.
func (m *monitor) give(a answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting) > 0 {
		m.waiting[0] <- a
		m.waiting = m.waiting[1:]
	}
}

func (m *monitor) hangUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, w := range m.waiting {
		close(w)
	}
	m.waiting = nil
}

// greet waits for QEMU's greeting and leaves the negotiation mode.
func (m *monitor) greet(ctx context.Context) error {
	select {
	case <-m.greeted:
		return m.run(ctx, "qmp_capabilities", nil)
	case <-m.ended:
		return errMonitor
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run sends a command and waits for its answer.
func (m *monitor) run(ctx context.Context, name string, arguments any) error {
	return m.runWithFile(ctx, name, arguments, nil)
}

// runWithFile is run with a descriptor attached, which QEMU keeps a copy of. When ctx
// ends first the command may still take effect.
func (m *monitor) runWithFile(ctx context.Context, name string, arguments any, file *os.File) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	reply, err := m.send(command{Execute: name, Arguments: arguments}, file)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	select {
	case a, ok := <-reply:
		switch {
		case !ok:
			return fmt.Errorf("%s: %w", name, errMonitor)
		case a.Error != nil:
			return fmt.Errorf("QEMU refuses %s: %s", name, a.Error.Desc)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", name, ctx.Err())
	}
}

// send writes a command and returns where its answer will be.
func (m *monitor) send(c command, file *os.File) (<-chan answer, error) {
	line, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errMonitor
	}
	if _, _, err := m.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return nil, errMonitor
	}
	reply := make(chan answer, 1)
	m.waiting = append(m.waiting, reply)
	return reply, nil
}

// awaitMigration waits until a migration, in or out, has completed.
func (m *monitor) awaitMigration(ctx context.Context) error {
	for {
		m.mu.Lock()
		changed, status := m.changed, m.status
		m.mu.Unlock()
		switch status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return errors.New("QEMU could not transfer the machine's state")
		}
		select {
		case <-changed:
		case <-m.ended:
			return errMonitor
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// shutdownReason returns why QEMU said it shuts down, or "".
func (m *monitor) shutdownReason() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shutdown
}
