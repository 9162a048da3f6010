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
	conn  *net.UnixConn
	ended chan struct{} // closed when everything that QEMU sent has been read

	mu       sync.Mutex
	waiting  []chan answer // for answers, in the order of commands
	closed   bool          // nothing will be answered any more
	changed  chan struct{} // closed and replaced with every event
	status   string        // of the last MIGRATION event
	shutdown string        // reason of the last SHUTDOWN event
	resets   int           // RESET events
}

type command struct {
	Execute   string   `json:"execute"`
	Arguments any      `json:"arguments,omitempty"`
	File      *os.File `json:"-"` // whose descriptor comes with it; QEMU keeps a copy
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

// switchedOff is the reason of a SHUTDOWN event that the guest wanted.
const switchedOff = "guest-shutdown"

var errMonitor = errors.New("QEMU closed its monitor")

func newMonitor(conn *net.UnixConn) *monitor {
	m := &monitor{
		conn: conn, ended: make(chan struct{}), changed: make(chan struct{}),
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
		case msg.Greeting != nil: // commands have been sent, or will be
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
	case "RESET":
		m.resets++
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

// hello ends the monitor's negotiation, before which it takes no other command.
var hello = command{Execute: "qmp_capabilities"}

// greet waits until the monitor takes commands.
func (m *monitor) greet(ctx context.Context) error { return m.do(ctx, hello) }

// run sends a command and waits for its answer.
func (m *monitor) run(ctx context.Context, name string, arguments any) error {
	return m.do(ctx, command{Execute: name, Arguments: arguments})
}

// do sends a command and waits for its answer. When ctx ends first the command may still
// take effect.
func (m *monitor) do(ctx context.Context, c command) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	reply, err := m.send(c)
	if err != nil {
		return err
	}
	return reply.await(ctx)
}

// ask runs a command of the monitor for people and returns what it prints.
func (m *monitor) ask(ctx context.Context, line string) (text string, err error) {
	err = m.query(ctx, command{Execute: "human-monitor-command", Arguments: map[string]any{"command-line": line}}, &text)
	return text, err
}

// query sends a command and reads what it returns.
func (m *monitor) query(ctx context.Context, c command, into any) error {
	r, err := m.send(c)
	if err != nil {
		return err
	}
	value, err := r.value(ctx)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(value, into); err != nil {
		return fmt.Errorf("%s: %w", c.Execute, err)
	}
	return nil
}

// reply is the answer to a command that was sent.
type reply struct {
	command string
	answer  <-chan answer
}

// await waits for the answer.
func (r reply) await(ctx context.Context) error {
	_, err := r.value(ctx)
	return err
}

// value waits for the answer and returns what it says.
func (r reply) value(ctx context.Context) (json.RawMessage, error) {
	select {
	case a, ok := <-r.answer:
		switch {
		case !ok:
			return nil, fmt.Errorf("%s: %w", r.command, errMonitor)
		case a.Error != nil:
			return nil, fmt.Errorf("QEMU refuses %s: %s", r.command, a.Error.Desc)
		}
		return a.Return, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", r.command, ctx.Err())
	}
}

// writes returns how often the guest has written to a disk.
func (m *monitor) writes(ctx context.Context, disk string) (int, error) {
	var disks []struct {
		Node  string `json:"node-name"`
		Stats struct {
			Writes int `json:"wr_operations"`
		} `json:"stats"`
	}
	if err := m.query(ctx, command{Execute: "query-blockstats"}, &disks); err != nil {
		return 0, err
	}
	for _, d := range disks {
		if d.Node == disk {
			return d.Stats.Writes, nil
		}
	}
	return 0, fmt.Errorf("query-blockstats: there is no disk %s", disk)
}

// send writes a command. QEMU carries commands out in their order, the first ones when it
// has started, so nobody need wait for one before sending the next.
func (m *monitor) send(c command) (reply, error) {
	line, err := json.Marshal(c)
	if err != nil {
		return reply{}, err
	}
	var rights []byte
	if c.File != nil {
		rights = unix.UnixRights(int(c.File.Fd()))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return reply{}, fmt.Errorf("%s: %w", c.Execute, errMonitor)
	}
	if _, _, err := m.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return reply{}, fmt.Errorf("%s: %w", c.Execute, errMonitor)
	}
	waiting := make(chan answer, 1)
	m.waiting = append(m.waiting, waiting)
	return reply{c.Execute, waiting}, nil
}

// awaitMigration waits until a migration, in or out, has completed.
func (m *monitor) awaitMigration(ctx context.Context) error {
	var status string
	err := m.await(ctx, func() bool {
		status = m.status
		return status == "completed" || status == "failed" || status == "cancelled"
	})
	if err == nil && status != "completed" {
		err = errors.New("QEMU could not transfer the machine's state")
	}
	return err
}

// await waits until an event makes reached true, which is called with m.mu held.
func (m *monitor) await(ctx context.Context, reached func() bool) error {
	for {
		m.mu.Lock()
		changed, ok := m.changed, reached()
		m.mu.Unlock()
		if ok {
			return nil
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

// beginReset forgets that the guest switched itself off and returns how many resets there
// were.
func (m *monitor) beginReset() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shutdown = ""
	return m.resets
}
