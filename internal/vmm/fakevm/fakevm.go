// Package fakevm is a VM driver for tests of what is built upon drivers. A fake machine
// is a real child process that holds its scratch disk open, as a VMM does, so that
// killing, watching and finding leftovers are tested for real; the guest daemon runs in
// the test's own process and is reached through pipes in memory. Only tests import it.
package fakevm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/kilnvm/kiln/internal/vmm"
)

// Driver starts fake machines.
type Driver struct {
	// Serve is the guest daemon. It serves l until ctx ends.
	Serve func(ctx context.Context, cfg vmm.Config, l net.Listener) error
	// Version is part of Info; changing it simulates an upgrade.
	Version string
	// Step, if set, is called before each step ("boot", "restore", "pause", "resume",
	// "capture", "dial"); an error it returns is the step's.
	Step func(ctx context.Context, step string) error
}

// Info implements vmm.Driver.
func (d *Driver) Info() vmm.Info {
	return vmm.Info{Name: "fake", Version: d.Version, CPU: "fake-cpu"}
}

const memoryContent = "memory of a fake machine\n"

// Boot implements vmm.Driver.
func (d *Driver) Boot(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
	if err := d.check(ctx, "boot"); err != nil {
		return nil, err
	}
	if cfg.Memory != "" {
		if err := os.WriteFile(cfg.Memory, []byte(memoryContent), 0o600); err != nil {
			return nil, err
		}
	}
	return d.start(cfg, true)
}

// Restore implements vmm.Driver.
func (d *Driver) Restore(ctx context.Context, cfg vmm.Config, mem vmm.State) (vmm.Machine, error) {
	if err := d.check(ctx, "restore"); err != nil {
		return nil, err
	}
	for _, path := range []string{mem.Memory, mem.State} {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if string(text) != memoryContent {
			return nil, fmt.Errorf("fake machine was given a damaged %s", path)
		}
	}
	return d.start(cfg, false)
}

func (d *Driver) check(ctx context.Context, step string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.Step == nil {
		return nil
	}
	return d.Step(ctx, step)
}

func (d *Driver) start(cfg vmm.Config, running bool) (vmm.Machine, error) {
	if _, err := os.Stat(cfg.Rootfs); err != nil {
		return nil, err
	}
	disk, err := os.OpenFile(cfg.Scratch, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	cmd := exec.Command("sleep", "3600")
	cmd.ExtraFiles = []*os.File{disk}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := os.WriteFile(filepath.Join(cfg.Dir, "console"), []byte("fake console\n"), 0o600); err != nil {
		return nil, err
	}
	if err := vmm.Start(cmd, cfg.Confine); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &machine{driver: d, cfg: cfg, cmd: cmd, cancel: cancel, done: make(chan struct{}),
		running: make(chan struct{}), listener: &pipeListener{conns: make(chan net.Conn), done: ctx.Done()}}
	if running {
		close(m.running)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = d.Serve(ctx, cfg, m.listener) })
	go func() {
		err := cmd.Wait()
		m.listener.cut() // a dead machine says nothing more, not even that its commands ended
		cancel()
		serving.Wait()
		m.mu.Lock()
		if !m.killed && !switchedOff(cmd) {
			m.err = fmt.Errorf("fake VMM: %w", errors.Join(err, errEnded))
		}
		m.mu.Unlock()
		close(m.done)
	}()
	return m, nil
}

var errEnded = errors.New("process ended")

// switchedOff says whether the machine's process was ended by SIGTERM, which stands for a
// guest that switches itself off.
func switchedOff(cmd *exec.Cmd) bool {
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signal() == syscall.SIGTERM
}

type machine struct {
	driver   *Driver
	cfg      vmm.Config
	cmd      *exec.Cmd
	cancel   context.CancelFunc
	done     chan struct{}
	listener *pipeListener

	mu      sync.Mutex
	running chan struct{} // closed while the machine is not paused
	killed  bool
	err     error
}

func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	if err := m.driver.check(ctx, "dial"); err != nil {
		return nil, err
	}
	m.mu.Lock()
	running := m.running
	m.mu.Unlock()
	select {
	case <-running:
	case <-m.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return m.listener.dial(ctx)
}

func (m *machine) Pause(ctx context.Context) error {
	if err := m.driver.check(ctx, "pause"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.paused() {
		m.running = make(chan struct{})
	}
	return nil
}

func (m *machine) Resume(ctx context.Context) error {
	if err := m.driver.check(ctx, "resume"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused() {
		close(m.running)
	}
	return nil
}

func (m *machine) paused() bool {
	select {
	case <-m.running:
		return false
	default:
		return true
	}
}

func (m *machine) Capture(ctx context.Context, s vmm.State) error {
	if err := m.driver.check(ctx, "capture"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.paused() {
		return errors.New("fake machine is not paused")
	}
	return errors.Join(os.WriteFile(s.Memory, []byte(memoryContent), 0o600), os.WriteFile(s.State, []byte(memoryContent), 0o600))
}

func (m *machine) PID() int              { return m.cmd.Process.Pid }
func (m *machine) Done() <-chan struct{} { return m.done }
func (m *machine) ConsoleLog() string    { return filepath.Join(m.cfg.Dir, "console") }

func (m *machine) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *machine) Kill() error {
	m.mu.Lock()
	m.killed = true
	m.mu.Unlock()
	_ = m.cmd.Process.Kill() // it may have ended already
	<-m.done
	return nil
}

// pipeListener hands the daemon one end of a pipe for every dial.
type pipeListener struct {
	conns chan net.Conn
	done  <-chan struct{}

	mu   sync.Mutex
	open []net.Conn // the guest's ends
}

// cut ends all connections.
func (l *pipeListener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.open {
		_ = c.Close() // always nil for a pipe
	}
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	host, guest := net.Pipe()
	select {
	case l.conns <- guest:
		l.mu.Lock()
		l.open = append(l.open, guest)
		l.mu.Unlock()
		return host, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { return nil }
func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "fake machine" }
