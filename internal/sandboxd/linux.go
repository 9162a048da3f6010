package sandboxd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/sandboxd/imagefile"
)

// Linux is the [System] of a real guest. It needs root, /proc, /dev and a writable /run.
type Linux struct {
	// Once [Linux.Prepare] has made them ready, which a clone then need not do.
	random  *os.File
	request []byte // room for one to the random device
	bootID  *imagefile.Mapping
}

// The kernel's requests on its random device (linux/random.h), which package unix lacks in
// part.
const (
	randomDevice   = "/dev/urandom"
	rndAddEntropy  = 0x40085203
	rndReseedCRNG  = 0x5207
	bootIDFile     = "/proc/sys/kernel/random/boot_id"
	bootIDOverride = "/run/kiln/boot_id"

	// roomForEntropy is for as much as the host sends, in bytes; more is copied once more.
	roomForEntropy = 128
)

// AddEntropy implements [System].
func (l *Linux) AddEntropy(b []byte) error {
	device := l.random
	if device == nil {
		var err error
		if device, err = os.OpenFile(randomDevice, os.O_RDWR, 0); err != nil {
			return err
		}
		defer device.Close()
	}
	request := appendRandPoolInfo(l.request[:0], b)
	defer clear(request)
	if err := ioctl(device, rndAddEntropy, unsafe.Pointer(&request[0])); err != nil {
		return fmt.Errorf("RNDADDENTROPY: %w", err)
	}
	if err := ioctl(device, rndReseedCRNG, nil); err != nil {
		return fmt.Errorf("RNDRESEEDCRNG: %w", err)
	}
	return nil
}

// appendRandPoolInfo appends struct rand_pool_info: how many bits to credit, how many bytes
// follow.
func appendRandPoolInfo(request, b []byte) []byte {
	request = binary.NativeEndian.AppendUint32(request, uint32(len(b)*8))
	request = binary.NativeEndian.AppendUint32(request, uint32(len(b)))
	return append(request, b...)
}

// ioctl is for requests that do not wait for anything.
func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// Prepare implements [System].
func (l *Linux) Prepare() (err error) {
	if l.random == nil {
		if l.random, err = os.OpenFile(randomDevice, os.O_RDWR, 0); err != nil {
			return err
		}
	}
	l.request = make([]byte, 0, roomForEntropy)
	if err := l.SetBootID(formatUUID([16]byte{})); err != nil {
		return err
	}
	l.bootID, err = imagefile.Map(bootIDOverride)
	return err
}

// SetClock implements [System].
func (l *Linux) SetClock(t time.Time) error {
	spec := unix.NsecToTimespec(t.UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &spec)
}

// SetHostname implements [System].
func (l *Linux) SetHostname(name string) error { return unix.Sethostname([]byte(name)) }

// SetBootID implements [System]: a file is mounted over the kernel's, once; later calls
// change that file.
func (l *Linux) SetBootID(id string) error {
	if l.bootID.Replace(id + "\n") {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(bootIDOverride), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(bootIDOverride, []byte(id+"\n"), 0o444); err != nil {
		return err
	}
	if shown, err := os.ReadFile(bootIDFile); err == nil && strings.TrimSpace(string(shown)) == id {
		return nil
	}
	return unix.Mount(bootIDOverride, bootIDFile, "", unix.MS_BIND, "")
}

// Reload implements [System].
func (l *Linux) Reload(pidFile, command string) error {
	text, err := os.ReadFile(pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return fmt.Errorf("%s does not hold a process number", pidFile)
	}
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if strings.TrimSpace(string(comm)) != command {
		return nil // the file is stale: the process has ended, and another may have its number
	}
	return unix.Kill(pid, unix.SIGHUP)
}

// Connections implements [System].
func (l *Linux) Connections() ([]string, error) { return openConnections("/proc") }

// Sync implements [System].
func (l *Linux) Sync() { unix.Sync() }

// DropCaches implements [System].
func (l *Linux) DropCaches() error { return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0) }
