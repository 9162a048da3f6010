package rootfs

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
)

// A walk must never leave its tree, whatever symlinks are in it or take a file's place
// after the walk.
func TestWalkFollowsNoLink(t *testing.T) {
	outside, tree := t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
	must(os.Mkdir(filepath.Join(tree, "dir"), 0o755))
	must(os.WriteFile(filepath.Join(tree, "dir/file"), []byte("harmless"), 0o644))
	must(os.WriteFile(filepath.Join(tree, "file"), []byte("harmless"), 0o644))
	must(os.Symlink(outside, filepath.Join(tree, "link")))
	src := openDir(t, tree)
	var paths []string
	files := map[string]kiln.Entry{}
	for e, err := range src.Entries() {
		must(err)
		paths = append(paths, e.Path)
		files[e.Path] = e
	}
	slices.Sort(paths)
	if want := []string{".", "dir", "dir/file", "file", "link"}; !slices.Equal(paths, want) {
		t.Errorf("walked %q, want %q", paths, want)
	}
	must(os.Rename(filepath.Join(tree, "dir"), filepath.Join(tree, "old")))
	must(os.Symlink(outside, filepath.Join(tree, "dir")))
	must(os.WriteFile(filepath.Join(outside, "file"), []byte("secret"), 0o600))
	must(os.Remove(filepath.Join(tree, "file")))
	must(os.Symlink(filepath.Join(outside, "secret"), filepath.Join(tree, "file")))
	for _, path := range []string{"dir/file", "file"} {
		if r, err := files[path].Open(); err == nil {
			b, _ := io.ReadAll(r)
			r.Close()
			t.Errorf("%s was opened through a symlink: %q", path, b)
		}
	}
}

func TestSocketsAreLeftOutWithANote(t *testing.T) {
	tree := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(tree, "s.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	image, res := writeImage(t, openDir(t, tree), ext4.Options{})
	if want := []string{"s.sock: socket left out"}; !slices.Equal(res.Notes, want) {
		t.Errorf("notes: %q", res.Notes)
	}
	im, err := Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if _, err := im.Lookup("s.sock"); err == nil {
		t.Error("the socket is in the image")
	}
}
