package rootfs

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
)

func TestDigestAndChunksAreThoseOfTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	res, err := Write(context.Background(), smallTree(), path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, res.ChunkSize)
	for i := 0; ; i++ {
		n, err := io.ReadFull(f, buf)
		if n == 0 {
			if i != len(res.Chunks) {
				t.Errorf("%d chunks, the file has %d", len(res.Chunks), i)
			}
			break
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			t.Fatal(err)
		}
		h.Write(buf[:n])
		if i >= len(res.Chunks) || res.Chunks[i] != sha256.Sum256(buf[:n]) {
			t.Fatalf("chunk %d has another digest", i)
		}
	}
	if d := kiln.DigestFromHash(h); d != res.Blob.Digest {
		t.Errorf("file has the digest %s, Write said %s", d, res.Blob.Digest)
	}
}

// A reader that lies about its length must not end in an image with other content.
func TestContentThatChangesIsAnError(t *testing.T) {
	for name, size := range map[string]int64{"shorter": 5000, "longer": 7000} {
		t.Run(name, func(t *testing.T) {
			e := rootfstest.Pattern{Seed: 1, Size: size}.Entry("f")
			e.Size = 6000
			path := filepath.Join(t.TempDir(), "image")
			if _, err := Write(context.Background(), rootfstest.Tree{e}, path); err == nil {
				t.Error("accepted")
			}
			if _, err := os.Stat(path); err == nil {
				t.Error("the image was left behind")
			}
		})
	}
}

func TestCancelLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	e := rootfstest.Pattern{Seed: 1, Size: 1 << 20}.Entry("f")
	open := e.Open
	e.Open = func() (io.ReadCloser, error) { cancel(); return open() }
	path := filepath.Join(t.TempDir(), "image")
	g := rootfstest.Pattern{Seed: 1, Size: 1 << 20}.Entry("g")
	if _, err := Write(ctx, rootfstest.Tree{e, g}, path); err == nil {
		t.Error("a cancelled write succeeded")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the image was left behind")
	}
}
