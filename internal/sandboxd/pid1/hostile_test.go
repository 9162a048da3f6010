package pid1_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Whatever an image holds where init expects something else, the daemon comes up and serves
// files, and the pseudo file systems are where they belong.
func TestHostileImages(t *testing.T) {
	remove := func(names ...string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			for _, name := range names {
				must(t, os.RemoveAll(filepath.Join(dir, name)))
			}
		}
	}
	// instead replaces what is at name by what create makes there.
	instead := func(name string, create func(path string) error) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			must(t, os.RemoveAll(path))
			must(t, create(path))
		}
	}
	link := func(target string) func(string) error {
		return func(path string) error { return os.Symlink(target, path) }
	}
	file := func(size int64) func(string) error {
		return func(path string) error {
			if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
				return err
			}
			return os.Truncate(path, max(size, 1))
		}
	}
	fifo := func(path string) error { return unix.Mkfifo(path, 0o666) }
	directory := func(path string) error { return os.MkdirAll(filepath.Join(path, "inside"), 0o755) }

	for name, changes := range map[string][]func(*testing.T, string){
		"mount points are links": {
			instead("proc", link("/etc")), instead("sys", link("nowhere")), instead("dev", link("/proc/1/root")), instead("tmp", link("tmp")),
			instead("run", link("../../run")),
		},
		"mount points are files":      {instead("proc", file(1)), instead("sys", fifo), instead("dev", file(1)), instead("tmp", fifo), instead("run", file(0))},
		"mount points are missing":    {remove("proc", "sys", "dev", "tmp", "run")},
		"mount points are not empty":  {instead("proc", directory), instead("sys", directory), instead("dev", directory)},
		"nothing at all":              {remove("bin", "sbin", "usr", "etc", "home", "root", "var", "proc", "sys", "dev", "tmp", "run")},
		"files of etc are FIFOs":      {instead("etc/passwd", fifo), instead("etc/group", fifo), instead("etc/hosts", fifo), instead("etc/hostname", fifo)},
		"files of etc are folders":    {instead("etc/passwd", directory), instead("etc/group", directory), instead("etc/hosts", directory)},
		"files of etc lead elsewhere": {instead("etc/passwd", link("passwd")), instead("etc/hosts", link("/dev/full")), instead("etc/group", link("/dev/zero"))},
		"etc is a link in a circle":   {instead("etc", link("/etc"))},
		"passwd is huge":              {instead("etc/passwd", file(30<<20))},
		"homes lead elsewhere":        {instead("home", link("/etc"))},
		"home is a file":              {instead("home", file(1))},
		"skeleton is strange": {func(t *testing.T, dir string) {
			skel := filepath.Join(dir, "etc/skel/agent-skel")
			must(t, fifo(filepath.Join(skel, "fifo")))
			must(t, unix.Mknod(filepath.Join(skel, "device"), unix.S_IFBLK|0o666, int(unix.Mkdev(254, 0))))
			must(t, os.Symlink("/etc/passwd", filepath.Join(skel, "link")))
			must(t, os.Symlink(".", filepath.Join(skel, "self")))
		}},
		"names of the initramfs": {instead("init", directory), instead("modules", directory), instead("base", link("/")), instead("scratch", link("/"))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := boot(t, func(t *testing.T, dir string) {
				for _, change := range changes {
					change(t, dir)
				}
			})
			content := strings.Repeat("works ", 1000)
			if err := v.WriteFile(v.ctx, "/var/made/here", strings.NewReader(content)); err != nil {
				t.Errorf("write: %v\n%s", err, v.console())
			}
			if got := readFile(t, v, "/var/made/here"); got != content {
				t.Errorf("read %d bytes, wrote %d", len(got), len(content))
			}
			mounts := readFile(t, v, "/proc/mounts")
			for _, want := range []string{" / overlay", " /proc proc", " /sys sysfs", " /dev devtmpfs", " /dev/pts devpts", " /dev/shm tmpfs"} {
				if !strings.Contains(mounts, want) {
					t.Errorf("no mount%s in\n%s", want, mounts)
				}
			}
			if info, err := v.Stat(v.ctx, "/tmp"); err != nil || !info.IsDir() {
				t.Errorf("/tmp: %+v, %v", info, err)
			}
		})
	}
}

func readFile(t *testing.T, v *vm, path string) string {
	t.Helper()
	r, err := v.ReadFile(v.ctx, path)
	if err != nil {
		t.Errorf("read %s: %v", path, err)
		return ""
	}
	defer r.Close()
	var text bytes.Buffer
	if _, err := io.Copy(&text, r); err != nil {
		t.Errorf("read %s: %v", path, err)
	}
	return text.String()
}
