package link

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Port is a virtio-serial port in the guest.
//
// Linux says that no host is connected by letting reads return nothing, and poll reports
// that state as readable for as long as it lasts. Port therefore waits for *changes*
// (the runtime's poller is edge-triggered), and costs nothing while nobody is there.
type Port struct {
	f    *os.File
	raw  syscall.RawConn
	gone bool // the last Read told that the host has gone
}

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

// OpenPort opens the port at path for [Serve].
func OpenPort(path string) (*Port, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Port{f: f, raw: raw}, nil
}

// Read returns [io.EOF] once when the host goes away, and then waits for the next one.
// Only one goroutine may read.
func (p *Port) Read(b []byte) (int, error) {
	n, rerr := 0, error(nil)
	err := p.raw.Read(func(fd uintptr) bool {
		for {
			n, rerr = unix.Read(int(fd), b)
			if !errors.Is(rerr, unix.EINTR) {
				break
			}
		}
		if n == 0 && rerr == nil && p.gone {
			return false
		}
		return !errors.Is(rerr, unix.EAGAIN)
	})
	if err = errors.Join(err, rerr); err != nil {
		return 0, fmt.Errorf("read %s: %w", p.f.Name(), err)
	}
	if p.gone = n == 0; p.gone {
		return 0, io.EOF
	}
	return n, nil
}

// Write waits while no host is connected or the host does not read.
func (p *Port) Write(b []byte) (int, error) { return p.f.Write(b) }

// Close also interrupts Read and Write.
func (p *Port) Close() error { return p.f.Close() }
