package main

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/sandboxd/sandboxdtest"
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
	pack := func(w io.Writer, exists string) {
		t.Helper()
		err := packDir(t.Context(), from, w, 1000, 1000, func(name string) (bool, error) { return name == exists, nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	pack(&archive, "")
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

	// A folder that exists there already has no entry, what is in it has.
	archive.Reset()
	pack(&archive, "sub")
	names := map[string]bool{}
	for r := tar.NewReader(&archive); ; {
		hdr, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names[hdr.Name] = true
	}
	if names["sub/"] || !names["sub/deep/"] || !names["sub/secret"] {
		t.Errorf("entries beside an existing folder: %v", names)
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

// hostileSandbox is a sandbox whose tar is a script: it sends the archive in a file of that
// name, whatever it is asked for.
func hostileSandbox(t *testing.T, archive []byte) *guest.Client {
	t.Helper()
	d := sandboxdtest.Start(t)
	c := guest.New(d.Dial)
	t.Cleanup(c.Close)
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	sent, bin := filepath.Join(d.Root, "archive"), filepath.Join(d.Root, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{sent: archive, filepath.Join(bin, "tar"): []byte("#!/bin/sh\nexec cat " + sent + "\n")} {
		if err := os.WriteFile(name, text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Configure(t.Context(), guest.Setup{Env: []string{"PATH=" + bin + ":" + os.Getenv("PATH")}}); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFoldersNeedTar(t *testing.T) {
	d := sandboxdtest.Start(t)
	g := guest.New(d.Dial)
	t.Cleanup(g.Close)
	if err := g.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(d.Root, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "id"), []byte("#!/bin/sh\necho 'uid=0(root) gid=0(root) groups=0(root)'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := g.Configure(t.Context(), guest.Setup{Env: []string{"PATH=" + bin}}); err != nil {
		t.Fatal(err)
	}
	a := &app{stderr: io.Discard, stdout: io.Discard, lookupEnv: func(string) (string, bool) { return "", false }}
	for what, err := range map[string]error{
		"upload":   a.upload(t.Context(), g, t.TempDir(), d.Root),
		"download": a.download(t.Context(), g, d.Root, filepath.Join(t.TempDir(), "to")),
	} {
		if err == nil || !strings.Contains(err.Error(), "has no tar") {
			t.Errorf("%s of a folder without tar: %v", what, err)
		}
	}
}

// Whatever a sandbox calls its files, a download writes nothing outside its folder, follows
// no link of the sandbox's and says what it refused.
func TestHostileDownloads(t *testing.T) {
	file := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: 5}
	}
	link := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.MkdirAll(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, entries := range map[string][]tar.Header{
		"parent":              {file("../escaped")},
		"parent, deeper":      {file("./a/../../escaped")},
		"absolute":            {file(filepath.Join(outside, "escaped"))},
		"through a link":      {link("out", outside), file("out/escaped")},
		"through a long link": {link("a", "."), link("a/out", "../.."), file("out/escaped")},
		"over a link":         {link("escaped", filepath.Join(outside, "escaped")), file("escaped")},
		"hard link outside":   {{Typeflag: tar.TypeLink, Name: "escaped", Linkname: "/etc/passwd"}},
		"hard link to parent": {{Typeflag: tar.TypeLink, Name: "escaped", Linkname: "../outside"}},
		"device":              {{Typeflag: tar.TypeChar, Name: "escaped", Devmajor: 1, Devminor: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			var archive bytes.Buffer
			w := tar.NewWriter(&archive)
			for _, h := range entries {
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
				if h.Size > 0 {
					if _, err := w.Write([]byte("owned")[:h.Size]); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			around := t.TempDir()
			to := filepath.Join(around, "download")
			a := &app{stderr: io.Discard, stdout: io.Discard, lookupEnv: func(string) (string, bool) { return "", false }}
			err := a.download(t.Context(), hostileSandbox(t, archive.Bytes()), "/etc", to)
			if name != "over a link" && err == nil {
				t.Error("nothing was refused")
			}
			for _, dir := range []string{around, outside} {
				entries, rerr := os.ReadDir(dir)
				if rerr != nil {
					t.Fatal(rerr)
				}
				for _, e := range entries {
					if e.Name() != "download" {
						t.Errorf("%s was written outside (%v)", filepath.Join(dir, e.Name()), err)
					}
				}
			}
			if content, err := os.ReadFile(filepath.Join(to, "escaped")); err == nil && string(content) != "owned" {
				t.Errorf("a link out of the folder was followed to %q", content)
			}
		})
	}
}

func TestBar(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	b := newBar(&out, "upload", 4<<20, func() time.Time { return now })
	read := func(n int64, after time.Duration) string {
		t.Helper()
		out.Reset()
		now = now.Add(after)
		if got, err := io.Copy(io.Discard, b.reader(io.LimitReader(zeros{}, n))); err != nil || got != n {
			t.Fatalf("%d bytes, %v", got, err)
		}
		return out.String()
	}
	if shown := read(1<<20, 400*time.Millisecond); shown != "" {
		t.Errorf("a short transfer shows %q", shown)
	}
	if shown := read(1<<20, 600*time.Millisecond); !strings.Contains(shown, " MiB of 4.0 MiB") {
		t.Errorf("shown %q", shown)
	}
	if got, want := b.line(now), "upload  [############            ]  50 %  2.0 MiB of 4.0 MiB  2.0 MiB/s  1s left"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if shown := read(1<<20, 10*time.Millisecond); shown != "" {
		t.Errorf("%q is shown too soon after the last", shown)
	}
	out.Reset()
	b.end()
	if out.String() != "\r\x1b[K" {
		t.Errorf("at the end %q", out.String())
	}
	unknown := newBar(&out, "download", 0, func() time.Time { return now })
	now = now.Add(time.Second)
	if _, err := unknown.writer(io.Discard).Write(make([]byte, 3<<20)); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(out.String(), "\rdownload  3.0 MiB  3.0 MiB/s\x1b[K") {
		t.Errorf("without a size %q", out.String())
	}
	var none *bar
	if r := none.reader(zeros{}); r != (zeros{}) {
		t.Error("without a terminal the reader is wrapped")
	}
	none.end()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
