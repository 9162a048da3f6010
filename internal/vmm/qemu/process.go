package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/vmm"
)

const (
	consoleName = "console.log"
	// killDelay is how long something else may keep a dead VMM's output open.
	killDelay = 2 * time.Second
)

// launch starts a VMM, confined. Its monitor need not answer yet.
func (d *Driver) launch(ctx context.Context, cfg vmm.Config, mem memory, incoming bool) (_ *machine, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var opened []func() error
	defer func() {
		if err != nil {
			for _, close := range opened {
				_ = close()
			}
		}
	}()
	console, err := newConsole(filepath.Join(cfg.Dir, consoleName))
	if err != nil {
		return nil, err
	}
	opened = append(opened, console.Close)
	qmp, qmpEnd, err := socketpair("qmp")
	if err != nil {
		return nil, err
	}
	defer qmpEnd.Close()
	opened = append(opened, qmp.Close)
	m := newMachine(d, cfg, mem, console)
	if m.channel, err = d.openChannel(m.done, m.running, incoming); err != nil {
		return nil, err
	}
	defer m.channel.end().Close()
	opened = append(opened, func() error { m.channel.close(); return nil })
	m.cmd = exec.Command(d.binary, d.arguments(cfg, mem, m.channel, incoming)...) //nolint:noctx // it outlives the request; Kill ends it
	m.cmd.Dir = cfg.Dir
	m.cmd.ExtraFiles = []*os.File{qmpEnd, m.channel.end()}
	if cfg.Network != nil {
		tap, err := openTap(*cfg.Network)
		if err != nil {
			return nil, err
		}
		defer tap.Close()
		m.cmd.ExtraFiles = append(m.cmd.ExtraFiles, tap)
	}
	m.cmd.Stdout, m.cmd.Stderr = console, &m.stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	m.cmd.WaitDelay = killDelay
	ended, err := start(m.cmd, cfg.Confine)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", d.binary, err)
	}
	m.qmp = newMonitor(qmp)
	go m.wait(ended)
	return m, nil
}

// start starts cmd, confined, and returns where the result of waiting for it will be.
//
// The kernel sends the parent-death signal when the *thread* that forked ends, and Go's
// threads come and go. So one goroutine keeps its thread for the life of the process; the
// thread would be blocked in waiting anyway.
func start(cmd *exec.Cmd, confine vmm.Confine) (ended <-chan error, err error) {
	started, end := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := vmm.Start(cmd, confine)
		started <- err
		if err == nil {
			end <- cmd.Wait()
		}
	}()
	return end, <-started
}

// wait notes why the process ended and closes what belonged to it.
func (m *machine) wait(ended <-chan error) {
	err := <-ended
	<-m.qmp.ended // all events have been read
	m.mu.Lock()
	if !m.killed && m.err == nil {
		m.err = m.reason(err)
	}
	m.mu.Unlock()
	m.channel.close()
	_ = m.console.Close()
	close(m.done)
}

// reason says why the VMM ended on its own; nil means that the guest shut down.
func (m *machine) reason(err error) error {
	said := m.stderr.String()
	switch shutdown := m.qmp.shutdownReason(); {
	case shutdown == switchedOff:
		return nil
	case shutdown == "guest-reset":
		return errors.New("the guest restarted itself: a kernel panic or a reboot")
	case shutdown != "":
		return fmt.Errorf("QEMU was told to end: %s", shutdown)
	case said != "":
		return fmt.Errorf("QEMU ended: %s", said)
	case err != nil:
		return fmt.Errorf("QEMU ended: %w", err)
	}
	return errors.New("QEMU ended")
}

// Kill implements [vmm.Machine].
func (m *machine) Kill() error {
	m.mu.Lock()
	m.killed = true
	m.mu.Unlock()
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill VMM %d: %w", m.cmd.Process.Pid, err)
	}
	<-m.done
	return nil
}

// abandon kills a machine whose start failed and says why it did.
func (m *machine) abandon(err error) error {
	if errors.Is(err, errMonitor) { // it is gone, or about to be, and knows better
		select {
		case <-m.done:
		case <-time.After(killDelay):
		}
		if why := m.Err(); why != nil {
			err = why
		}
	}
	return errors.Join(err, m.Kill())
}

// socketpair returns a connection and its other end as a file to inherit.
func socketpair(name string) (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), name)
	mine := os.NewFile(uintptr(fds[0]), name)
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
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
