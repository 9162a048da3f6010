package source

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

// Metadata that are not read are not passed over in silence.
func TestUnreadMetadata(t *testing.T) {
	const elsewhere = " is ignored: metadata are read from the root of the build context"
	write := func(files ...string) string {
		dir := t.TempDir()
		for _, name := range files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
				t.Fatal(err)
			}
			text := ""
			if strings.HasSuffix(name, "Dockerfile") {
				text = "FROM scratch\n"
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	for name, c := range map[string]struct {
		files      []string
		dockerfile string
		want       []string
	}{
		"one":               {[]string{"Dockerfile", "kiln-template.toml"}, "", nil},
		"the other":         {[]string{"Dockerfile", "zwrm-template.toml"}, "", nil},
		"two":               {[]string{"Dockerfile", "kiln-template.toml", "zwrm-template.toml"}, "", []string{"zwrm-template.toml is ignored, since kiln-template.toml is there, too"}},
		"beside":            {[]string{"docker/Dockerfile", "docker/kiln-template.toml"}, "docker/Dockerfile", []string{"docker/kiln-template.toml" + elsewhere}},
		"root and beside":   {[]string{"d/Dockerfile", "d/zwrm-template.toml", "kiln-template.toml"}, "d/Dockerfile", []string{"d/zwrm-template.toml" + elsewhere}},
		"of another folder": {[]string{"d/Dockerfile", "e/kiln-template.toml"}, "d/Dockerfile", nil},
	} {
		dir := write(c.files...)
		src, err := Open(t.Context(), dir, kiln.BuildOptions{Dockerfile: c.dockerfile})
		if err != nil || !slices.Equal(src.Warnings, c.want) {
			t.Errorf("%s: warnings %q, %v, want %q", name, src.Warnings, err, c.want)
		}
		var archive bytes.Buffer
		in := Input{Dir: dir}
		if c.dockerfile != "" {
			in.Dockerfile = filepath.Join(dir, c.dockerfile)
		}
		if _, err := Pack(t.Context(), in, &archive); err != nil {
			t.Fatal(err)
		}
		recipe := t.TempDir()
		if err := UnpackRecipe(t.Context(), &archive, recipe, Limits{}, c.dockerfile); err != nil {
			t.Fatal(err)
		}
		if src, err := Recipe(recipe, kiln.BuildOptions{Dockerfile: c.dockerfile}); err != nil || !slices.Equal(src.Warnings, c.want) {
			t.Errorf("%s: warnings of the recipe %q, %v, want %q", name, src.Warnings, err, c.want)
		}
	}
	outside := write("Dockerfile", "kiln-template.toml")
	packed, err := Pack(t.Context(), Input{Dir: write("x"), Dockerfile: filepath.Join(outside, "Dockerfile")}, &bytes.Buffer{})
	if err != nil || !slices.Equal(packed.Warnings, []string{filepath.Join(outside, "kiln-template.toml") + elsewhere}) {
		t.Errorf("outside the context: %q, %v", packed.Warnings, err)
	}
}
