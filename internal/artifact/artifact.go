package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kilnvm/kiln"
)

// Blobs is a directory of blobs. Its methods are safe for concurrent use, by one process.
type Blobs struct {
	dir   string
	holds holds
}

// Open prepares dir and removes what a crash left half written.
func Open(dir string) (*Blobs, error) {
	b := &Blobs{dir: dir}
	if err := os.RemoveAll(b.tmp()); err != nil {
		return nil, fmt.Errorf("blobs: sweep: %w", err)
	}
	for _, d := range []string{b.tmp(), filepath.Join(dir, "sha256")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("blobs: %w", diskFull(err))
		}
	}
	return b, nil
}

func (b *Blobs) tmp() string { return filepath.Join(b.dir, "tmp") }

// TempDir makes a private directory in the file system of the blobs, so that what is
// written there can be ingested without copying. The caller removes it; Open does if the
// caller dies.
func (b *Blobs) TempDir(prefix string) (string, error) {
	d, err := os.MkdirTemp(b.tmp(), prefix+"-*")
	if err != nil {
		return "", fmt.Errorf("blobs: %w", diskFull(err))
	}
	return d, nil
}

// Path returns where the blob of that digest is, or would be.
func (b *Blobs) Path(d kiln.Digest) string {
	h := d.Hex()
	return filepath.Join(b.dir, "sha256", h[:min(2, len(h))], h)
}

// Has reports whether the blob is there with the right size. Content is not read: see
// Verify.
func (b *Blobs) Has(blob kiln.Blob) bool {
	info, err := os.Lstat(b.Path(blob.Digest))
	return err == nil && info.Mode().IsRegular() && info.Size() == blob.Size
}

// Ingest moves the file at path among the blobs and returns its name. The file is gone
// from path afterwards unless an error is returned. On another file system it is copied.
func (b *Blobs) Ingest(ctx context.Context, path, role string) (kiln.Blob, error) {
	blob, err := hashFile(ctx, path)
	if err != nil {
		return kiln.Blob{}, err
	}
	blob.Role = role
	return blob, b.move(ctx, path, blob)
}

// Adopt is Ingest for a file whose digest its writer has computed on the way. Only the
// size is checked.
func (b *Blobs) Adopt(ctx context.Context, path string, blob kiln.Blob) error {
	if _, err := kiln.ParseDigest(string(blob.Digest)); err != nil {
		return fmt.Errorf("blob: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("blob %s: %w", blob.Digest.Short(), err)
	}
	if info.Size() != blob.Size {
		return fmt.Errorf("blob %s: file has %d bytes, want %d", blob.Digest.Short(), info.Size(), blob.Size)
	}
	return b.move(ctx, path, blob)
}

// ErrTooLarge is returned by IngestReader when there is more to read than allowed.
var ErrTooLarge = errors.New("larger than allowed")

// IngestReader stores what r delivers, at most limit bytes.
func (b *Blobs) IngestReader(ctx context.Context, r io.Reader, role string, limit int64) (kiln.Blob, error) {
	dir, err := b.TempDir("upload")
	if err != nil {
		return kiln.Blob{}, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "blob")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return kiln.Blob{}, fmt.Errorf("blobs: %w", diskFull(err))
	}
	defer f.Close()
	h := newHash()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(r, limit+1))
	if err != nil {
		return kiln.Blob{}, fmt.Errorf("store %s: %w", role, diskFull(err))
	}
	if n > limit {
		return kiln.Blob{}, fmt.Errorf("store %s: %w: more than %d bytes", role, ErrTooLarge, limit)
	}
	if err := ctx.Err(); err != nil {
		return kiln.Blob{}, err
	}
	blob := kiln.Blob{Digest: kiln.DigestFromHash(h), Size: n, Role: role}
	return blob, b.publish(ctx, path, blob)
}

// move publishes the file at path, by way of a copy if it lies on another file system.
func (b *Blobs) move(ctx context.Context, path string, blob kiln.Blob) error {
	var here, there syscall.Stat_t
	if err := syscall.Stat(path, &there); err != nil {
		return fmt.Errorf("blob %s: %w", path, err)
	}
	if err := syscall.Stat(b.tmp(), &here); err != nil {
		return fmt.Errorf("blobs: %w", err)
	}
	if here.Dev == there.Dev {
		return b.publish(ctx, path, blob)
	}
	dir, err := b.TempDir("copy")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	home := filepath.Join(dir, "blob")
	if err := CopySparse(ctx, home, path); err != nil {
		return err
	}
	if err := b.publish(ctx, home, blob); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("blob: %w", err)
	}
	return nil
}

// publish gives the file at path its name, in the order that the package promises.
func (b *Blobs) publish(ctx context.Context, path string, blob kiln.Blob) error {
	b.holds.touch(ctx, blob.Digest)
	fail := func(err error) error {
		return fmt.Errorf("blob %s: %w", blob.Digest.Short(), diskFull(err))
	}
	if err := syncFile(path); err != nil {
		return fail(err)
	}
	dst := b.Path(blob.Digest)
	if err := os.Mkdir(filepath.Dir(dst), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fail(err)
	}
	// Renaming over an equal blob is harmless: whoever has the old file open reads the
	// same bytes, and a damaged one is mended.
	if err := os.Rename(path, dst); err != nil {
		return fail(err)
	}
	for _, d := range []string{filepath.Dir(dst), filepath.Dir(filepath.Dir(dst))} {
		if err := syncDir(d); err != nil {
			return fail(err)
		}
	}
	return nil
}

// syncFile makes the file read-only and durable. It spares Check the first reading: the
// digest has been computed just now.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := writeStamp(path, info.ModTime()); err != nil {
		return err
	}
	if err := f.Chmod(0o400); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Open returns the blob's content. Absence is an error that matches fs.ErrNotExist.
func (b *Blobs) Open(d kiln.Digest) (*os.File, error) {
	f, err := os.Open(b.Path(d))
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.Short(), err)
	}
	return f, nil
}

// Verify reads the whole blob and says whether it still is what its name promises.
func (b *Blobs) Verify(ctx context.Context, blob kiln.Blob) error {
	got, err := hashFile(ctx, b.Path(blob.Digest))
	if err != nil {
		return err
	}
	if got.Size != blob.Size {
		return fmt.Errorf("blob %s is damaged: %d bytes, want %d", blob.Digest.Short(), got.Size, blob.Size)
	}
	if got.Digest != blob.Digest {
		return fmt.Errorf("blob %s is damaged: its content has digest %s", blob.Digest.Short(), got.Digest.Short())
	}
	return nil
}

// Remove deletes a blob. It is no error if it is not there.
func (b *Blobs) Remove(d kiln.Digest) error {
	if err := os.Remove(b.Path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("blob %s: %w", d.Short(), err)
	}
	return nil
}

// diskFull turns the kernel's ways of saying so into an error for the operator.
func diskFull(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return kiln.DiskFull(err)
	}
	return err
}
