package pid1_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm"
	"github.com/kilnvm/kiln/internal/vmm/qemu"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// patience bounds everything that a VM does here; emulated ones are slow.
const patience = 2 * time.Minute

const scratchMB = 128

// vm is a running VM with a client of its daemon.
type vm struct {
	*guest.Client
	t       *testing.T
	ctx     context.Context
	machine vmm.Machine
	rootfs  string
	scratch string
}

// boot starts a VM whose root filesystem is what makeTree puts into a folder that holds
// testkit's minimal tree.
func boot(t *testing.T, makeTree func(t *testing.T, dir string)) *vm {
	t.Helper()
	testkit.RequireVM(t)
	tree := t.TempDir()
	testkit.MinimalTree(t, tree)
	makeTree(t, tree)
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	testkit.Rootfs(t, tree, rootfs)
	v := start(t, rootfs, testkit.ScratchDisk(t, scratchMB))
	if err := v.WaitReady(v.ctx); err != nil {
		t.Fatalf("the daemon does not answer: %v\n%s", err, v.console())
	}
	return v
}

// start starts a VM on two disks, whatever they are.
func start(t *testing.T, rootfs, scratch string) *vm {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	driver, err := qemu.New(ctx, qemu.Options{Accel: qemu.TCG})
	if err != nil {
		t.Fatal(err)
	}
	machine, err := driver.Boot(ctx, vmm.Config{
		ID: "pid1", Dir: testkit.ShortTempDir(t), Boot: testkit.BootBundle(t), Size: kiln.Sizes()[0],
		Rootfs: rootfs, Scratch: scratch,
	})
	if err != nil {
		t.Fatal(err)
	}
	client := guest.New(machine.Dial)
	t.Cleanup(func() {
		client.Close()
		if err := machine.Kill(); err != nil {
			t.Error(err)
		}
	})
	return &vm{Client: client, t: t, ctx: ctx, machine: machine, rootfs: rootfs, scratch: scratch}
}

func (v *vm) console() string {
	text, err := os.ReadFile(v.machine.ConsoleLog())
	if err != nil {
		v.t.Fatal(err)
	}
	return string(text)
}

// sh runs a shell command as user ("" is root) and returns what it printed, without the
// last line end.
func (v *vm) sh(t *testing.T, user, script string) string {
	t.Helper()
	var out bytes.Buffer
	exit, err := v.Run(v.ctx, guest.Command{Args: []string{"/bin/sh", "-c", script}, User: user, Stdout: &out, Stderr: &out})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%s: exit %+v, %v\n%s", script, exit, err, out.String())
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// startOnly starts a command whose end the VM may not live to tell.
func (v *vm) startOnly(command string) error {
	_, err := v.Start(v.ctx, guest.Command{Args: []string{command}})
	return err
}

// awaitEnd waits until the VM has stopped by itself and returns what the driver makes of it.
func (v *vm) awaitEnd() error {
	v.t.Helper()
	select {
	case <-v.machine.Done():
		return v.machine.Err()
	case <-v.ctx.Done():
		v.t.Fatalf("the VM does not stop\n%s", v.console())
		return nil
	}
}

// richTree adds what TestSystem looks at.
func richTree(t *testing.T, dir string) {
	euid := filepath.Join(dir, "usr/bin/euid")
	source := filepath.Join(t.TempDir(), "euid.go")
	writeFile(t, source, "package main\n\nimport \"os\"\n\nfunc main() { println(os.Geteuid()) }\n")
	build := exec.Command("go", "build", "-o", euid, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	must(t, os.Chmod(euid, 0o755|os.ModeSetuid))
	must(t, unix.Mknod(filepath.Join(dir, "full"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 7))))
	must(t, os.Chmod(filepath.Join(dir, "full"), 0o666)) // Mknod heeds the umask
	writeFile(t, filepath.Join(dir, "linked"), "before\n")
	must(t, os.Link(filepath.Join(dir, "linked"), filepath.Join(dir, "other-name")))
	must(t, os.MkdirAll(filepath.Join(dir, "tree/sub"), 0o755))
	writeFile(t, filepath.Join(dir, "tree/sub/file"), "content\n")
	writeFile(t, filepath.Join(dir, "tmp/from-image"), "kept\n")
	writeFile(t, filepath.Join(dir, "run/from-image"), "kept\n")
}

// TestSystem looks at a VM the way its programs do.
func TestSystem(t *testing.T) {
	v := boot(t, richTree)
	before := digest(t, v.rootfs)
	for _, c := range []struct{ name, user, script, want string }{
		{"root is writable", "", "echo new > /file && echo more >> /tree/sub/file && cat /file /tree/sub/file", "new\ncontent\nmore"},
		{"directories can be renamed", "", "mv /tree /moved && cat /moved/sub/file", "content\nmore"},
		{"hard links stay linked", "", "echo after > /linked && cat /other-name && stat -c %h /linked", "after\n2"},
		{"files of /tmp and /run are the image's", "maker", "cat /tmp/from-image /run/from-image; stat -c %a /tmp", "kept\nkept\n1777"},
		{"pseudo file systems", "", `awk '{print $3" "$2}' /proc/mounts | sort`, strings.Join([]string{
			"cgroup2 /sys/fs/cgroup", "devpts /dev/pts", "devtmpfs /dev", "mqueue /dev/mqueue",
			"overlay /", "proc /proc", "sysfs /sys", "tmpfs /dev/shm",
		}, "\n")},
		{"standard devices", "maker", "echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo in | cat /dev/stdin; echo out > /dev/stdout; echo fd > /dev/fd/1", "4\n4\nin\nout\nfd"},
		{"shared memory and terminals for all", "maker", "echo shm > /dev/shm/x && cat /dev/shm/x; test -c /dev/ptmx && test -w /dev/ptmx && echo ptmx", "shm\nptmx"},
		{"the channel is for root alone", "maker", "cat /dev/vport* 2>&1 | grep -c denied", "1"},
		{"device node of the image", "maker", "dd if=/dev/zero of=/full bs=1 count=1 2>&1 | grep -c 'No space'", "1"},
		{"setuid", "maker", "euid 2>&1", "0"},
		{"home from the skeleton", "maker", "cd && pwd && cat .welcome && stat -c %u:%g . .welcome", "/home/maker\nhello, maker\n1000:1000\n1000:1000"},
		{"loopback", "", "ping -c 1 -W 5 127.0.0.1 >/dev/null && ping -c 1 -W 5 ::1 >/dev/null && echo up", "up"},
		{"host name", "", "hostname && grep -c localhost /etc/hosts", "sandbox\n2"},
		{"user namespaces", "maker", "unshare -U echo made", "made"},
		{"open files", "", "ulimit -Sn; ulimit -Hn", "65536\n1048576"},
		{"umask", "", "umask", "0022"},
		{"nothing of the initramfs is left", "", "ls -d /init /modules /base /scratch 2>/dev/null | wc -l", "0"},
		{"process 1", "", "cat /proc/1/comm", "init"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := v.sh(t, c.user, c.script)
			if got != c.want {
				t.Errorf("%s\ngot  %q\nwant %q", c.script, got, c.want)
			}
		})
	}
	t.Run("df shows the scratch disk", func(t *testing.T) {
		var total, free int
		text := v.sh(t, "", "df -m / | awk 'NR == 2 {print $2, $4}'")
		if _, err := fmt.Sscan(text, &total, &free); err != nil {
			t.Fatal(err)
		}
		if total < scratchMB*3/4 || total > scratchMB || free < total*3/4 {
			t.Errorf("%d MiB in total, %d free; the scratch disk has %d", total, free, scratchMB)
		}
	})
	t.Run("base is unchanged", func(t *testing.T) {
		if after := digest(t, v.rootfs); after != before {
			t.Errorf("the rootfs was %s and is %s", before, after)
		}
	})
	t.Log("process 1:", v.sh(t, "", "grep -E 'VmRSS|RssAnon|RssFile' /proc/1/status | tr '\\n\\t' '  '"))
}

// Orphans become children of process 1, which must not keep them as zombies, nor take the exit
// status of its own commands from them.
func TestOrphansAreReaped(t *testing.T) {
	v := boot(t, func(*testing.T, string) {})
	for range 5 {
		v.sh(t, "", "for i in $(seq 40); do (sh -c 'exit 9' &); done")
	}
	v.sh(t, "", `for try in $(seq 100); do
		grep -qs '^State:.Z' /proc/[0-9]*/status || exit 0
		sleep 0.1
	done; echo zombies; ps; exit 1`)
}

// No signal from inside the VM ends the daemon behind its back.
func TestDaemonOutlivesSignals(t *testing.T) {
	v := boot(t, func(*testing.T, string) {})
	v.sh(t, "", "kill -KILL 1; kill -STOP 1; kill -HUP 1; kill -QUIT 1")
	_, _ = v.Run(v.ctx, guest.Command{Args: []string{"/bin/busybox", "kill", "-KILL", "-1"}})
	if got := v.sh(t, "", "echo alive"); got != "alive" {
		t.Errorf("got %q", got)
	}
}

// A shutdown lets processes finish, keeps what they wrote and leaves a clean disk, whether the
// host asks for it or a program in the VM.
func TestShutdown(t *testing.T) {
	for name, halt := range map[string]func(v *vm) error{
		"host":     func(v *vm) error { return v.Shutdown(v.ctx) },
		"poweroff": func(v *vm) error { return v.startOnly("poweroff") },
		"reboot":   func(v *vm) error { return v.startOnly("reboot") },
	} {
		t.Run(name, func(t *testing.T) {
			v := boot(t, func(*testing.T, string) {})
			r, w := newPipe(t)
			_, err := v.Start(v.ctx, guest.Command{
				Args:   []string{"/bin/sh", "-c", "trap 'echo bye > /goodbye; exit' TERM; echo ready; while :; do sleep 1; done"},
				Stdout: w,
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if err := halt(v); err != nil {
				t.Fatal(err)
			}
			if err := v.awaitEnd(); err != nil {
				t.Errorf("the VMM ended with %v", err)
			}
			if out, err := exec.Command("e2fsck", "-fn", v.scratch).CombinedOutput(); err != nil || strings.Contains(string(out), "not cleanly") {
				t.Errorf("e2fsck: %v\n%s", err, out)
			}
			out, err := exec.Command("debugfs", "-R", "cat /upper/goodbye", v.scratch).Output()
			if err != nil || string(out) != "bye\n" {
				t.Errorf("the last words of a process: %q, %v\n%s", out, err, v.console())
			}
		})
	}
}

// A VM whose disks are unusable stops and says why.
func TestUnusableDisks(t *testing.T) {
	testkit.RequireVM(t)
	zeros := func(t *testing.T) string {
		path := filepath.Join(t.TempDir(), "zeros")
		must(t, os.WriteFile(path, nil, 0o644))
		must(t, os.Truncate(path, 16<<20))
		return path
	}
	t.Run("rootfs", func(t *testing.T) {
		v := start(t, zeros(t), testkit.ScratchDisk(t, 16))
		if err := v.awaitEnd(); err == nil {
			t.Error("the VMM ended as if all were well")
		}
		if !strings.Contains(v.console(), "root filesystem: mount ext4 on /base") {
			t.Errorf("the console says\n%s", v.console())
		}
	})
	t.Run("scratch", func(t *testing.T) {
		v := start(t, testkit.MinimalRootfs(t), zeros(t))
		if err := v.awaitEnd(); err == nil {
			t.Error("the VMM ended as if all were well")
		}
		if !strings.Contains(v.console(), "scratch disk: mount ext4 on /scratch") {
			t.Errorf("the console says\n%s", v.console())
		}
	})
}

func newPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func digest(t *testing.T, path string) kiln.Digest {
	t.Helper()
	content, err := os.ReadFile(path)
	must(t, err)
	return kiln.DigestOf(content)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
