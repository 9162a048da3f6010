package artifact

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/kilnvm/kiln"
	"golang.org/x/sys/unix"
)

const chunk = 1 << 20

func newHash() hash.Hash { return sha256.New() }

// hashFile computes the digest of a file. Holes count as the zeros that they read as, but
// are not read.
func hashFile(ctx context.Context, path string) (kiln.Blob, error) {
	f, err := os.Open(path)
	if err != nil {
		return kiln.Blob{}, fmt.Errorf("hash: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return kiln.Blob{}, fmt.Errorf("hash: %w", err)
	}
	if !info.Mode().IsRegular() {
		return kiln.Blob{}, fmt.Errorf("hash %s: not a regular file", path)
	}
	h := newHash()
	n := min(chunk, info.Size())
	buf, zeros := make([]byte, n), make([]byte, n)
	at := int64(0)
	hole := func(until int64) error {
		for at < until {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(until-at, int64(len(zeros)))
			h.Write(zeros[:n])
			at += n
		}
		return nil
	}
	err = extents(f, info.Size(), func(e kiln.Extent) error {
		if err := hole(e.Offset); err != nil {
			return err
		}
		for at < e.Offset+e.Length {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(e.Offset+e.Length-at, int64(len(buf)))
			if _, err := f.ReadAt(buf[:n], at); err != nil {
				return fmt.Errorf("hash %s: %w", path, err)
			}
			h.Write(buf[:n])
			at += n
		}
		return nil
	})
	if err == nil {
		err = hole(info.Size())
	}
	if err != nil {
		return kiln.Blob{}, err
	}
	return kiln.Blob{Digest: kiln.DigestFromHash(h), Size: info.Size()}, nil
}

// extents calls visit for every range of f that holds data, in ascending order. A file
// system that cannot tell (EINVAL) says that all is data.
func extents(f *os.File, size int64, visit func(kiln.Extent) error) error {
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole up to the end
		}
		if errors.Is(err, unix.EINVAL) {
			return visit(kiln.Extent{Offset: at, Length: size - at})
		}
		if err != nil {
			return fmt.Errorf("extents of %s: %w", f.Name(), err)
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("extents of %s: %w", f.Name(), err)
		}
		end = min(end, size)
		if end <= start {
			return nil
		}
		if err := visit(kiln.Extent{Offset: start, Length: end - start}); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// CopySparse makes dst, which must not exist, a copy of the file src, with mode 0600. It
// shares the blocks where the file system can (FICLONE), else it copies the data extents
// only; holes stay holes. It does not sync. On failure dst does not exist.
func CopySparse(ctx context.Context, dst, src string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("copy: %w", diskFull(err))
	}
	defer func() {
		if cerr := out.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("copy: %w", diskFull(cerr))
		}
		if err != nil {
			_ = os.Remove(dst)
		}
	}()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	info, err := in.Stat()
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if err := out.Truncate(info.Size()); err != nil {
		return fmt.Errorf("copy %s: %w", dst, diskFull(err))
	}
	return extents(in, info.Size(), func(e kiln.Extent) error { return copyExtent(ctx, out, in, e) })
}

// copyExtent lets the kernel copy, and falls back to doing it here where it refuses
// (across some file systems).
func copyExtent(ctx context.Context, out, in *os.File, e kiln.Extent) error {
	from, to := e.Offset, e.Offset
	end := e.Offset + e.Length
	for from < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.CopyFileRange(int(in.Fd()), &from, int(out.Fd()), &to, int(min(end-from, 64*chunk)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), err == nil && n == 0:
			return copyBytes(ctx, out, in, from, end)
		case err != nil:
			return fmt.Errorf("copy to %s: %w", out.Name(), diskFull(err))
		}
	}
	return nil
}

func copyBytes(ctx context.Context, out, in *os.File, from, end int64) error {
	buf := make([]byte, min(end-from, chunk))
	for from < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := in.ReadAt(buf[:min(int64(len(buf)), end-from)], from)
		if n == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("copy %s: %w", in.Name(), err)
		}
		if _, err := out.WriteAt(buf[:n], from); err != nil {
			return fmt.Errorf("copy to %s: %w", out.Name(), diskFull(err))
		}
		from += int64(n)
	}
	return nil
}
