// Package imagefile reads and writes the few files of a template's image that the daemon
// uses itself, /etc/passwd and the like. An image may hold anything under such a name: a FIFO
// whose reader waits for ever, a link in a circle, a folder, a file without end.
package imagefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MaxSize is the size in bytes beyond which a file is no configuration file.
const MaxSize = 4 << 20

// Read returns the content of a regular file of at most [MaxSize]. For anything else that
// stands in its place the error is [fs.ErrNotExist], as if there were nothing.
//
// It speaks to the kernel directly: package os would also ask the poller, in vain, and this
// is on the way of every command.
func Read(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENXIO) {
		return nil, unusable(path, err.Error())
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if info.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, unusable(path, "not a regular file")
	}
	if info.Size > MaxSize {
		return nil, unusable(path, fmt.Sprintf("%d bytes", info.Size))
	}
	content := make([]byte, info.Size)
	for n := 0; n < len(content); {
		more, err := unix.Pread(fd, content[n:], int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		case more == 0:
			return nil, fmt.Errorf("read %s: %w", path, io.ErrUnexpectedEOF)
		default:
			n += more
		}
	}
	return content, nil
}

func unusable(path, why string) error {
	return fmt.Errorf("%s: %s: %w", path, why, fs.ErrNotExist)
}

// Write puts a file with the given content at path and makes its folder if that is missing. A
// regular file is overwritten and keeps its mode; anything else but a folder is replaced,
// so that nothing is written to where a link leads.
func Write(path string, content []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, content, mode)
}
