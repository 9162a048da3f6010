package rootfs

import (
	"fmt"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
)

func TestShapes(t *testing.T) {
	manyDirs := rootfstest.Tree{}
	for i := range 66000 {
		manyDirs = append(manyDirs, kiln.Entry{Path: fmt.Sprintf("d/%05d", i), Type: kiln.TypeDirectory, Mode: 0o755})
	}
	manyEmpty := rootfstest.Tree{}
	for i := range 140000 { // more inodes than blocks call for: small groups
		manyEmpty = append(manyEmpty, kiln.Entry{Path: fmt.Sprintf("a rather long directory name/%0100d", i), Type: kiln.TypeFIFO})
	}
	for name, src := range map[string]rootfstest.Tree{
		"nothing":              {},
		"root only":            {{Path: ".", Type: kiln.TypeDirectory, Mode: 0o700}},
		"one file":             {rootfstest.Pattern{Seed: 1, Size: 1}.Entry("f")},
		"one chunk":            {rootfstest.Pattern{Seed: 1, Size: ext4.ChunkSize}.Entry("f")},
		"more than 65,000 sub": manyDirs,
		"inodes without data":  manyEmpty,
		"several groups":       {rootfstest.Pattern{Seed: 1, Size: 140 << 20, Extents: []kiln.Extent{{Offset: 0, Length: 140 << 20}}}.Entry("f"), rootfstest.Pattern{Seed: 2, Size: 4}.Entry("g")},
	} {
		t.Run(name, func(t *testing.T) { roundTrip(t, src, ext4.Options{}) })
	}
}
