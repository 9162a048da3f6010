package source

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"

	"github.com/kilnvm/kiln"
)

// digestFormat is part of every source digest: raise it when the digest covers more,
// less, or the same in another notation.
const digestFormat = 1

// tarMode are the bits of a mode that survive a build context.
const tarMode = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky

// digest covers path, kind, mode and content of every member of the context: what a
// Dockerfile can see, and no times, owners or names of machines.
func digest(ctx context.Context, root *os.Root, rules *ignoreRules) (kiln.Digest, error) {
	h := sha256.New()
	fmt.Fprintf(h, "kiln source %d\n", digestFormat)
	buf := make([]byte, 256<<10)
	err := walk(ctx, root, rules, func(e entry) error {
		mode := e.info.Mode()
		switch mode.Type() {
		case fs.ModeDir, fs.ModeSymlink:
		case 0:
		default:
			return nil // sockets, pipes and devices never travel in a context
		}
		writeString(h, e.path)
		writeUint(h, uint64(mode.Type()|mode&tarMode))
		if mode.Type() != 0 {
			writeString(h, e.target)
			return nil
		}
		return hashFile(ctx, h, root, e, buf)
	})
	if err != nil {
		return "", err
	}
	return kiln.DigestFromHash(h), nil
}

// hashFile writes the size and the content of a regular file.
func hashFile(ctx context.Context, h hash.Hash, root *os.Root, e entry, buf []byte) error {
	writeUint(h, uint64(e.info.Size()))
	if e.info.Size() == 0 {
		return nil
	}
	f, err := root.Open(e.path)
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	defer f.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, contextReader{ctx, f}, buf)
	if err != nil {
		return fmt.Errorf("build context: %s: %w", e.path, err)
	}
	if n != e.info.Size() {
		return fmt.Errorf("build context: %s changed while it was read", e.path)
	}
	return nil
}

func writeUint(h hash.Hash, n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	h.Write(b[:])
}

func writeString(h hash.Hash, s string) {
	writeUint(h, uint64(len(s)))
	io.WriteString(h, s)
}

// contextReader stops reading when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
