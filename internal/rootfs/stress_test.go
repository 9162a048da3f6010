package rootfs

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
)

// writeImage writes src to a new image in a directory of its own.
func writeImage(t testing.TB, src kiln.EntrySource, opt ext4.Options) (string, ext4.Result) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.ext4")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	res, err := ext4.Write(context.Background(), src, f, opt)
	if err != nil {
		t.Fatal(err)
	}
	return path, res
}

func describe(t testing.TB, src kiln.EntrySource) []Facts {
	t.Helper()
	f, err := Describe(context.Background(), src)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func openDir(t testing.TB, path string) kiln.EntrySource {
	t.Helper()
	d, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	src, err := FromDir(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func wantSame(t testing.TB, what string, want, got []Facts) {
	t.Helper()
	diff := Compare(want, got)
	for i, d := range diff {
		if i == 10 {
			t.Errorf("%s: … %d differences in all", what, len(diff))
			break
		}
		t.Errorf("%s: %.300s", what, d)
	}
}

// roundTrip checks an image of src in every way there is: e2fsck, our own reader, and a
// walk over what the kernel shows of it.
func roundTrip(t testing.TB, src kiln.EntrySource, opt ext4.Options) string {
	t.Helper()
	path, res := writeImage(t, src, opt)
	rootfstest.Fsck(t, path)
	want := describe(t, src)
	im, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	wantSame(t, "reader", want, describe(t, im))
	wantSame(t, "kernel", want, describe(t, openDir(t, rootfstest.Mount(t, path))))
	if im.Size() != res.Size {
		t.Errorf("image has %d bytes, Write said %d", im.Size(), res.Size)
	}
	return path
}

func TestStressTreeRoundTrip(t *testing.T) {
	s := rootfstest.Stress()
	if len(s) < 10000 {
		t.Fatalf("only %d entries", len(s))
	}
	path := roundTrip(t, s, ext4.Options{})
	// Writing the image's own entries again gives the image.
	im, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	again, _ := writeImage(t, im, ext4.Options{})
	a, _ := os.ReadFile(path)
	b, _ := os.ReadFile(again)
	if !bytes.Equal(a, b) {
		t.Error("an image of the image differs from it")
	}
}
