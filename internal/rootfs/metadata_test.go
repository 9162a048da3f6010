package rootfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
)

// What GNU tar packs of a tree with every feature must arrive as it was, through each of
// its sparse formats. The tree that is packed is the kernel's view of an image.
func TestHazard21MetadataSurvivesTar(t *testing.T) {
	tree := smallTree()
	image, _ := writeImage(t, tree, ext4.Options{})
	at := mountImage(t, image)
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
