package source

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
)

// TestDigestChanges is the source's part of the cache table: what changes the digest and
// what does not.
func TestDigestChanges(t *testing.T) {
	paths := []string{"Dockerfile", "a", "dir/b", "ignored/c", "link -> a"}
	for _, tc := range []struct {
		name    string
		change  func(t *testing.T, dir string)
		changes bool
	}{
		{"nothing", func(*testing.T, string) {}, false},
		{"time", func(t *testing.T, dir string) {
			if err := os.Chtimes(filepath.Join(dir, "a"), time.Time{}, time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"ignored file", func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "ignored/c"), "x") }, false},
		{"new ignored file", func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "ignored/d"), "x") }, false},
		{"content", func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "a"), "A") }, true},
		{"mode", func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, "a"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"rename", func(t *testing.T, dir string) {
			if err := os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "z")); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"new empty directory", func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Join(dir, "new"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"link target", func(t *testing.T, dir string) {
			_ = os.Remove(filepath.Join(dir, "link"))
			if err := os.Symlink("dir/b", filepath.Join(dir, "link")); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"Dockerfile, though ignored", func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "Dockerfile"), "FROM x") }, true},
		{"ignore file", func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, ".dockerignore"), "Dockerfile\n") }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := writeTree(t, paths...)
			writeFile(t, filepath.Join(dir, ".dockerignore"), "Dockerfile\nignored\n")
			before := mustOpen(t, dir).Digest
			tc.change(t, dir)
			if changed := mustOpen(t, dir).Digest != before; changed != tc.changes {
				t.Errorf("digest changed: %v, want %v", changed, tc.changes)
			}
		})
	}
}

func mustOpen(t *testing.T, dir string) kiln.Source {
	t.Helper()
	src, err := Open(t.Context(), dir, kiln.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// TestDigestHasNoCollidingNotation moves bytes between a name and a content.
func TestDigestHasNoCollidingNotation(t *testing.T) {
	seen := map[kiln.Digest]string{}
	for _, files := range []map[string]string{{"a": "bc"}, {"ab": "c"}, {"a": "b", "c": ""}, {"a": "", "bc": ""}, {"abc": ""}} {
		dir := writeTree(t, "Dockerfile")
		for name, content := range files {
			writeFile(t, filepath.Join(dir, name), content)
		}
		d := mustOpen(t, dir).Digest
		if other, dup := seen[d]; dup {
			t.Errorf("%v and %s have one digest", files, other)
		}
		seen[d] = fmt.Sprint(files)
	}
}

func TestOpenErrors(t *testing.T) {
	for _, tc := range []struct {
		name, dockerfile, message string
		tree                      []string
		files                     map[string]string
	}{
		{name: "none", message: "no such Dockerfile"},
		{name: "other name", dockerfile: "prod", message: "no such Dockerfile", tree: []string{"Dockerfile"}},
		{name: "directory", message: "not a regular file", tree: []string{"Dockerfile/"}},
		{name: "upwards", dockerfile: "../x", message: "inside the build context", tree: []string{"Dockerfile"}},
		{name: "absolute", dockerfile: "/etc/passwd", message: "inside the build context"},
		{name: "symlink outside", message: "cannot be opened", tree: []string{"Dockerfile -> /etc/passwd"}},
		{name: "empty", message: "is empty", files: map[string]string{"Dockerfile": ""}},
		{name: "metadata", message: "disk_mb", tree: []string{"Dockerfile"}, files: map[string]string{"kiln-template.toml": "disk_mb = true"}},
		{name: "ignore pattern", message: "syntax error", tree: []string{"Dockerfile"}, files: map[string]string{".dockerignore": "[a"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := writeTree(t, tc.tree...)
			for name, content := range tc.files {
				writeFile(t, filepath.Join(dir, name), content)
			}
			_, err := Open(t.Context(), dir, kiln.BuildOptions{Dockerfile: tc.dockerfile})
			var b *kiln.BuildError
			if !errors.As(err, &b) || !strings.Contains(b.Message, tc.message) {
				t.Errorf("got %v, want a build error with %q", err, tc.message)
			}
		})
	}
}

func TestOptionsWinOverBuildTable(t *testing.T) {
	dir := writeTree(t, "Dockerfile")
	writeFile(t, filepath.Join(dir, "zwrm-template.toml"), "[build]\ntarget = \"t\"\nargs = { A = \"file\", B = \"file\" }")
	src, err := Open(t.Context(), dir, kiln.BuildOptions{Args: map[string]string{"A": "flag"}})
	if err != nil {
		t.Fatal(err)
	}
	o := src.Options
	if o.Target != "t" || o.Args["A"] != "flag" || o.Args["B"] != "file" {
		t.Errorf("options %+v", o)
	}
}

func TestRecipeSeesWhatOpenSees(t *testing.T) {
	dir := writeTree(t, "Dockerfile", "big/a", "big/b")
	writeFile(t, filepath.Join(dir, "kiln-template.toml"), "icon = \"i\"")
	archive, _ := pack(t, Input{Dir: dir})
	out := t.TempDir()
	if err := UnpackRecipe(t.Context(), bytes.NewReader(archive), out, Limits{}, ""); err != nil {
		t.Fatal(err)
	}
	if got := list(t, out); len(got) != 2 {
		t.Errorf("unpacked %q", got)
	}
	src, err := Recipe(out, kiln.BuildOptions{})
	if err != nil || src.Metadata.Icon != "i" {
		t.Errorf("%+v, %v", src, err)
	}
}

// BenchmarkOpen measures the digest of an unchanged small context: 200 files, 800 KiB.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for i := range 200 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), bytes.Repeat([]byte{byte(i)}, 4096), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch"), 0o644); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Open(b.Context(), dir, kiln.BuildOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
