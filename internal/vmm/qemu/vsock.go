package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// vsockPort is where the daemon listens (package pid1).
const vsockPort = 49983

const vhostVsock = "/dev/vhost-vsock"

// A VM's number among the VMs of its host, its context ID, comes from this range: those below
// are special, and half of all is plenty.
const (
	firstCID = 3
	countCID = 1 << 31
	attempts = 64
)

// vsockChannel is a vhost-vsock device: the host's kernel carries connections to the guest's.
type vsockChannel struct {
	device        *os.File
	cid           uint32
	done, running <-chan struct{}
	restored      bool

	settling chan struct{} // holds one token; its holder may use what follows
	settled  bool

	mu       sync.Mutex
	open     map[*vsockConn]struct{}
	captured bool
}

func newVsock(done, running <-chan struct{}, restored bool) (*vsockChannel, error) {
	device, cid, err := reserveCID()
	if err != nil {
		return nil, err
	}
	return &vsockChannel{
		device: device, cid: cid, done: done, running: running, restored: restored,
		settling: make(chan struct{}, 1), open: map[*vsockConn]struct{}{},
	}, nil
}

// reserveCID opens a device and gives it a context ID that no other one of this host has. The
// kernel keeps the ID for whoever has the device open, here and then QEMU: it is free
// again when the last of them has ended, however that ended.
func reserveCID() (*os.File, uint32, error) {
	device, err := os.OpenFile(vhostVsock, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	for range attempts {
		cid := firstCID + rand.Uint32N(countCID)
		if err = setCID(device, cid); err == nil {
			return device, cid, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	_ = device.Close()
	return nil, 0, fmt.Errorf("context ID of a VM: %w", err)
}

// setCID fails with EADDRINUSE if another device has that ID.
func setCID(device *os.File, cid uint32) error {
	const setGuestCID = 0x4008af60 // VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h
	id := uint64(cid)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), setGuestCID, uintptr(unsafe.Pointer(&id))); errno != 0 {
		return errno
	}
	return nil
}

// tryVsock returns why machines cannot be reached over vhost-vsock on this host, or nil.
func tryVsock() error {
	device, _, err := reserveCID()
	if err != nil {
		return err
	}
	_ = device.Close()
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket(AF_VSOCK)", err)
	}
	return unix.Close(fd)
}

func (v *vsockChannel) arguments(fd int) []string {
	return []string{
		// The device exists in its modern form only.
		"-global", "virtio-mmio.force-legacy=false",
		"-device", fmt.Sprintf("vhost-vsock-device,guest-cid=%d,vhostfd=%d", v.cid, fd),
	}
}

func (v *vsockChannel) end() *os.File { return v.device }

func (v *vsockChannel) close() { v.drop() }

// Bounds of one attempt to connect, and of the pause before the next. Both double from one
// attempt to the next: a guest on a busy host that is given up each time never answers.
const (
	shortAttempt, longAttempt = 100 * time.Millisecond, 10 * time.Second
	shortPause, longPause     = 2 * time.Millisecond, 50 * time.Millisecond
)

// dial connects until the guest accepts. A guest that has no listener yet refuses; one that
// has no driver yet says nothing.
func (v *vsockChannel) dial(ctx context.Context) (conn net.Conn, err error) {
	select {
	case <-v.running:
	case <-v.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if v.restored {
		if err := v.settle(ctx); err != nil {
			return nil, err
		}
	}
	err = v.persist(ctx, func(ctx context.Context) error {
		c, err := vsock.DialContext(ctx, v.cid, vsockPort, nil)
		if err == nil {
			conn, err = v.keep(c)
		}
		return err
	})
	return conn, err
}

// settle returns when the guest of a clone knows its new number. It learns it from an event
// (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET of the virtio specification) that QEMU sends once the
// clone runs. What the guest answers before is lost; connections that it has then it
// forgets, without a word to the host. So one is made for nothing but to see it end as it
// should: the daemon closes its side when it finds ours closed.
func (v *vsockChannel) settle(ctx context.Context) error {
	select {
	case v.settling <- struct{}{}:
		defer func() { <-v.settling }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if v.settled {
		return nil
	}
	err := v.persist(ctx, func(ctx context.Context) error {
		conn, err := vsock.DialContext(ctx, v.cid, vsockPort, nil)
		if err != nil {
			return err
		}
		defer conn.Close()
		if deadline, ok := ctx.Deadline(); ok {
			_ = conn.SetDeadline(deadline) // a connection that fails at once says so below
		}
		if err := conn.CloseWrite(); err != nil {
			return err
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			return fmt.Errorf("the daemon does not hang up: %w", err)
		}
		return nil
	})
	v.settled = err == nil
	return err
}

// persist tries again until try succeeds, each time with a bound of its own, or it makes no
// more sense.
func (v *vsockChannel) persist(ctx context.Context, try func(context.Context) error) error {
	bound, pause := shortAttempt, shortPause
	for {
		if v.isCaptured() {
			return errCaptured()
		}
		short, cancel := context.WithTimeout(ctx, bound)
		err := try(short)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-v.done:
			return net.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause): // no event tells of a listener
		}
		bound, pause = min(2*bound, longAttempt), min(2*pause, longPause)
	}
}

func (v *vsockChannel) isCaptured() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.captured
}

// keep notes a connection, which hangUp ends.
func (v *vsockChannel) keep(conn *vsock.Conn) (net.Conn, error) {
	c := &vsockConn{conn, v}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.captured {
		return nil, errors.Join(errCaptured(), conn.Close())
	}
	v.open[c] = struct{}{}
	return c, nil
}

func (v *vsockChannel) hangUp(context.Context) error {
	v.drop()
	return nil
}

func (v *vsockChannel) drop() {
	v.mu.Lock()
	v.captured = true
	open := v.open
	v.open = nil
	v.mu.Unlock()
	for c := range open {
		_ = c.Conn.Close() // ended either way
	}
}

// call is never possible: a connection is as short a way.
func (*vsockChannel) call(context.Context, []byte) ([]byte, error) { return nil, errors.ErrUnsupported }

func (*vsockChannel) attend(context.Context) {}

// unread is nothing: the kernel takes nothing to the guest's memory while QEMU is stopped.
func (*vsockChannel) unread() (int, error) { return 0, nil }

// vsockConn is a connection that its channel knows of.
type vsockConn struct {
	*vsock.Conn
	of *vsockChannel
}

func (c *vsockConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
