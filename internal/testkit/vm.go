package testkit

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/bootbundle"
	"github.com/kilnvm/kiln/internal/hostcmd"
	"github.com/kilnvm/kiln/internal/scratch"
)

// daemon is built once per test process: its source cannot change meanwhile.
var daemon struct {
	once sync.Once
	path string
}

// Sandboxd builds kiln-sandboxd from the sources as they are and returns its path. On a
// machine without sources, KILN_TEST_SANDBOXD is that path.
func Sandboxd(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("KILN_TEST_SANDBOXD"); path != "" {
		return path
	}
	daemon.once.Do(func() {
		tmp := filepath.Join(ShortTempDir(t), "kiln-sandboxd")
		// Without VCS stamps, so that a commit does not make another daemon.
		build := hostcmd.Command{
			Name: "go", Args: []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", tmp, "./cmd/kiln-sandboxd"},
			Dir: moduleRoot(), Env: []string{"CGO_ENABLED=0"},
		}
		if err := build.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(tmp)
		if err != nil {
			t.Fatal(err)
		}
		daemon.path = Cached(t, ContentName("kiln-sandboxd", content), func(path string) {
			if err := os.WriteFile(path, content, 0o755); err != nil {
				t.Fatal(err)
			}
		})
	})
	if daemon.path == "" {
		t.Fatal("kiln-sandboxd could not be built; an earlier test says why")
	}
	return daemon.path
}

// BootBundle returns a boot bundle with the distribution's kernel and the daemon as its
// sources are now.
func BootBundle(t testing.TB) kiln.BootBundle {
	t.Helper()
	bundle, err := bootbundle.Build(t.Context(), bootbundle.Options{
		CacheDir: filepath.Join(CacheDir(), "bundle"),
		Sandboxd: Sandboxd(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}

// Accelerator is what the VMs of tests run on: software emulation, which every machine has,
// or what KILN_TEST_ACCEL says.
func Accelerator() string { return cmp.Or(os.Getenv("KILN_TEST_ACCEL"), "tcg") }

// ScratchDisk makes an empty scratch disk of mb MiB for one VM.
func ScratchDisk(t testing.TB, mb int) string {
	t.Helper()
	RequireCommands(t, "mke2fs")
	path := filepath.Join(ShortTempDir(t), "scratch")
	if err := scratch.Make(t.Context(), path, mb); err != nil {
		t.Fatal(err)
	}
	return path
}

// minimalFormat stands for what MinimalTree makes; raise it with every change there.
const minimalFormat = "2"

// MinimalRootfs returns an ext4 file system with busybox that a VM can have as its root.
// Do not write to it.
func MinimalRootfs(t testing.TB) string {
	t.Helper()
	content, err := os.ReadFile(busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	return Cached(t, ContentName("minimal-rootfs", content, []byte(minimalFormat)), func(path string) {
		dir := t.TempDir()
		MinimalTree(t, dir)
		Rootfs(t, dir, path)
	})
}

// MinimalTree fills dir with what MinimalRootfs holds: busybox with its applets, the users
// root and maker (1000), and an agent skeleton.
func MinimalTree(t testing.TB, dir string) {
	t.Helper()
	RequireRoot(t)
	for name, mode := range map[string]os.FileMode{
		"bin": 0o755, "sbin": 0o755, "usr/bin": 0o755, "usr/sbin": 0o755, "root": 0o700, "home": 0o755,
		"etc/skel/agent-skel": 0o755, "run": 0o755, "tmp": 0o777 | os.ModeSticky, "var/tmp": 0o777 | os.ModeSticky,
		"proc": 0o755, "sys": 0o755, "dev": 0o755,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"etc/passwd":                   "root:x:0:0:root:/root:/bin/sh\nmaker:x:1000:1000::/home/maker:/bin/sh\n",
		"etc/group":                    "root:x:0:\ntty:x:5:\nmaker:x:1000:\n",
		"etc/skel/agent-skel/.welcome": "hello, maker\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "bin/busybox")
	run(t, "cp", busybox(t), program)
	for applet := range strings.FieldsSeq(run(t, program, "--list-full")) {
		path := filepath.Join(dir, applet)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/bin/busybox", path); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
}

// Rootfs writes the tree in dir as an ext4 file system to path.
func Rootfs(t testing.TB, dir, path string) {
	t.Helper()
	RequireCommands(t, "mke2fs")
	run(t, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", dir, path, "64M")
}

func busybox(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("this test needs a static busybox: `make setup` installs it")
	}
	return path
}
