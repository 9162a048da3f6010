package link

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Port is the guest's end of a virtio-serial port of Linux, for [Serve]. While it is urgent
// it is read by a thread that waits in the kernel, not through Go's poller: between an
// interrupt and the first byte there is then as little code as can be. Otherwise it is read
// through the poller, so that a reader who waits does not keep a processor from those who
// work on what it has read. One goroutine at a time may read.
type Port struct {
	name string
	fd   int
	gone bool // the last Read told that the host has gone

	urgent bool     // the reader's thread goes before all others
	polled *os.File // the port again, for Go's poller; nil when reads wait in the kernel. Only the reader uses it

	attention time.Time // when Attend was called; zero when Read may sleep
}

// attentionSpan is how long a reader that attends does not sleep. It is shorter than what
// Linux lets a thread of real-time priority have of each second (sched_rt_runtime_us).
const attentionSpan = 500 * time.Millisecond

// looks is how often an attending reader looks for data before it looks at the time.
const looks = 256

// FindPort returns the device node below dev ("/dev") of the port with the given name.
// The error is [os.ErrNotExist] when the VM has no such port.
func FindPort(dev, name string) (string, error) {
	files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return "", err
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		if strings.TrimSpace(string(b)) == name {
			return filepath.Join(dev, filepath.Base(filepath.Dir(f))), nil
		}
	}
	return "", fmt.Errorf("virtio-serial port %q: %w", name, os.ErrNotExist)
}

// OpenPort opens the port with that device node.
func OpenPort(path string) (*Port, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &Port{name: path, fd: fd}, nil
}

// Read reads what the host has sent. The first Read without a host returns [io.EOF]; the
// next one waits for a host.
func (p *Port) Read(b []byte) (int, error) {
	if p.gone {
		if err := p.awaitHost(); err != nil {
			return 0, &os.PathError{Op: "wait for the host of", Path: p.name, Err: err}
		}
		p.gone = false
	}
	if !p.attention.IsZero() {
		if n := p.look(b); n > 0 {
			return n, nil
		}
	}
	if p.polled != nil {
		n, err := p.polled.Read(b)
		if errors.Is(err, io.EOF) {
			p.gone = true
			return n, errors.Join(err, p.poll(false))
		}
		return n, err
	}
	for {
		switch n, err := unix.Read(p.fd, b); {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if err := unix.SetNonblock(p.fd, false); err != nil {
				return 0, &os.PathError{Op: "block", Path: p.name, Err: err}
			}
		case err != nil:
			return 0, &os.PathError{Op: "read", Path: p.name, Err: err}
		case n == 0:
			p.gone = true
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Attend has the next Read wait for its data without sleeping, for a moment. Only the
// reader may call it.
func (p *Port) Attend() error {
	if err := unix.SetNonblock(p.fd, true); err != nil {
		return &os.PathError{Op: "unblock", Path: p.name, Err: err}
	}
	p.attention = time.Now()
	return nil
}

// look reads until there is something to read or the time is over. Go's scheduler knows
// nothing of these system calls, because they take no time. The descriptor stays
// non-blocking: whoever minds makes it block, which is after the first reply.
func (p *Port) look(b []byte) int {
	begun := p.attention
	p.attention = time.Time{}
	for i := 0; ; i++ {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(p.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if errno == 0 && n > 0 {
			return int(n)
		}
		if i%looks == looks-1 && time.Since(begun) > attentionSpan {
			return 0
		}
	}
}

// awaitHost waits for a host. Linux says that there is none by letting reads return
// nothing, and poll reports that state as readable for as long as it lasts: only changes
// tell.
func (p *Port) awaitHost() error {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(poll) //nolint:errcheck // nothing was written
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(p.fd)}
	if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, p.fd, &event); err != nil {
		return err
	}
	for {
		var events [1]unix.EpollEvent
		_, err := unix.EpollWait(poll, events[:], -1)
		if err == nil && events[0].Events&unix.EPOLLHUP == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Write sends b.
func (p *Port) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		n, err := unix.Write(p.fd, b[written:])
		if errors.Is(err, unix.EAGAIN) {
			err = p.awaitRoom()
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return written, &os.PathError{Op: "write", Path: p.name, Err: err}
		}
		written += max(0, n)
	}
	return written, nil
}

// awaitRoom waits until something can be written. Without a host poll does not wait, but a
// write does.
func (p *Port) awaitRoom() error {
	room := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLOUT}}
	_, err := unix.Poll(room, -1)
	if err == nil && room[0].Revents&unix.POLLOUT == 0 {
		return unix.SetNonblock(p.fd, false)
	}
	return err
}

// poll makes Read wait in Go's poller, or in the kernel.
func (p *Port) poll(on bool) error {
	if on == (p.polled != nil) {
		return nil
	}
	if !on {
		err := p.polled.Close()
		p.polled = nil
		return errors.Join(err, unix.SetNonblock(p.fd, false))
	}
	if err := unix.SetNonblock(p.fd, true); err != nil { // of the open file, so of both descriptors
		return err
	}
	fd, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	p.polled = os.NewFile(uintptr(fd), p.name)
	return nil
}

// schedParam is struct sched_param of sched_setscheduler(2).
type schedParam struct{ priority int32 }

// Urgent makes the calling goroutine, the reader, one that the kernel prefers to all
// others, or an ordinary one again. While it is urgent it has its thread for itself. That
// it cannot be either is only slower.
func (p *Port) Urgent(on bool) {
	_ = p.poll(!on)
	if p.urgent == on {
		return
	}
	p.urgent = on
	policy, param := unix.SCHED_NORMAL, schedParam{}
	if on {
		runtime.LockOSThread()
		policy, param.priority = unix.SCHED_FIFO, 1
	}
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, uintptr(policy), uintptr(unsafe.Pointer(&param)))
	if !on {
		runtime.UnlockOSThread()
	}
}

// Close closes the port. A Read that waits goes on waiting: the port is as old as the
// guest, and ends with it.
func (p *Port) Close() error { return unix.Close(p.fd) }
