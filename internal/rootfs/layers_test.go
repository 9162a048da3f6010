package rootfs

import (
	"bytes"
	"testing"

	"github.com/kilnvm/kiln/internal/ext4"
)

func TestLayersApplyWhiteouts(t *testing.T) {
	dir := func(p string) []byte { return rawHeader(p, '5', 0, "", nil) }
	link := func(p, to string) []byte { return rawHeader(p, '1', 0, to, nil) }
	layers := [][]byte{
		cat(dir("a"), file("a/gone", "1"), file("a/kept", "1"), file("a/replaced", "old"), dir("o"), file("o/old", "1"),
			dir("d"), file("d/below", "1"), file("h1", "linked"), link("h2", "h1"), link("h3", "h1"), dir("back"), file("back/x", "1"), file("f", "1")),
		cat(file("a/.wh.gone", ""), file("a/replaced", "new"), dir("o"), file("o/.wh..wh..opq", ""), file("o/new", "2"),
			file("d", "now a file"), file("h1", "changed"), file(".wh.back", ""), dir("f"), file("f/g", "2")),
		cat(dir("back"), file("back/y", "3")),
	}
	want := cat(dir("a"), file("a/kept", "1"), file("a/replaced", "new"), dir("o"), file("o/new", "2"), file("d", "now a file"),
		file("h1", "changed"), file("h2", "linked"), link("h3", "h2"), dir("back"), file("back/y", "3"), dir("f"), file("f/g", "2"))
	src, err := FromLayers(bytes.NewReader(layers[0]), bytes.NewReader(layers[1]), bytes.NewReader(layers[2]))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	flat, err := FromTar(bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	defer flat.Close()
	wantSame(t, "layers", describe(t, flat), describe(t, src))
	roundTrip(t, src, ext4.Options{})
}
