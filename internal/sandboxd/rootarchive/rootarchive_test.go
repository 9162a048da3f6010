package rootarchive_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/sandboxd/rootarchive"
)

func TestWrite(t *testing.T) {
	root := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	changed := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	tool := write("usr/bin/tool", "program")
	must(os.Chmod(tool, 0o755|os.ModeSetuid))
	must(unix.Setxattr(tool, "user.note", []byte("a\x00b"), 0))
	must(os.Chtimes(tool, changed, changed))
	must(os.Chown(write("home/me/file", "mine"), 1000, 1001))
	must(os.Link(filepath.Join(root, "home/me/file"), filepath.Join(root, "home/me/second")))
	must(os.Symlink("/nowhere", filepath.Join(root, "home/me/link")))
	must(unix.Mkfifo(filepath.Join(root, "home/me/fifo"), 0o600))
	must(unix.Mknod(filepath.Join(root, "home/me/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	l, err := net.Listen("unix", filepath.Join(root, "home/me/socket"))
	must(err)
	defer l.Close()
	for name, content := range map[string]string{
		"etc/machine-id": "0123\n", "etc/hostname": "iabc\n", "var/lib/dbus/machine-id": "0123\n", "var/lib/systemd/random-seed": "seed",
		"etc/ssh/ssh_host_ed25519_key": "PRIVATE", "etc/ssh/ssh_host_ed25519_key.pub": "public", "etc/ssh/ssh_host_rsa_key": "PRIVATE",
		"etc/ssh/sshd_config": "config", "etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\tiabc\n", "run/pid": "1", "run/sshd/x": "1",
		"proc/cpuinfo": "not mine", "sys/x": "not mine",
	} {
		write(name, content)
	}

	var out bytes.Buffer
	must(rootarchive.Write(t.Context(), &out, root, []string{"/proc", "/sys"}))
	got := map[string]*tar.Header{}
	content := map[string]string{}
	for r := tar.NewReader(&out); ; {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(err)
		got[hdr.Name] = hdr
		b, err := io.ReadAll(r)
		must(err)
		content[hdr.Name] = string(b)
	}
	for name, want := range map[string]string{
		"usr/bin/tool": "program", "etc/ssh/sshd_config": "config", "etc/hosts": "127.0.0.1\tlocalhost\n",
		"etc/machine-id": "", "etc/ssh/ssh_host_ed25519_key": "",
	} {
		if got[name] == nil || content[name] != want {
			t.Errorf("%s = %q, want %q", name, content[name], want)
		}
	}
	for _, name := range []string{
		"etc/hostname", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_ed25519_key.pub",
		"run/pid", "run/sshd/x", "proc/cpuinfo", "sys/x", "home/me/socket",
	} {
		if got[name] != nil {
			t.Errorf("%s is in the archive", name)
		}
	}
	for _, dir := range []string{"proc/", "sys/", "run/sshd/", "./"} {
		if got[dir] == nil {
			t.Errorf("%s is not in the archive", dir)
		}
	}
	if !got["proc/"].ModTime.Equal(got["./"].ModTime) {
		t.Errorf("a mount point has the time %s, which is the other mount's", got["proc/"].ModTime)
	}
	h := got["usr/bin/tool"]
	if h.Mode != 0o4755 || !h.ModTime.Equal(changed) || h.PAXRecords["SCHILY.xattr.user.note"] != "a\x00b" {
		t.Errorf("tool: %+v", h)
	}
	if h := got["home/me/file"]; h.Uid != 1000 || h.Gid != 1001 {
		t.Errorf("file: %+v", h)
	}
	if h := got["home/me/second"]; h.Typeflag != tar.TypeLink || h.Linkname != "home/me/file" {
		t.Errorf("hard link: %+v", h)
	}
	if h := got["home/me/link"]; h.Linkname != "/nowhere" || got["home/me/fifo"].Typeflag != tar.TypeFifo {
		t.Errorf("symlink: %+v, FIFO %+v", h, got["home/me/fifo"])
	}
	if h := got["home/me/null"]; h.Typeflag != tar.TypeChar || h.Devmajor != 1 || h.Devminor != 3 {
		t.Errorf("device: %+v", h)
	}
}

func TestMounts(t *testing.T) {
	list, err := rootarchive.Mounts("/")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, m := range list {
		found = found || m == "/proc"
		if m == "/" {
			t.Error("the root counts as a mount below it")
		}
	}
	if !found {
		t.Errorf("no /proc in %q", list)
	}
}
