package source

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
)

// writeTree makes files from paths: "dir/" is a directory, "a -> b" a symlink, all else
// a file whose content is its path.
func writeTree(t *testing.T, paths ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, p := range paths {
		name, target, link := strings.Cut(p, " -> ")
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch {
		case link:
			err = os.Symlink(target, full)
		case strings.HasSuffix(p, "/"):
			err = os.MkdirAll(full, 0o755)
		default:
			err = os.WriteFile(full, []byte(name), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		if rel != "." {
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func pack(t *testing.T, in Input) ([]byte, Packed) {
	t.Helper()
	var buf bytes.Buffer
	p, err := Pack(t.Context(), in, &buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), p
}

func unpackTo(t *testing.T, archive []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := Unpack(t.Context(), bytes.NewReader(archive), dir, Limits{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestIgnoreAgreesWithBuildKit holds the walk against the filter that BuildKit itself
// applies to a context.
func TestIgnoreAgreesWithBuildKit(t *testing.T) {
	tree := []string{
		"a.txt", "b.md", "README.md", "src/a.go", "src/a_test.go", "src/deep/er/x.go", "src/deep/er/keep.txt",
		"node_modules/m/index.js", "node_modules/.bin/x", "vendor/keep/k.go", "vendor/drop/d.go", ".git/HEAD", ".git/objects/ab/cd",
		"empty/", "link -> src", "src/link -> ../a.txt", "dist/out.js", "dist/css/s.css", "Über/ö.txt", "a b/c d.txt", "[x]/y",
	}
	for _, ignore := range []string{
		"",
		"*.md\n!README.md",
		"**/*.go",
		"src",
		"src/",
		"/src",
		"src\n!src/deep/er/keep.txt",
		"src\n!src/deep",
		"node_modules\n.git\nvendor\n!vendor/keep",
		"**\n!src/**/*.go",
		"*\n!src\nsrc/deep",
		"*\n!dist/css",
		"**/er\n!**/keep.txt",
		"# comment\n\n  dist  \n!dist/out.js",
		"vendor/*\n!vendor/*/k.go",
		"dist/**\n!dist/css/**",
		"link\nempty",
		"!src\n*",
		"\\[x\\]",
		"a?b\nÜber/*",
		"src/*/er",
		"**/deep/**\n!src/deep/er",
	} {
		dir := writeTree(t, tree...)
		writeFile(t, filepath.Join(dir, "Dockerfile"), "FROM scratch")
		writeFile(t, filepath.Join(dir, ".dockerignore"), ignore)
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		rules, err := loadIgnore(root, "Dockerfile")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		err = walk(t.Context(), root, rules, func(e entry) error { got = append(got, e.path); return nil })
		if err != nil {
			t.Fatal(err)
		}
		_ = root.Close()
		want := append(buildkitView(t, dir, ignore), "Dockerfile", ".dockerignore")
		slices.Sort(want)
		want = slices.Compact(want)
		slices.Sort(got)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("ignore %q:\ngot  %q\nwant %q", ignore, got, want)
		}
	}
}

func buildkitView(t *testing.T, dir, ignore string) []string {
	t.Helper()
	var patterns []string
	for line := range strings.Lines(ignore) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		not := strings.HasPrefix(line, "!")
		line = filepath.Clean(strings.TrimPrefix(strings.TrimPrefix(line, "!"), "/"))
		if not {
			line = "!" + line
		}
		patterns = append(patterns, line)
	}
	base, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	filtered, err := fsutil.NewFilterFS(base, &fsutil.FilterOpt{ExcludePatterns: patterns})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	err = filtered.Walk(t.Context(), "", func(p string, d fs.DirEntry, err error) error {
		if err == nil {
			_, ok := mustInfo(t, d).Sys().(*fstypes.Stat)
			if !ok {
				t.Fatalf("%s: no stat", p)
			}
			out = append(out, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mustInfo(t *testing.T, d fs.DirEntry) fs.FileInfo {
	t.Helper()
	info, err := d.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestPackIsDeterministicAndRoundTrips(t *testing.T) {
	dir := writeTree(t, "Dockerfile", "bin/run.sh", "link -> bin/run.sh", "dangling -> /nowhere", "empty/", ".dockerignore", "kiln-template.toml")
	writeFile(t, filepath.Join(dir, "kiln-template.toml"), "description = \"d\"")
	writeFile(t, filepath.Join(dir, ".dockerignore"), "Dockerfile\n.dockerignore\n*.toml\nsecret")
	writeFile(t, filepath.Join(dir, "secret"), "s")
	if err := os.Chmod(filepath.Join(dir, "bin/run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	first, packed := pack(t, Input{Dir: dir})
	if packed.Dockerfile != "Dockerfile" || len(packed.Warnings) != 0 {
		t.Errorf("packed %+v", packed)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "bin/run.sh"), old, old); err != nil {
		t.Fatal(err)
	}
	second, _ := pack(t, Input{Dir: dir})
	if !bytes.Equal(first, second) {
		t.Error("a touched file changes the archive")
	}

	out := unpackTo(t, first)
	want := []string{".dockerignore", "Dockerfile", "bin", "bin/run.sh", "dangling", "empty", "kiln-template.toml", "link"}
	if got := list(t, out); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	a, errA := Open(t.Context(), dir, kiln.BuildOptions{})
	b, errB := Open(t.Context(), out, kiln.BuildOptions{})
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	if a.Digest != b.Digest {
		t.Errorf("digest changes on the way: %s, %s", a.Digest, b.Digest)
	}
	if b.Metadata.Description != "d" {
		t.Errorf("metadata %+v", b.Metadata)
	}
}

func TestPackDockerfileAlone(t *testing.T) {
	dir := writeTree(t, "Dockerfile.dev", "secret")
	archive, packed := pack(t, Input{Dockerfile: filepath.Join(dir, "Dockerfile.dev")})
	if packed.Dockerfile != "Dockerfile.dev" {
		t.Errorf("Dockerfile %q", packed.Dockerfile)
	}
	if got := list(t, unpackTo(t, archive)); !slices.Equal(got, []string{"Dockerfile.dev"}) {
		t.Errorf("got %q", got)
	}
}

func TestPackDockerfileOutsideContext(t *testing.T) {
	dir := writeTree(t, "a", "b")
	writeFile(t, filepath.Join(dir, ".dockerignore"), "b")
	other := writeTree(t, "prod.Dockerfile")
	archive, packed := pack(t, Input{Dir: dir, Dockerfile: filepath.Join(other, "prod.Dockerfile")})
	out := unpackTo(t, archive)
	want := []string{".dockerignore", ".kiln-dockerfile", ".kiln-dockerfile/prod.Dockerfile", ".kiln-dockerfile/prod.Dockerfile.dockerignore", "a"}
	if got := list(t, out); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	src, err := Open(t.Context(), out, kiln.BuildOptions{Dockerfile: packed.Dockerfile})
	if err != nil {
		t.Fatal(err)
	}
	if src.DisplayName != "prod.Dockerfile" {
		t.Errorf("display name %q", src.DisplayName)
	}
}

// TestPackContent packs a Dockerfile that is no file, alone and before the one of a folder.
func TestPackContent(t *testing.T) {
	content := []byte("FROM scratch\n")
	archive, packed := pack(t, Input{Content: content})
	if got := list(t, unpackTo(t, archive)); packed.Dockerfile != "Dockerfile" || !slices.Equal(got, []string{"Dockerfile"}) {
		t.Errorf("alone: %q in %q", packed.Dockerfile, got)
	}
	dir := writeTree(t, "Dockerfile", "a")
	archive, packed = pack(t, Input{Dir: dir, Content: content})
	out := unpackTo(t, archive)
	if got := list(t, out); !slices.Contains(got, "Dockerfile") || !slices.Contains(got, "a") {
		t.Errorf("the folder is %q", got)
	}
	if got, err := os.ReadFile(filepath.Join(out, packed.Dockerfile)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%s: %q, %v", packed.Dockerfile, got, err)
	}
	src, err := Open(t.Context(), out, kiln.BuildOptions{Dockerfile: packed.Dockerfile})
	if err != nil || src.DisplayName != "Dockerfile" {
		t.Errorf("%q, %v", src.DisplayName, err)
	}
}

func TestPackDockerfileOfSubdirectory(t *testing.T) {
	dir := writeTree(t, "docker/prod", "a")
	_, packed := pack(t, Input{Dir: dir, Dockerfile: filepath.Join(dir, "docker", "prod")})
	if packed.Dockerfile != "docker/prod" {
		t.Errorf("Dockerfile %q", packed.Dockerfile)
	}
}

func TestPackLeavesOutSpecialFiles(t *testing.T) {
	dir := writeTree(t, "Dockerfile")
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	archive, packed := pack(t, Input{Dir: dir})
	if len(packed.Warnings) != 1 || !strings.Contains(packed.Warnings[0], "pipe") {
		t.Errorf("warnings %q", packed.Warnings)
	}
	if got := list(t, unpackTo(t, archive)); !slices.Equal(got, []string{"Dockerfile"}) {
		t.Errorf("got %q", got)
	}
}

func TestPackErrors(t *testing.T) {
	empty := t.TempDir()
	file := filepath.Join(writeTree(t, "f"), "f")
	for name, in := range map[string]Input{
		"nothing":                 {},
		"no Dockerfile":           {Dir: empty},
		"no directory":            {Dir: filepath.Join(empty, "x")},
		"directory is a file":     {Dir: file},
		"Dockerfile is directory": {Dir: empty, Dockerfile: empty},
		"alone and missing":       {Dockerfile: filepath.Join(empty, "Dockerfile")},
	} {
		var buf bytes.Buffer
		_, err := Pack(t.Context(), in, &buf)
		if kiln.CodeOf(err) != kiln.CodeInvalid {
			t.Errorf("%s: got %v, want an invalid request", name, err)
		}
		if buf.Len() != 0 {
			t.Errorf("%s: %d bytes written", name, buf.Len())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Pack(ctx, Input{Dir: writeTree(t, "Dockerfile")}, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
