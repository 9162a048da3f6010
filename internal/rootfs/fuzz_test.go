package rootfs

import (
	"bytes"
	"context"
	"io"
	"os"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
)

// bounded fails the test if f takes long or allocates much: a small input must not be able
// to use up the host.
func bounded(t *testing.T, f func()) {
	t.Helper()
	const most = 96 << 20 // all that is allocated, in use at once or not
	allocated := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(allocated)
	before, start := allocated[0].Value.Uint64(), time.Now()
	f()
	metrics.Read(allocated)
	if n := allocated[0].Value.Uint64() - before; n > most {
		t.Fatalf("%d MiB allocated", n>>20)
	}
	if d := time.Since(start); d > time.Minute {
		t.Fatalf("it took %s", d)
	}
}

// FuzzTar feeds archives through source and writer: whatever they are, there is an image
// that reads back or an error.
func FuzzTar(f *testing.F) {
	for i, h := range hostileCorpus() {
		if i%4 == 0 && len(h.archive) < 16<<10 {
			f.Add(h.archive)
		}
	}
	f.Fuzz(func(t *testing.T, archive []byte) { bounded(t, func() { throughTar(t, archive) }) })
}

func throughTar(t *testing.T, archive []byte) {
	src, err := FromTarLimited(bytes.NewReader(archive), Limits{Entries: 1000, Bytes: 1 << 20})
	if err != nil {
		return
	}
	defer src.Close()
	dst, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if _, err := ext4.Write(context.Background(), src, dst, ext4.Options{}); err != nil {
		return
	}
	im, err := ext4.OpenImage(dst)
	if err != nil {
		t.Fatalf("image cannot be opened: %v", err)
	}
	for e, err := range im.Entries() {
		if err != nil {
			t.Fatalf("image cannot be read: %v", err)
		}
		if e.Path == "" {
			t.Fatal("entry without a path")
		}
	}
}

// FuzzImage feeds damaged images to the reader. The image is made small by hand-picked
// blocks: the fuzzer changes bytes of a real image at places of its choice.
func FuzzImage(f *testing.F) {
	dst, err := os.CreateTemp(f.TempDir(), "")
	if err != nil {
		f.Fatal(err)
	}
	defer dst.Close()
	tree := rootfstest.Tree{
		rootfstest.Pattern{Seed: 1, Size: 9000}.Entry("dir/file"),
		rootfstest.Pattern{Seed: 1, Size: 1 << 20, Extents: []kiln.Extent{{Offset: 0, Length: 10}, {Offset: 40000, Length: 4096}, {Offset: 90000, Length: 1}, {Offset: 140000, Length: 1}, {Offset: 240000, Length: 1}}}.Entry("sparse"),
		{Path: "link", Type: kiln.TypeSymlink, Linkname: "dir/file"},
		{Path: "attrs", Type: kiln.TypeDirectory, Xattrs: map[string]string{"user.a": string(make([]byte, 500)), "system.posix_acl_access": rootfstest.ACL(1, 2)}},
		{Path: "hard", Type: kiln.TypeHardlink, Linkname: "dir/file"},
	}
	if _, err := ext4.Write(context.Background(), tree, dst, ext4.Options{}); err != nil {
		f.Fatal(err)
	}
	image, err := os.ReadFile(dst.Name())
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add([]byte{0, 4, 0x38, 1})
	for at := 0; at < 60<<10; at += 977 {
		f.Add([]byte{byte(at >> 16), byte(at >> 8), byte(at), 0xff, byte(at >> 16), byte(at >> 8), byte(at + 3), 0x01})
	}
	f.Fuzz(func(t *testing.T, changes []byte) { bounded(t, func() { throughReader(t, image, changes) }) })
}

// throughReader reads all of an image with changes, each a place in three bytes and a value.
func throughReader(t *testing.T, image, changes []byte) {
	b := bytes.Clone(image)
	for ; len(changes) >= 4; changes = changes[4:] {
		b[(int(changes[0])<<16|int(changes[1])<<8|int(changes[2]))%len(b)] = changes[3]
	}
	// Without checksums, so that changes get further than the first comparison.
	b[1024+0x65] &^= 0x04
	im, err := ext4.OpenImage(bytes.NewReader(b))
	if err != nil {
		return
	}
	n := 0
	for e, err := range im.Entries() {
		if err != nil {
			return
		}
		if n++; n > 100000 {
			t.Fatal("no end")
		}
		if e.Type == kiln.TypeRegular {
			r, err := e.Open()
			if err != nil {
				return
			}
			io.CopyN(io.Discard, r, 1<<20)
			r.Close()
		}
	}
}
