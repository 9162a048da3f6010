package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

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

	done    chan struct{}
	mu      sync.Mutex
	killed  bool
	err     error // why it ended
	dialing sync.Mutex
	conn    net.Conn
	session *link.Session
}

// wait reaps the process and says why it ended.
func (m *machine) wait() {
	err := m.cmd.Wait()
	m.mu.Lock()
	if err != nil && !m.killed {
		m.err = m.failure(err)
	}
	m.mu.Unlock()
	m.qmp.close()
	m.console.Close()
	close(m.done)
}

func (m *machine) failure(err error) error {
	if text := m.stderr.String(); text != "" {
		return fmt.Errorf("QEMU ended: %w: %s", err, text)
	}
	return fmt.Errorf("QEMU ended: %w", err)
}

// explain replaces an error that only says that QEMU is gone by what QEMU said.
func (m *machine) explain(err error) error {
	if !errors.Is(err, errMonitor) {
		return err
	}
	<-m.done
	if m.Err() == nil {
		return err
	}
	return m.Err()
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
func (m *machine) ConsoleLog() string { return m.console.path }

// Pause implements [vmm.Machine].
func (m *machine) Pause(ctx context.Context) error { return m.explain(m.qmp.run(ctx, "stop", nil)) }

// Resume implements [vmm.Machine].
func (m *machine) Resume(ctx context.Context) error { return m.explain(m.qmp.run(ctx, "cont", nil)) }

// Dial implements [vmm.Machine]. All connections share one link over the guest's channel,
// which is made anew when it has ended.
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	session, err := m.link(ctx)
	if err != nil {
		return nil, m.gone(ctx, err)
	}
	conn, err := session.Open(ctx)
	if err != nil {
		return nil, m.gone(ctx, err)
	}
	return conn, nil
}

func (m *machine) link(ctx context.Context) (*link.Session, error) {
	m.dialing.Lock()
	defer m.dialing.Unlock()
	if m.session != nil {
		select {
		case <-m.session.Done():
			m.hangUp()
		default:
			return m.session, nil
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a VMM that ends ends the attempt
		select {
		case <-m.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(m.cfg.Dir, guestSocket))
	if err != nil {
		return nil, err
	}
	session, err := link.Dial(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	m.conn, m.session = conn, session
	return session, nil
}

// hangUp ends the link. m.dialing is held.
func (m *machine) hangUp() {
	if m.session == nil {
		return
	}
	_ = m.session.Close() // the connection below goes next
	m.conn.Close()
	m.session, m.conn = nil, nil
}

// gone prefers the end of the VMM over the failure of a connection as an explanation.
func (m *machine) gone(ctx context.Context, err error) error {
	select {
	case <-m.done:
		if m.Err() != nil {
			return m.Err()
		}
		return kiln.Errorf(kiln.CodeUnavailable, "the virtual machine has ended")
	default:
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Capture implements [vmm.Machine].
func (m *machine) Capture(ctx context.Context, s vmm.State) error {
	if m.memory.path == "" || !m.memory.shared {
		return kiln.Errorf(kiln.CodeInvalid, "machine %s was not booted to be captured", m.cfg.ID)
	}
	m.dialing.Lock()
	m.hangUp()
	m.dialing.Unlock()
	if err := m.save(ctx, s.State); err != nil {
		return fmt.Errorf("capture %s: %w", m.cfg.ID, m.explain(err))
	}
	if s.Memory == m.memory.path {
		return nil
	}
	if err := os.Rename(m.memory.path, s.Memory); err != nil {
		return fmt.Errorf("capture %s: %w", m.cfg.ID, err)
	}
	return nil
}

// save writes the state of CPUs and devices, without memory, to path.
func (m *machine) save(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := m.ignoreShared(ctx); err != nil {
		return err
	}
	if err := m.handOver(ctx, f); err != nil {
		return err
	}
	if err := m.qmp.run(ctx, "migrate", map[string]any{"uri": "fd:" + stateName}); err != nil {
		return err
	}
	if err := m.qmp.awaitMigration(ctx); err != nil {
		return err
	}
	return f.Sync()
}

// load reads a state into a machine that waits for it; it stays paused.
func (m *machine) load(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := m.ignoreShared(ctx); err != nil {
		return err
	}
	if err := m.handOver(ctx, f); err != nil {
		return err
	}
	if err := m.qmp.run(ctx, "migrate-incoming", map[string]any{"uri": "fd:" + stateName}); err != nil {
		return err
	}
	return m.qmp.awaitMigration(ctx)
}

// stateName is under what name QEMU knows the descriptor of the state file.
const stateName = "state"

func (m *machine) handOver(ctx context.Context, f *os.File) error {
	return m.qmp.runWithFile(ctx, "getfd", map[string]any{"fdname": stateName}, f)
}

func (m *machine) ignoreShared(ctx context.Context) error {
	capability := func(name string) map[string]any { return map[string]any{"capability": name, "state": true} }
	return m.qmp.run(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []any{capability("x-ignore-shared"), capability("events")},
	})
}

// Kill implements [vmm.Machine].
func (m *machine) Kill() error {
	m.mu.Lock()
	m.killed = true
	m.mu.Unlock()
	select {
	case <-m.done: // its number may belong to another process by now
	default:
		if err := syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill VMM %d: %w", m.cmd.Process.Pid, err)
		}
		<-m.done
	}
	m.dialing.Lock()
	m.hangUp()
	m.dialing.Unlock()
	if err := os.Remove(filepath.Join(m.cfg.Dir, guestSocket)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// tail keeps the end of what QEMU writes to standard error.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const maxTail = 2 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	if over := len(t.text) - maxTail; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text))
}
