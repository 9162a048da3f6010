package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnvm/kiln/internal/rootfs"
)

// writeTree makes an image of a small tree; change may alter the tree before.
func writeTree(t *testing.T, change func(dir string) error) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"etc/motd": "welcome\n", "bin/tool": "x"} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("bin/tool", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := change(dir); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	src, err := rootfs.FromDir(f)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	image := filepath.Join(t.TempDir(), "rootfs.ext4")
	if _, err := rootfs.Write(context.Background(), src, image); err != nil {
		t.Fatal(err)
	}
	return image
}

func TestLookIntoImages(t *testing.T) {
	env := map[string]string{"KILN_DATA_DIR": t.TempDir()}
	a := writeTree(t, func(dir string) error { return os.Chmod(filepath.Join(dir, "bin/tool"), os.ModeSetuid|0o755) })
	b := writeTree(t, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "etc/motd"), []byte("WELCOME\n"), 0o644)
	})
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"ls", a}, 0, "link -> bin/tool"},
		{[]string{"ls", a, "/bin"}, 0, "4755  file"},
		{[]string{"ls", a, "/absent"}, 1, ""},
		{[]string{"cat", a, "/etc/motd"}, 0, "welcome\n"},
		{[]string{"cat", a, "etc"}, 2, ""},
		{[]string{"stat", a}, 0, "inodes used"},
		{[]string{"stat", a, "bin/tool"}, 0, "4755"},
		{[]string{"diff", a, a}, 0, ""},
		{[]string{"diff", a, b}, 1, "bin/tool: mode: 4755 → 0644\n"},
		{[]string{"diff", a, b}, 1, "etc/motd: content: "},
		{[]string{"stat", "/etc/passwd"}, 1, ""},
	} {
		r := runKiln(env, append([]string{"rootfs"}, c.args...)...)
		if r.code != c.code || !strings.Contains(r.stdout, c.want) || c.code == 0 && r.stderr != "" {
			t.Errorf("kiln rootfs %s: exit code %d, want %d with %q\n%s%s", strings.Join(c.args, " "), r.code, c.code, c.want, r.stdout, r.stderr)
		}
		if c.code != 0 && c.args[0] != "diff" && r.stderr == "" {
			t.Errorf("kiln rootfs %s: no word about what is wrong", strings.Join(c.args, " "))
		}
	}
	for _, args := range [][]string{{"ls", a}, {"stat", a}, {"stat", a, "link"}, {"diff", a, b}} {
		r := runKiln(env, append([]string{"rootfs", "-o", "json"}, args...)...)
		if !json.Valid([]byte(r.stdout)) {
			t.Errorf("kiln rootfs %s: no JSON: %s%s", strings.Join(args, " "), r.stdout, r.stderr)
		}
	}
}
