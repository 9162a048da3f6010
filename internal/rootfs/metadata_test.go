package rootfs

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
)

// What GNU tar packs of a tree with every feature must arrive as it was, through each of
// its sparse formats. The tree that is packed is the kernel's view of an image.
func TestHazard21MetadataSurvivesTar(t *testing.T) {
	tree := smallTree()
	image, _ := writeImage(t, tree, ext4.Options{})
	at := rootfstest.Mount(t, image)
	want := describe(t, tree)
	for name, args := range map[string][]string{
		"sparse 1.0": {"--format=posix", "--sparse", "--sparse-version=1.0"},
		"sparse 0.1": {"--format=posix", "--sparse", "--sparse-version=0.1"},
		"sparse 0.0": {"--format=posix", "--sparse", "--sparse-version=0.0"},
	} {
		t.Run(name, func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "tree.tar")
			args := append(args, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-cf", archive, "-C", at, ".")
			if out, err := exec.Command("tar", args...).CombinedOutput(); err != nil {
				t.Fatalf("tar: %v\n%s", err, out)
			}
			f, err := os.Open(archive)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			src, err := FromTar(f)
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			got := describe(t, src)
			wantSame(t, "archive", asTarKeeps(want), asTarKeeps(got))
			roundTrip(t, src, ext4.Options{})
		})
	}
}

// asTarKeeps returns facts without what tar itself does not keep: it looks for holes on
// its own, and packs every name of a device as a device.
func asTarKeeps(facts []Facts) []Facts {
	out := slices.Clone(facts)
	for i := range out {
		out[i].Data = 0
		if out[i].Type == kiln.TypeCharDevice || out[i].Type == kiln.TypeBlockDevice {
			out[i].Same = nil
		}
	}
	return out
}

// GNU's old sparse format keeps its map in headers of its own, and no attributes.
func TestOldGNUSparseFiles(t *testing.T) {
	tree, archive := t.TempDir(), filepath.Join(t.TempDir(), "tree.tar")
	when := time.Unix(1700000000, 0)
	for name, extents := range map[string]int{"few": 3, "some": 20, "many": 200} {
		path := filepath.Join(tree, name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range extents {
			if _, err := f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 4096), int64(i)*1<<20); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Truncate(int64(extents)<<20), f.Close(), os.Chtimes(path, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(tree, when, when); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "--format=gnu", "--sparse", "-cf", archive, "-C", tree, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	src, err := FromTar(f)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	wantSame(t, "archive", describe(t, openDir(t, tree)), describe(t, src))
	roundTrip(t, src, ext4.Options{})
}
