package image_test

import (
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/image/imagetest"
)

func TestFirstReachableBase(t *testing.T) {
	const nowhere, other = "registry.invalid/none:1", "registry.invalid/other:1"
	b := imagetest.Builder(t)
	src := imagetest.Source(t, map[string]string{"Dockerfile": `ARG BASE
FROM ${BASE}
ARG BASE
RUN mkdir /out && echo "$BASE" > /out/base
`})
	src.Options.Base = []string{nowhere, imagetest.BaseImage, other}
	progress := &logged{}
	bases, err := b.Resolve(t.Context(), src, progress)
	if err != nil {
		t.Fatal(err)
	}
	if len(bases) != 1 || bases[0].Name != imagetest.BaseImage || !bases[0].Chosen {
		t.Fatalf("bases %+v", bases)
	}
	if !strings.Contains(progress.String(), "trying the next base image") {
		t.Errorf("nobody is told why: %s", progress)
	}
	if _, files := build(t, b, src, progress); files["out/base"] != imagetest.BaseImage+"\n" {
		t.Errorf("the build saw BASE=%q", files["out/base"])
	}

	key := b.Key(src, bases)
	bases[0].Chosen = false
	if b.Key(src, bases) == key {
		t.Error("the choice is not part of the key")
	}

	t.Run("the kept one is asked for first", func(t *testing.T) {
		again := src
		again.Options.KeptBase = imagetest.BaseImage
		progress := &logged{}
		if bases, err := b.Resolve(t.Context(), again, progress); err != nil || bases[0].Name != imagetest.BaseImage {
			t.Fatalf("%+v, %v", bases, err)
		}
		if progress.String() != "" {
			t.Errorf("others were tried: %s", progress)
		}
	})
	t.Run("an argument of the user's wins", func(t *testing.T) {
		own := src
		own.Options.Base = []string{nowhere}
		own.Options.Args = map[string]string{kiln.BaseArg: imagetest.BaseImage}
		if bases, err := b.Resolve(t.Context(), own, progress); err != nil || bases[0].Chosen {
			t.Fatalf("%+v, %v", bases, err)
		}
	})
	t.Run("none can be had", func(t *testing.T) {
		none := src
		none.Options.Base = []string{nowhere, other}
		_, err := b.Resolve(t.Context(), none, progress)
		if kiln.CodeOf(err) != kiln.CodeUnavailable || !strings.Contains(err.Error(), nowhere) || !strings.Contains(err.Error(), other) {
			t.Errorf("%v", err)
		}
	})
}
