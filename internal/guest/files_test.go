package guest_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

func read(t *testing.T, c *guest.Client, path string) []byte {
	t.Helper()
	r, err := c.ReadFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFilesRoundTrip(t *testing.T) {
	c, d := start(t)
	if err := c.Configure(t.Context(), guest.Setup{User: "agent"}); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 20<<20)
	random := rand.NewChaCha8([32]byte{})
	_, _ = random.Read(big)
	for path, content := range map[string][]byte{
		"empty": {}, "deep/er/file": []byte("x"), "~/big": big, d.Root + "/s p a c e é & ?#%": {0, 255, 10},
	} {
		if err := c.WriteFile(t.Context(), path, bytes.NewReader(content)); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if got := read(t, c, path); !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes came back of %d", path, len(got), len(content))
		}
	}
	info, err := c.Stat(t.Context(), "deep/er/file")
	if err != nil {
		t.Fatal(err)
	}
	if info.Path != d.Home+"/deep/er/file" || info.Name != "file" || info.Type != guest.TypeFile || info.Size != 1 ||
		info.Mode != 0o644 || info.Owner != "agent" || info.Group != "agents" || info.ModTime.IsZero() {
		t.Errorf("%+v", info)
	}
	if parent, err := c.Stat(t.Context(), "deep"); err != nil || !parent.IsDir() || parent.Owner != "agent" {
		t.Errorf("parent: %+v, %v", parent, err)
	}
	if got := read(t, c, "/proc/self/status"); !bytes.Contains(got, []byte("Name:")) {
		t.Errorf("a file of /proc: %q", got)
	}
}

func TestOverwriteKeepsTheFile(t *testing.T) {
	c, d := start(t)
	path := d.Root + "/script"
	if err := os.WriteFile(path, []byte("a longer text"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("script", d.Root+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteFile(t.Context(), d.Root+"/link", strings.NewReader("short")); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(path)
	info, err := os.Lstat(path)
	if err != nil || string(b) != "short" || info.Mode().Perm() != 0o755 {
		t.Errorf("%q, %v, %v", b, info.Mode(), err)
	}
}

func TestListRemoveMove(t *testing.T) {
	c, d := start(t)
	dir := d.Root + "/d"
	if err := errors.Join(c.MkdirAll(t.Context(), dir+"/sub"), c.MkdirAll(t.Context(), dir),
		c.WriteFile(t.Context(), dir+"/f", strings.NewReader("f")),
		os.Symlink("f", dir+"/link"), os.Symlink("nowhere", dir+"/dangling")); err != nil {
		t.Fatal(err)
	}
	list, err := c.List(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range list {
		names = append(names, f.Name+":"+string(f.Type)+":"+f.Symlink)
	}
	if got, want := strings.Join(names, " "), "dangling:symlink:nowhere f:file: link:file:"+dir+"/f sub:directory:"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if err := c.Move(t.Context(), dir, d.Root+"/new/place"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, c, d.Root+"/new/place/f"); string(got) != "f" {
		t.Errorf("%q", got)
	}
	for range 2 { // a missing path is no error
		if err := c.Remove(t.Context(), d.Root+"/new"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Stat(t.Context(), d.Root+"/new"); kiln.CodeOf(err) != kiln.CodeNotFound {
		t.Errorf("%v", err)
	}
}

func TestFileErrors(t *testing.T) {
	c, d := start(t)
	file := d.Root + "/file"
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	write := func(path string) error {
		return c.WriteFile(t.Context(), path, bytes.NewReader(make([]byte, 5<<20)))
	}
	open := func(path string) error {
		r, err := c.ReadFile(t.Context(), path)
		if err == nil {
			r.Close()
		}
		return err
	}
	for _, test := range []struct {
		name string
		err  error
		code kiln.ErrorCode
		text string
	}{
		{"read missing", open("/no/such"), kiln.CodeNotFound, "/no/such"},
		{"read directory", open(d.Root), kiln.CodeInvalid, "is a directory"},
		{"read device", open("/dev/zero"), kiln.CodeInvalid, "not a regular file"},
		{"write below a file", write(file + "/x"), kiln.CodeInvalid, "not a directory"},
		{"write to a directory", write(d.Root), kiln.CodeInvalid, "is a directory"},
		{"write to a device", write("/dev/null"), kiln.CodeInvalid, "not a regular file"},
		{"write where nothing can be", write("/proc/new"), kiln.CodeNotFound, "/proc/new"},
		{"write to a full disk", write("/dev/full"), kiln.CodeInvalid, "not a regular file"},
		{"list missing", func() error { _, err := c.List(t.Context(), "/no/such"); return err }(), kiln.CodeNotFound, "/no/such"},
		{"list file", func() error { _, err := c.List(t.Context(), file); return err }(), kiln.CodeInvalid, "not a directory"},
		{"make a directory over a file", c.MkdirAll(t.Context(), file), kiln.CodeInvalid, "not a directory"},
		{"remove the root", c.Remove(t.Context(), "//"), kiln.CodeInvalid, "can be removed"},
		{"remove no path", c.Remove(t.Context(), ""), kiln.CodeInvalid, "can be removed"},
		{"remove the home", c.Remove(t.Context(), "."), kiln.CodeInvalid, "can be removed"},
		{"remove the home by its name", c.Remove(t.Context(), "~/"), kiln.CodeInvalid, "can be removed"},
		{"remove what is above", c.Remove(t.Context(), "sub/../.."), kiln.CodeInvalid, "can be removed"},
		{"remove the root from below", c.Remove(t.Context(), d.Root+"/../../../../../.."), kiln.CodeInvalid, "can be removed"},
		{"move missing", c.Move(t.Context(), "/no/such", d.Root+"/x"), kiln.CodeNotFound, "/no/such"},
		{"move into itself", c.Move(t.Context(), d.Root, d.Root+"/x"), kiln.CodeInvalid, "into itself"},
	} {
		if kiln.CodeOf(test.err) != test.code || !strings.Contains(test.err.Error(), test.text) {
			t.Errorf("%s: %v (%s), want %s %q", test.name, test.err, kiln.CodeOf(test.err), test.code, test.text)
		}
	}
	err := c.WriteFile(t.Context(), d.Root+"/broken", iotest.ErrReader(errors.New("bad source")))
	if err == nil || !strings.Contains(err.Error(), "bad source") {
		t.Errorf("unreadable source: %v", err)
	}
}

func TestUploadToAFullDiskLeavesNothing(t *testing.T) {
	c, d := start(t)
	dir := smallDisk(t, d.Root)
	err := c.WriteFile(t.Context(), dir+"/big", bytes.NewReader(make([]byte, 5<<20)))
	if kiln.CodeOf(err) != kiln.CodeExhausted || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(dir + "/big"); !os.IsNotExist(err) {
		t.Errorf("a part of the file is left: %v", err)
	}
	// Another file system: it is copied, with all that belongs to it.
	if err := errors.Join(os.MkdirAll(d.Root+"/src/sub", 0o750), os.WriteFile(d.Root+"/src/sub/f", []byte("text"), 0o4755),
		os.Chmod(d.Root+"/src/sub/f", 0o755|os.ModeSetuid), os.Chown(d.Root+"/src/sub", 7, 8), os.Symlink("sub", d.Root+"/src/link")); err != nil {
		t.Fatal(err)
	}
	if err := c.Move(t.Context(), d.Root+"/src", dir+"/moved"); err != nil {
		t.Fatal(err)
	}
	got := sh(t, c, "cd "+dir+"/moved; stat -c '%n %a %u:%g' sub sub/f; readlink link; cat sub/f; ls -d "+d.Root+"/src 2>&1 | grep -c 'cannot access'")
	if want := "sub 750 7:8\nsub/f 4755 0:0\nsub\ntext1\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
