package bootbundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
)

// cache is a folder of files that never change once they have their name.
type cache struct{ dir string }

// kernelFile is an uncompressed kernel in the cache.
type kernelFile struct {
	path    string
	version string
	digest  kiln.Digest
}

// kernel returns the uncompressed form of the kernel at path. A file with the digest of the
// compressed one in its name remembers the digest of the other.
func (c cache) kernel(path string) (kernelFile, error) {
	image, err := os.ReadFile(path)
	if err != nil {
		return kernelFile{}, kiln.Errorf(kiln.CodeInvalid, "kernel: %w", err).
			WithHint("`kernel` under [vm] in the configuration names it; without it the distribution's cloud kernel is downloaded")
	}
	index := filepath.Join(c.dir, "unpacked-"+kiln.DigestOf(image).Hex())
	if k, ok := c.knownKernel(index); ok {
		return k, nil
	}
	vmlinux, err := uncompressKernel(image)
	if err != nil {
		return kernelFile{}, kiln.Errorf(kiln.CodeInvalid, "kernel %s: %w", path, err).
			WithHint("Kiln boots an ELF vmlinux or a bzImage for x86_64")
	}
	k := c.describe(vmlinux)
	if err := c.write(k.path, vmlinux); err != nil {
		return kernelFile{}, err
	}
	return k, c.write(index, []byte(k.digest))
}

// knownKernel returns the kernel that index names if it is there and undamaged.
func (c cache) knownKernel(index string) (kernelFile, bool) {
	name, err := os.ReadFile(index)
	if err != nil {
		return kernelFile{}, false
	}
	vmlinux, err := os.ReadFile(filepath.Join(c.dir, "vmlinux-"+kiln.Digest(name).Hex()))
	if err != nil {
		return kernelFile{}, false
	}
	k := c.describe(vmlinux)
	return k, string(k.digest) == string(name)
}

func (c cache) describe(vmlinux []byte) kernelFile {
	digest := kiln.DigestOf(vmlinux)
	return kernelFile{
		path:    filepath.Join(c.dir, "vmlinux-"+digest.Hex()),
		version: kernelVersion(vmlinux),
		digest:  digest,
	}
}

// write makes a file with the given content unless path, whose name stands for that
// content, has it. Whoever sees path sees all of it, also after a crash.
func (c cache) write(path string, content []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	f, err := os.CreateTemp(c.dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // no such file once it has been renamed
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return c.sync()
}

// sync makes the names in the cache durable.
func (c cache) sync() error {
	d, err := os.Open(c.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// lock keeps other callers, in this process and in others, from filling the cache with what is slow
// to get. It does not protect what is in the cache, which needs no protection.
func (c cache) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	retry := time.NewTicker(100 * time.Millisecond) // a lock that is released raises no event
	defer retry.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), context.Cause(ctx))
		case <-retry.C:
		}
	}
}
