package rootfs

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
)

// smallTree has a bit of everything, so that a hundred images of it are quick.
func smallTree() rootfstest.Tree {
	var s rootfstest.Tree
	kinds := map[string]int{}
	for _, e := range rootfstest.Stress() {
		top := e.Path
		if i := slices.Index([]byte(e.Path), '/'); i > 0 {
			top = e.Path[:i]
		}
		if e.Path == "sparse/huge" || kinds[top] > 120 && e.Type == kiln.TypeRegular && e.Path != "sizes/4097" {
			continue
		}
		kinds[top]++
		s = append(s, e)
	}
	return s
}

// goldenSmallTree is the digest of the image of smallTree in format version 1. A change
// of it is a change of the format: raise FormatVersion.
const goldenSmallTree = kiln.Digest("sha256:738e4223af54e5535908b50003926a2065781030d54b700ba64afa03c2711522")

func TestSameEntriesGiveSameBytes(t *testing.T) {
	tree := smallTree()
	rnd := rand.New(rand.NewPCG(3, 4))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	path := filepath.Join(t.TempDir(), "image")
	for i := range 100 {
		runtime.GOMAXPROCS(1 + i%4)
		rnd.Shuffle(len(tree), func(a, b int) { tree[a], tree[b] = tree[b], tree[a] })
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		opt := ext4.Options{TempDir: t.TempDir()}
		if i%3 == 0 {
			opt.Memory = 1 << 16 // everything spills
		}
		res, err := ext4.Write(context.Background(), tree, f, opt)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if res.Digest != goldenSmallTree {
			t.Fatalf("image %d has the digest %s, want %s", i, res.Digest, goldenSmallTree)
		}
	}
	im, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	wantSame(t, "last image", describe(t, tree), describe(t, im))
}

// Which of several names a walk meets first must not matter.
func TestHardlinkOrderDoesNotMatter(t *testing.T) {
	file := rootfstest.Pattern{Seed: 1, Size: 5000}.Entry("m")
	link := func(p, to string) kiln.Entry {
		return kiln.Entry{Path: p, Type: kiln.TypeHardlink, Linkname: to}
	}
	at := func(p string) kiln.Entry { e := file; e.Path = p; return e }
	var digests []kiln.Digest
	for _, s := range []rootfstest.Tree{
		{at("m"), link("a", "m"), link("z", "m")},
		{at("a"), link("m", "a"), link("z", "m")},
		{link("m", "z"), link("a", "z"), at("z")},
	} {
		_, res := writeImage(t, s, ext4.Options{})
		digests = append(digests, res.Digest)
	}
	if digests[0] != digests[1] || digests[1] != digests[2] {
		t.Errorf("digests differ: %v", digests)
	}
}

func TestDuplicatePathsLastWins(t *testing.T) {
	first, last := rootfstest.Pattern{Seed: 1, Size: 10}.Entry("f"), rootfstest.Pattern{Seed: 2, Size: 20}.Entry("f")
	a, resA := writeImage(t, rootfstest.Tree{first, last}, ext4.Options{})
	_, resB := writeImage(t, rootfstest.Tree{last}, ext4.Options{})
	if resA.Digest != resB.Digest {
		t.Errorf("the entry that came first left a trace")
	}
	rootfstest.Fsck(t, a)
}
