package ext4

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The hash must be the one that everybody else computes: debugfs is asked. It knows the
// signed variant only, which differs for bytes beyond ASCII; those are proven by e2fsck and
// by the kernel, which find every name of the stress tree.
func TestDirHashIsThatOfDebugfs(t *testing.T) {
	seed := hashSeed{0x01020304, 0x05060708, 0x090a0b0c, 0x0d0e0f10}
	uuid := "04030201-0807-0605-0c0b-0a09100f0e0d" // the words as little-endian bytes
	for _, name := range []string{"a", "file-000001.json", "exactly-thirty-two-bytes-of-name", strings.Repeat("n", 255)} {
		out, err := exec.Command("debugfs", "-R", fmt.Sprintf("dx_hash -h half_md4 -s %s %q", uuid, name)).Output()
		if err != nil {
			t.Fatal(err)
		}
		major, minor := dirHash([]byte(name), seed)
		if want := fmt.Sprintf("0x%x (minor 0x%x)", major, minor); !strings.Contains(string(out), want) {
			t.Errorf("hash of %q: ours is %s, debugfs says %s", name, want, out)
		}
	}
}

func TestACLConversionIsReversible(t *testing.T) {
	raw, _ := hex.DecodeString("02000000" + "01000700ffffffff" + "02000600e8030000" + "04000500ffffffff" + "0800040070110100" + "10000700ffffffff" + "20000400ffffffff")
	disk, err := aclToDisk(raw)
	if err != nil || len(disk) != 4+4*4+2*8 {
		t.Fatalf("%d bytes, %v", len(disk), err)
	}
	back, err := aclFromDisk(disk)
	if err != nil || !bytes.Equal(back, raw) {
		t.Errorf("got %x, %v", back, err)
	}
}

func TestTimesRoundTrip(t *testing.T) {
	for _, sec := range []int64{minSeconds, -1, 0, 1, 1<<31 - 1, 1 << 31, 1 << 32, maxSeconds} {
		s, clamped := stamp(time.Unix(sec, 999999999))
		if got := unpackTime(uint32(s.sec), s.extra()); got != s || clamped || s.sec != sec {
			t.Errorf("%d: got %v from %v", sec, got, s)
		}
	}
	for _, sec := range []int64{minSeconds - 1, maxSeconds + 1} {
		if _, clamped := stamp(time.Unix(sec, 0)); !clamped {
			t.Errorf("%d was not moved", sec)
		}
	}
}

// Geometry of images that are too large to be written in a test.
func TestGeometryHoldsAtTheLimits(t *testing.T) {
	for _, c := range []struct {
		inodes uint32
		data   uint64
	}{
		{11, 0}, {11, 1}, {32768, 100}, {32769, 100}, {10_000_000, 0}, {10_000_000, 10_000_000},
		{1 << 20, maxBlocks - 1<<20}, {100_000_000, 1000}, {11, maxPerGroup - 100},
	} {
		t.Run(fmt.Sprintf("%d inodes, %d blocks of data", c.inodes, c.data), func(t *testing.T) {
			g := newGeometry(c.inodes, sections{dirs: 5}, c.data, chunkBlocks)
			if n := (g.blocks + uint64(g.blocksPerGroup) - 1) / uint64(g.blocksPerGroup); n != uint64(g.groups) {
				t.Errorf("%d groups of %d blocks for %d blocks", g.groups, g.blocksPerGroup, g.blocks)
			}
			if g.inodesPerGroup > maxPerGroup || g.inodesPerGroup%inodesPerBlock != 0 || uint64(g.groups)*uint64(g.inodesPerGroup) < uint64(c.inodes) {
				t.Errorf("%d groups of %d inodes for %d inodes", g.groups, g.inodesPerGroup, c.inodes)
			}
			if g.blocksPerGroup%8 != 0 || g.blocksPerGroup > maxPerGroup {
				t.Errorf("groups of %d blocks", g.blocksPerGroup)
			}
			if g.data%chunkBlocks != 0 && c.data > 0 || g.used(c.data) > g.blocks {
				t.Errorf("data from %d, %d blocks", g.data, g.blocks)
			}
			if end := g.tables + uint64(g.groups)*uint64(g.inodesPerGroup)/inodesPerBlock; end != g.dirs {
				t.Errorf("tables end at %d, directories begin at %d", end, g.dirs)
			}
		})
	}
}

func TestExtentTreesOfAnyDepth(t *testing.T) {
	for _, n := range []int{0, 1, 4, 5, 340, 341, 1360, 1361, 200_000} {
		exts := make([]extent, n)
		for i := range exts {
			exts[i] = extent{uint32(2 * i), 1, uint64(1000 + 3*i)}
		}
		root, blocks := buildTree(exts, 12, 1)
		if len(blocks) != treeBlocks(n)*BlockSize {
			t.Errorf("%d extents: %d bytes of tree, treeBlocks says %d blocks", n, len(blocks), treeBlocks(n))
		}
		im := &Image{r: bytes.NewReader(append(make([]byte, BlockSize), blocks...)), info: Info{Blocks: 1 << 40}, seed: checksumSeed, sums: true}
		f := &file{ino: 12, raw: make([]byte, inodeSize), inode: inode{flags: flagExtents, block: root}}
		got, err := im.extents(f)
		if err != nil || len(got) != n || n > 0 && got[n-1] != exts[n-1] {
			t.Errorf("%d extents: read back %d, %v", n, len(got), err)
		}
	}
}
