package qemu

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/vmm"
)

// openTap opens a tap device in its namespace. The descriptor goes on belonging to that
// namespace in whichever process holds it, so that QEMU itself stays where it is.
func openTap(n vmm.Network) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	opened := make(chan result)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with this goroutine, in whatever namespace it is
		file, err := attachTap(n)
		opened <- result{file, err}
	}()
	r := <-opened
	if r.err != nil {
		return nil, fmt.Errorf("tap %s in %s: %w", n.Tap, n.Namespace, r.err)
	}
	return r.file, nil
}

// attachTap moves the calling thread into the namespace and opens the tap there.
func attachTap(n vmm.Network) (*os.File, error) {
	ns, err := unix.Open(n.Namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(ns) //nolint:errcheck // nothing was written
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return nil, os.NewSyscallError("setns", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(n.Tap)
	if err == nil {
		// VNET_HDR lets the guest hand over large segments and leave out checksums.
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, req)
	}
	if err == nil && req.Uint16()&unix.IFF_PERSIST == 0 {
		err = os.ErrNotExist // the kernel has just made one, to which no rules apply
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), n.Tap), nil
}
