package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnvm/kiln"
)

func open(t *testing.T) *Blobs {
	t.Helper()
	b, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// sparseFile makes a file of size bytes with data at the given offsets only.
func sparseFile(t *testing.T, path string, size int64, data map[int64]string) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for at, s := range data {
		if _, err := f.WriteAt([]byte(s), at); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func plainDigest(t *testing.T, path string) kiln.Digest {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return kiln.DigestFromHash(h)
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// sparseShapes are the layouts at which an off-by-one in the walk over extents shows.
func sparseShapes(t *testing.T) map[string]string {
	dir := t.TempDir()
	block := strings.Repeat("d", 4096)
	return map[string]string{
		"empty":            sparseFile(t, filepath.Join(dir, "a"), 0, nil),
		"only hole":        sparseFile(t, filepath.Join(dir, "b"), 8<<20, nil),
		"hole, odd size":   sparseFile(t, filepath.Join(dir, "c"), 5<<20+123, nil),
		"data":             sparseFile(t, filepath.Join(dir, "d"), 10, map[int64]string{0: "0123456789"}),
		"data at start":    sparseFile(t, filepath.Join(dir, "e"), 3<<20, map[int64]string{0: block}),
		"data at end":      sparseFile(t, filepath.Join(dir, "f"), 3<<20, map[int64]string{3<<20 - 4096: block}),
		"end not aligned":  sparseFile(t, filepath.Join(dir, "g"), 2<<20+7, map[int64]string{2 << 20: "1234567"}),
		"several":          sparseFile(t, filepath.Join(dir, "h"), 9<<20, map[int64]string{0: "x", 1 << 20: block, 3<<20 + 4096: block, 8 << 20: strings.Repeat("y", 1<<20)}),
		"longer than read": sparseFile(t, filepath.Join(dir, "i"), 3<<20+5, map[int64]string{0: strings.Repeat("z", 3<<20+5)}),
	}
}

func TestSparseHashEqualsPlainHash(t *testing.T) {
	for name, path := range sparseShapes(t) {
		got, err := hashFile(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if want := plainDigest(t, path); got.Digest != want {
			t.Errorf("%s: got %s, want %s", name, got.Digest, want)
		}
	}
}

func TestCopySparse(t *testing.T) {
	shm, err := os.MkdirTemp("/dev/shm", "artifact-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(shm) })
	for where, dir := range map[string]string{"same file system": t.TempDir(), "another": shm} {
		for name, path := range sparseShapes(t) {
			dst := filepath.Join(dir, "copy")
			if err := CopySparse(t.Context(), dst, path); err != nil {
				t.Fatalf("%s, %s: %v", where, name, err)
			}
			if plainDigest(t, dst) != plainDigest(t, path) {
				t.Errorf("%s, %s: content differs", where, name)
			}
			if a, b := allocated(t, dst), allocated(t, path); a > b+8192 {
				t.Errorf("%s, %s: copy occupies %d bytes, original %d", where, name, a, b)
			}
			if err := CopySparse(t.Context(), dst, path); !errors.Is(err, fs.ErrExist) {
				t.Errorf("%s, %s: overwrote: %v", where, name, err)
			}
			if err := os.Remove(dst); err != nil {
				t.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	src := sparseFile(t, filepath.Join(shm, "src"), 10, map[int64]string{0: "x"})
	dst := filepath.Join(shm, "dst")
	if err := CopySparse(ctx, dst, src); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := os.Lstat(dst); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a cancelled copy was left: %v", err)
	}
}

func TestIngest(t *testing.T) {
	b := open(t)
	content := []byte("hello")
	path := write(t, filepath.Join(t.TempDir(), "f"), content)
	blob, err := b.Ingest(t.Context(), path, kiln.RoleRootfs)
	if err != nil {
		t.Fatal(err)
	}
	if want := (kiln.Blob{Digest: kiln.DigestOf(content), Size: 5, Role: kiln.RoleRootfs}); blob != want {
		t.Errorf("got %+v, want %+v", blob, want)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("original still there: %v", err)
	}
	info, err := os.Stat(b.Path(blob.Digest))
	if err != nil || info.Mode() != 0o400 {
		t.Errorf("blob: %v, %v", info, err)
	}
	again, err := b.Ingest(t.Context(), write(t, filepath.Join(t.TempDir(), "f"), content), kiln.RoleRootfs)
	if err != nil || again != blob {
		t.Errorf("again: %+v, %v", again, err)
	}
	if !b.Has(blob) || b.Has(kiln.Blob{Digest: blob.Digest, Size: 6}) || b.Has(kiln.Blob{Digest: kiln.DigestOf(nil)}) {
		t.Error("Has is wrong")
	}
	if err := b.Remove(blob.Digest); err != nil || b.Has(blob) {
		t.Errorf("remove: %v", err)
	}
	if err := b.Remove(blob.Digest); err != nil {
		t.Errorf("remove again: %v", err)
	}
	if _, err := b.Open(blob.Digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open removed: %v", err)
	}
}

func TestIngestFromAnotherFileSystem(t *testing.T) {
	b := open(t)
	shm, err := os.MkdirTemp("/dev/shm", "artifact-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(shm) })
	path := sparseFile(t, filepath.Join(shm, "f"), 1<<20, map[int64]string{4096: "x"})
	blob, err := b.Ingest(t.Context(), path, kiln.RoleScratch)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Verify(t.Context(), blob); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("original still there: %v", err)
	}
	left, err := os.ReadDir(b.tmp())
	if err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}

func TestAdoptChecksSize(t *testing.T) {
	b := open(t)
	content := []byte("rootfs")
	path := write(t, filepath.Join(t.TempDir(), "f"), content)
	blob := kiln.Blob{Digest: kiln.DigestOf(content), Size: 7}
	if err := b.Adopt(t.Context(), path, blob); err == nil {
		t.Error("a wrong size was accepted")
	}
	blob.Size = 6
	if err := b.Adopt(t.Context(), path, blob); err != nil || !b.Has(blob) {
		t.Errorf("adopt: %v", err)
	}
	if err := b.Adopt(t.Context(), path, kiln.Blob{Digest: "sha256:../../x"}); err == nil {
		t.Error("a malformed digest was accepted")
	}
}

func TestIngestReader(t *testing.T) {
	b := open(t)
	blob, err := b.IngestReader(t.Context(), strings.NewReader("tar"), kiln.RoleSource, 3)
	if err != nil || blob.Digest != kiln.DigestOf([]byte("tar")) || blob.Size != 3 {
		t.Errorf("%+v, %v", blob, err)
	}
	if _, err := b.IngestReader(t.Context(), strings.NewReader("tar!"), kiln.RoleSource, 3); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	left, err := os.ReadDir(b.tmp())
	if err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}

func TestOpenSweepsLeftovers(t *testing.T) {
	dir := t.TempDir()
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := b.IngestReader(t.Context(), strings.NewReader("kept"), kiln.RoleSource, 10)
	if err != nil {
		t.Fatal(err)
	}
	tmp, err := b.TempDir("half")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(tmp, "x"), []byte("half"))
	if b, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(tmp); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("leftover still there: %v", err)
	}
	if err := b.Verify(t.Context(), blob); err != nil {
		t.Error(err)
	}
}

func TestHazard25DiskFullIsAClearError(t *testing.T) {
	mnt := t.TempDir()
	if err := syscall.Mount("tmpfs", mnt, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("this test needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	})
	b, err := Open(filepath.Join(mnt, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.IngestReader(t.Context(), bytes.NewReader(make([]byte, 1<<20)), kiln.RoleSource, 1<<30)
	if kiln.CodeOf(err) != kiln.CodeExhausted {
		t.Errorf("upload: %v", err)
	}
	src := write(t, filepath.Join(t.TempDir(), "f"), bytes.Repeat([]byte("x"), 1<<20))
	_, err = b.Ingest(t.Context(), src, kiln.RoleRootfs)
	if kiln.CodeOf(err) != kiln.CodeExhausted {
		t.Errorf("ingest: %v", err)
	}
	if _, err := os.Lstat(src); err != nil {
		t.Errorf("a failed ingest lost the original: %v", err)
	}
	left, err := os.ReadDir(b.tmp())
	if err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}

// TestHazard09DamagedBlobsAreRefused flips every kind of bit and cuts at every kind of
// place, 10,000 times in all.
func TestHazard09DamagedBlobsAreRefused(t *testing.T) {
	b := open(t)
	rng := rand.New(rand.NewPCG(1, 9))
	content := make([]byte, 3000)
	for i := range content {
		if i%1000 < 500 {
			content[i] = byte(rng.Uint32())
		}
	}
	blob, err := b.Ingest(t.Context(), write(t, filepath.Join(t.TempDir(), "f"), content), kiln.RoleMemory)
	if err != nil {
		t.Fatal(err)
	}
	path := b.Path(blob.Digest)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range 10_000 {
		var what string
		if i%4 == 3 {
			cut := rng.Int64N(blob.Size)
			what = fmt.Sprintf("cut to %d", cut)
			err = f.Truncate(cut)
		} else {
			at, bit := rng.Int64N(blob.Size), byte(1)<<rng.IntN(8)
			what = fmt.Sprintf("bit %#x at %d flipped", bit, at)
			_, err = f.WriteAt([]byte{content[at] ^ bit}, at)
		}
		if err != nil {
			t.Fatal(err)
		}
		if b.Verify(t.Context(), blob) == nil {
			t.Fatalf("%s: not noticed", what)
		}
		if _, err := f.WriteAt(content, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Verify(t.Context(), blob); err != nil {
		t.Errorf("restored: %v", err)
	}
}
