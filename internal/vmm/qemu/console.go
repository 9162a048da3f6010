package qemu

import (
	"fmt"
	"os"
)

// maxConsole bounds the console log in bytes: the guest decides what it prints, and must
// not be able to fill the host's disk.
const maxConsole = 4 << 20

// console is the file that takes what the guest prints, up to maxConsole.
type console struct {
	path string
	file *os.File
	left int
}

func newConsole(path string) (*console, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("console log: %w", err)
	}
	return &console{path: path, file: f, left: maxConsole}, nil
}

// Write implements [io.Writer]. It never fails: the guest must not stop because its log
// cannot be kept.
func (c *console) Write(b []byte) (int, error) {
	keep := b[:min(len(b), c.left)]
	if len(keep) > 0 {
		if _, err := c.file.Write(keep); err != nil {
			c.left = len(keep)
		}
		if c.left -= len(keep); c.left == 0 {
			_, _ = c.file.WriteString("\n[the rest of the console log was discarded]\n")
		}
	}
	return len(b), nil
}

// Close closes the file.
func (c *console) Close() error { return c.file.Close() }
