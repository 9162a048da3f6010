package pid1

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// uevents tells that the kernel found, changed or lost some device. It subscribes when it
// is made, so that looking for a device after that and waiting for the next event cannot
// miss one.
type uevents struct{ fd int }

func newUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	const kernelGroup = 1
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	return &uevents{fd}, nil
}

func (u *uevents) close() { _ = unix.Close(u.fd) }

// await calls found after every event until it returns true, fails, or ctx ends.
func (u *uevents) await(ctx context.Context, found func() (bool, error)) error {
	buf := make([]byte, 16<<10)
	for {
		if ok, err := found(); ok || err != nil {
			return err
		}
		if err := u.next(ctx, buf); err != nil {
			return err
		}
	}
}

// next waits for one event. What it says does not matter: the caller looks for itself.
func (u *uevents) next(ctx context.Context, buf []byte) error {
	for {
		wait := -1
		if deadline, ok := ctx.Deadline(); ok {
			wait = int(max(time.Until(deadline), 0) / time.Millisecond)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(u.fd), Events: unix.POLLIN}}, wait)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait for a device: %w", err)
		case n == 0:
			return context.DeadlineExceeded
		}
		// ENOBUFS means that events were lost: a reason to look, like an event.
		if _, err := unix.Read(u.fd, buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("read uevent: %w", err)
		}
		return nil
	}
}
