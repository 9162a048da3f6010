package source

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

// member is one entry of a test archive.
type member struct {
	name, link string
	kind       byte
	body       string
	mode       int64
}

func tarOf(t *testing.T, members ...member) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range members {
		if m.kind == 0 {
			m.kind = tar.TypeReg
		}
		if m.mode == 0 {
			m.mode = 0o644
		}
		hdr := &tar.Header{Typeflag: m.kind, Name: m.name, Linkname: m.link, Mode: m.mode, Size: int64(len(m.body)), Format: tar.FormatPAX}
		if strings.ContainsRune(m.name+m.link, 0) {
			hdr.Format, hdr.Name, hdr.Linkname = tar.FormatUSTAR, strings.ReplaceAll(m.name, "\x00", "\x01"), m.link
		}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatalf("%q: %v", m.name, err)
		}
		if _, err := w.Write([]byte(m.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

type hostile struct {
	name    string
	message string // part of the error
	archive []byte
}

// hostileArchives returns more than 200 archives that must be refused. Every dangerous
// path is tried under every entry type, alone and after harmless entries.
func hostileArchives(t *testing.T) []hostile {
	var out []hostile
	add := func(name, message string, members ...member) {
		for i, before := range [][]member{nil, {{name: "ok/", kind: tar.TypeDir}, {name: "ok/f", body: "x"}}} {
			out = append(out, hostile{fmt.Sprintf("%s/%d", name, i), message, tarOf(t, append(before, members...)...)})
		}
	}
	kinds := map[string]byte{"file": tar.TypeReg, "dir": tar.TypeDir, "symlink": tar.TypeSymlink, "hardlink": tar.TypeLink, "fifo": tar.TypeFifo, "char": tar.TypeChar, "block": tar.TypeBlock}
	paths := map[string]string{
		"..": "upwards", "../x": "upwards", "a/../../x": "upwards", "a/..": "upwards", "./../x": "upwards", "a/b/../../../etc/passwd": "upwards",
		"..//x": "upwards", "/x": "absolute", "/etc/passwd": "absolute", "//x": "absolute", "/../x": "absolute",
		strings.Repeat("a/", 600) + "x": "longer", strings.Repeat("n", 256): "longer", "d/" + strings.Repeat("n", 300): "longer",
	}
	for kindName, kind := range kinds {
		for p, message := range paths {
			add(kindName+" "+shorten(p), message, member{name: p, kind: kind, link: "ok/f"})
		}
	}
	for name, target := range map[string]string{"absolute": "/etc", "upwards": "../..", "inside": "ok", "self": "l", "dangling": "nowhere"} {
		add("file below symlink "+name, "below the symlink", member{name: "l", kind: tar.TypeSymlink, link: target}, member{name: "l/x", body: "evil"})
		add("deep below symlink "+name, "below the symlink", member{name: "l", kind: tar.TypeSymlink, link: target}, member{name: "l/a/b/x", body: "evil"})
		add("dir below symlink "+name, "below the symlink", member{name: "l", kind: tar.TypeSymlink, link: target}, member{name: "l/d/", kind: tar.TypeDir})
		add("link below symlink "+name, "below the symlink", member{name: "l", kind: tar.TypeSymlink, link: target}, member{name: "l/s", kind: tar.TypeSymlink, link: "x"})
		add("hard link through symlink "+name, "no earlier file", member{name: "l", kind: tar.TypeSymlink, link: target}, member{name: "h", kind: tar.TypeLink, link: "l/f"})
		add("hard link to symlink "+name, "no earlier file", member{name: "l", kind: tar.TypeSymlink, link: target}, member{name: "h", kind: tar.TypeLink, link: "l"})
	}
	add("hard link outside", "upwards", member{name: "h", kind: tar.TypeLink, link: "../../etc/passwd"})
	add("hard link absolute", "absolute", member{name: "h", kind: tar.TypeLink, link: "/etc/passwd"})
	add("hard link to nothing", "no earlier file", member{name: "h", kind: tar.TypeLink, link: "later"}, member{name: "later", body: "x"})
	add("hard link to directory", "no earlier file", member{name: "d/", kind: tar.TypeDir}, member{name: "h", kind: tar.TypeLink, link: "d"})
	add("file below file", "not a directory", member{name: "f", body: "x"}, member{name: "f/x", body: "x"})
	add("file replaces directory", "replaces a directory", member{name: "d/x", body: "x"}, member{name: "d", body: "x"})
	add("symlink replaces directory", "replaces a directory", member{name: "d/x", body: "x"}, member{name: "d", kind: tar.TypeSymlink, link: "/etc"})
	add("context is a file", "names the context itself", member{name: ".", body: "x"})
	add("context is a symlink", "names the context itself", member{name: "./", kind: tar.TypeSymlink, link: "/etc"})
	add("empty link", "without a target", member{name: "s", kind: tar.TypeSymlink})
	add("long link", "longer than", member{name: "s", kind: tar.TypeSymlink, link: strings.Repeat("x", 5000)})
	for _, kind := range []byte{tar.TypeChar, tar.TypeBlock, tar.TypeFifo, '7', 'Z'} {
		add(fmt.Sprintf("type %q", kind), "cannot hold", member{name: "dev", kind: kind})
	}
	good := tarOf(t, member{name: "a", body: strings.Repeat("x", 5000)}, member{name: "b", body: "y"})
	for _, cut := range []int{100, 511, 600, 1000, 5000} {
		out = append(out, hostile{fmt.Sprintf("cut at %d", cut), "archive", good[:cut]})
	}
	flipped := bytes.Clone(good)
	flipped[10] ^= 0xff
	out = append(out, hostile{"bad checksum", "damaged", flipped}, hostile{"gzip of nothing", "damaged", []byte{0x1f, 0x8b, 0, 0}})
	return out
}

func TestHazard20HostileArchivesAreRefused(t *testing.T) {
	archives := hostileArchives(t)
	if len(archives) < 200 {
		t.Fatalf("only %d archives", len(archives))
	}
	for _, h := range archives {
		parent := t.TempDir()
		dir := filepath.Join(parent, "a", "b")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		err := Unpack(t.Context(), bytes.NewReader(h.archive), dir, Limits{})
		if kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), h.message) {
			t.Errorf("%s: got %v, want an invalid request with %q", h.name, err, h.message)
		}
		for _, name := range list(t, parent) {
			if !strings.HasPrefix(name, "a/b/") && name != "a" && name != "a/b" {
				t.Errorf("%s: wrote %s outside the directory", h.name, name)
			}
		}
	}
}

func TestHazard20LimitsAreKept(t *testing.T) {
	many := make([]member, 50)
	for i := range many {
		many[i] = member{name: fmt.Sprint(i), body: "0123456789"}
	}
	archive := tarOf(t, many...)
	for _, tc := range []struct {
		name    string
		limits  Limits
		message string
	}{
		{"entries", Limits{Entries: 49}, "more than 49 entries"},
		{"bytes", Limits{Bytes: 499}, "larger than 499 bytes"},
		{"path", Limits{PathLength: 1}, "longer than 1 bytes"},
	} {
		err := Unpack(t.Context(), bytes.NewReader(archive), t.TempDir(), tc.limits)
		if kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), tc.message) {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
	if err := Unpack(t.Context(), bytes.NewReader(archive), t.TempDir(), Limits{Entries: 50, Bytes: 500, PathLength: 2}); err != nil {
		t.Errorf("exactly at the limits: %v", err)
	}
}

// TestHazard20BombIsRefusedBeforeItIsWritten announces a terabyte of holes and a
// thousandfold compression.
func TestHazard20BombIsRefusedBeforeItIsWritten(t *testing.T) {
	var sparse bytes.Buffer
	w := tar.NewWriter(&sparse)
	if err := w.WriteHeader(&tar.Header{Name: "huge", Typeflag: tar.TypeReg, Size: 1 << 40, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(tarOf(t, member{name: "zeros", body: strings.Repeat("\x00", 32<<20)}))
	_ = z.Close()
	for name, archive := range map[string][]byte{"sparse lie": sparse.Bytes(), "gzip bomb": bomb.Bytes()} {
		dir := t.TempDir()
		err := Unpack(t.Context(), bytes.NewReader(archive), dir, Limits{Bytes: 16 << 20})
		if kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), "larger than") {
			t.Errorf("%s: got %v", name, err)
		}
		if left := list(t, dir); len(left) != 0 {
			t.Errorf("%s: left %q", name, left)
		}
	}
}

func TestUnpackHonestArchives(t *testing.T) {
	var z bytes.Buffer
	gz := gzip.NewWriter(&z)
	_, _ = gz.Write(tarOf(t, member{name: "a", body: "1"}))
	_ = gz.Close()
	for _, tc := range []struct {
		name    string
		archive []byte
		want    []string
	}{
		{"no ./ and no parents", tarOf(t, member{name: "a/b/c", body: "x"}), []string{"a", "a/b", "a/b/c"}},
		{"./ first", tarOf(t, member{name: "./", kind: tar.TypeDir, mode: 0o755}, member{name: "./a", body: "x"}), []string{"a"}},
		{"children before parents", tarOf(t, member{name: "d/x", body: "x"}, member{name: "d/", kind: tar.TypeDir, mode: 0o700}), []string{"d", "d/x"}},
		{"last of two wins", tarOf(t, member{name: "a", kind: tar.TypeSymlink, link: "/etc/passwd"}, member{name: "a", body: "x"}), []string{"a"}},
		{"links stay links", tarOf(t, member{name: "s", kind: tar.TypeSymlink, link: "/etc/passwd"}, member{name: "f", body: "x"}, member{name: "h", kind: tar.TypeLink, link: "f"}), []string{"f", "h", "s"}},
		{"git archive", tarOf(t, member{name: "a", body: "x"}), []string{"a"}},
		{"gzip", z.Bytes(), []string{"a"}},
		{"empty", tarOf(t), nil},
		{"read-only directory", tarOf(t, member{name: "d/", kind: tar.TypeDir, mode: 0o555}, member{name: "d/x", body: "x"}), []string{"d", "d/x"}},
		{"not UTF-8", tarOf(t, member{name: "b\xff", body: "x"}), []string{"b\xff"}},
	} {
		dir := t.TempDir()
		if err := Unpack(t.Context(), bytes.NewReader(tc.archive), dir, Limits{}); err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got := list(t, dir); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestUnpackCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Unpack(ctx, bytes.NewReader(tarOf(t, member{name: "a"})), t.TempDir(), Limits{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
