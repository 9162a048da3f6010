package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// maxConsole bounds the console log in bytes: the guest decides what it prints, and must
// not be able to fill the host's disk.
const maxConsole = 2 << 20

const cutMark = "[earlier output was dropped]\n"

// console is the file that keeps the end of what the guest prints.
type console struct {
	file *os.File
	size int64
}

func newConsole(path string) (*console, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("console log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("console log: %w", err), f.Close())
	}
	return &console{file: f, size: info.Size()}, nil // a VM that goes on after a pause goes on here
}

// Write implements [io.Writer]. It never fails: the guest must not stop because its log
// cannot be kept.
func (c *console) Write(b []byte) (int, error) {
	if c.size+int64(len(b)) > maxConsole {
		c.cut()
	}
	n, _ := c.file.WriteAt(b[max(0, len(b)-maxConsole/2):], c.size)
	c.size += int64(n)
	return len(b), nil
}

// cut drops the older half of the log, or all of it if that fails.
func (c *console) cut() {
	keep := make([]byte, min(c.size, maxConsole/2))
	n, err := c.file.ReadAt(keep, c.size-int64(len(keep)))
	if err != nil && err != io.EOF {
		n = 0
	}
	c.size = 0
	_ = c.file.Truncate(0)
	written, _ := c.file.WriteAt(append([]byte(cutMark), keep[:n]...), 0)
	c.size = int64(written)
}

func (c *console) path() string { return c.file.Name() }

// Close closes the file.
func (c *console) Close() error { return c.file.Close() }
