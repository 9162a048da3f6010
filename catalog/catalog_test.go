package catalog_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/catalog"
	"github.com/kilnvm/kiln/internal/source"
)

// bootstrapped are the base images that can be made where no registry answers.
func bootstrapped() []string { return []string{"debian:bookworm-slim", "debian:trixie-slim"} }

func TestEveryTemplateIsWhole(t *testing.T) {
	for _, tmpl := range catalog.Templates() {
		t.Run(tmpl.Name, func(t *testing.T) {
			src := open(t, tmpl.Name)
			m := src.Metadata
			if len(src.Warnings) > 0 {
				t.Errorf("warnings: %q", src.Warnings)
			}
			if m.Name != tmpl.Name {
				t.Errorf("the metadata says it is %q", m.Name)
			}
			for what, value := range map[string]string{
				"description": m.Description, "icon": m.Icon, "tags": strings.Join(m.Tags, " "), "default_size": m.DefaultSize,
				"min_size": m.MinSize, "smoke": m.Smoke,
			} {
				if value == "" {
					t.Errorf("no %s", what)
				}
			}
			if n := len(m.Build.Base); n < 2 || !slices.Contains(bootstrapped(), m.Build.Base[n-1]) {
				t.Errorf("base images %q: the last must be one that needs no registry", m.Build.Base)
			}
			dockerfile, err := os.ReadFile(filepath.Join(src.Dir, "Dockerfile"))
			if err != nil || !bytes.Contains(dockerfile, []byte("ARG BASE=")) || !bytes.Contains(dockerfile, []byte("FROM ${BASE}")) {
				t.Errorf("the Dockerfile does not start from the chosen base image (%v)", err)
			}
		})
	}
}

func open(t *testing.T, name string) kiln.Source {
	t.Helper()
	archive, err := catalog.Context(name)
	if err != nil {
		t.Fatal(err)
	}
	again, err := catalog.Context(name)
	if err != nil || !bytes.Equal(archive, again) {
		t.Errorf("the archive is another one each time (%v)", err)
	}
	dir := filepath.Join(t.TempDir(), "context")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := source.Unpack(t.Context(), bytes.NewReader(archive), dir, source.Limits{}); err != nil {
		t.Fatal(err)
	}
	src, err := source.Open(t.Context(), dir, kiln.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// TestEveryFileIsEmbedded finds files of a kind that the program does not embed.
func TestEveryFileIsEmbedded(t *testing.T) {
	for _, name := range catalog.Names() {
		src := open(t, name)
		err := filepath.WalkDir(name, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() && d.Name() == "__pycache__" {
				return filepath.SkipDir
			}
			rel, err := filepath.Rel(name, path)
			if err != nil {
				return err
			}
			if _, err := os.Stat(filepath.Join(src.Dir, rel)); err != nil {
				t.Errorf("%s is not part of the template", path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestNames(t *testing.T) {
	folders, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	names := catalog.Names()
	for _, f := range folders {
		if f.IsDir() && !slices.Contains(names, f.Name()) {
			t.Errorf("folder %s is in no catalogue", f.Name())
		}
	}
	seen := map[string]bool{}
	for _, tmpl := range catalog.Templates() {
		for _, name := range append([]string{tmpl.Name}, tmpl.Aliases...) {
			if err := kiln.CheckTemplateName(name); err != nil || seen[name] {
				t.Errorf("name %q: %v, seen before: %t", name, err, seen[name])
			}
			seen[name] = true
		}
	}
	if _, err := catalog.Context("nothing"); err == nil {
		t.Error("a template that does not exist has a context")
	}
}
