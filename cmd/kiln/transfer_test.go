package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnvm/kiln/internal/source"
)

// A folder that goes into an archive and comes out of it is the same folder.
func TestFoldersTravelWhole(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for _, dir := range []string{"empty", "sub/deep"} {
		if err := os.MkdirAll(filepath.Join(from, dir), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]fs.FileMode{"run": 0o755, "sub/secret": 0o600, "sub/deep/file": 0o644} {
		if err := os.WriteFile(filepath.Join(from, name), []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("sub/deep/file", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(from, "absolute")); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := packDir(t.Context(), from, &archive); err != nil {
		t.Fatal(err)
	}
	if err := source.Unpack(t.Context(), &archive, to, source.Limits{}); err != nil {
		t.Fatal(err)
	}
	want, got := describe(t, from), describe(t, to)
	for name, what := range want {
		if got[name] != what {
			t.Errorf("%s: %q, want %q", name, got[name], what)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
}

func describe(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := info.Mode().String()
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " -> " + target
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += " " + string(content)
		}
		name, err := filepath.Rel(dir, path)
		out[name] = text
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestNamesFromTheGuestStayNames(t *testing.T) {
	for remote, want := range map[string]string{"/srv/data": "data", "/": "root", "/..": "root", "": "root", "/a/..": "root"} {
		if got := localName(remote); got != want {
			t.Errorf("%q: %q, want %q", remote, got, want)
		}
	}
}

func TestDownloadsAppearWhole(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	broken := errReader{}
	if err := saveFile(name, 0o640, broken); err == nil {
		t.Error("a broken download succeeded")
	}
	left, err := os.ReadDir(filepath.Dir(name))
	if err != nil || len(left) > 0 {
		t.Errorf("a broken download left %v, %v", left, err)
	}
	if err := saveFile(name, 0o640, bytes.NewReader([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }
