package rootfs

import (
	"fmt"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
)

func TestShapes(t *testing.T) {
	manyDirs := listSource{}
	for i := range 66000 {
		manyDirs = append(manyDirs, kiln.Entry{Path: fmt.Sprintf("d/%05d", i), Type: kiln.TypeDirectory, Mode: 0o755})
	}
	manyEmpty := listSource{}
	for i := range 140000 { // more inodes than blocks call for: small groups
		manyEmpty = append(manyEmpty, kiln.Entry{Path: fmt.Sprintf("a rather long directory name/%0100d", i), Type: kiln.TypeFIFO})
	}
	for name, src := range map[string]listSource{
		"nothing":              {},
		"root only":            {{Path: ".", Type: kiln.TypeDirectory, Mode: 0o700}},
		"one file":             {pattern{seed: 1, size: 1}.entry("f")},
		"one chunk":            {pattern{seed: 1, size: ext4.ChunkSize}.entry("f")},
		"more than 65,000 sub": manyDirs,
		"inodes without data":  manyEmpty,
		"several groups":       {pattern{seed: 1, size: 140 << 20, extents: []kiln.Extent{{Offset: 0, Length: 140 << 20}}}.entry("f"), pattern{seed: 2, size: 4}.entry("g")},
	} {
		t.Run(name, func(t *testing.T) { roundTrip(t, src, ext4.Options{}) })
	}
}
