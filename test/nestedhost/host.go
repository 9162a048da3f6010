package nestedhost

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/bootbundle"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/link"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm/tsc"
)

const (
	memoryMiB = 4096
	// bootTime bounds the boot of the nested host.
	bootTime = 3 * time.Minute
)

// Host is a running nested host.
type Host struct {
	client  *guest.Client
	console string // path of its log
}

// Start boots a nested host, which ends with the test.
func Start(t testing.TB) *Host {
	t.Helper()
	testkit.RequireVM(t)
	boot, err := bootbundle.Build(t.Context(), bootbundle.Options{
		CacheDir: filepath.Join(testkit.CacheDir(), "bundle"), Sandboxd: testkit.Sandboxd(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	root, disk := image(t), testkit.ScratchDisk(t, 8192)
	ours, theirs := socketpair(t)
	h := &Host{console: filepath.Join(testkit.ShortTempDir(t), "console")}
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", //nolint:noctx // killed below
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,+svm,+npt", "-smp", "2", "-m", fmt.Sprint(memoryMiB),
		"-kernel", boot.KernelPath, "-initrd", boot.InitrdPath,
		"-append", fmt.Sprintf("console=ttyS0 quiet reboot=t panic=-1 tsc=reliable no_timer_check tsc_early_khz=%d", tsc.KHz()),
		"-drive", "if=none,id=root,format=raw,readonly=on,file.locking=off,file="+root, "-device", "virtio-blk-pci,drive=root",
		"-drive", "if=none,id=disk,format=raw,cache=unsafe,file="+disk, "-device", "virtio-blk-pci,drive=disk",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=link,fd=3", "-device", "virtserialport,chardev=link,name=kiln.0",
		"-serial", "file:"+h.console)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &said, &said, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended := testkit.RunOnOneThread(cmd)
	theirs.Close()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has ended by itself when this fails
		<-ended
		ours.Close()
	})
	ctx, cancel := context.WithTimeout(t.Context(), bootTime)
	defer cancel()
	session, err := link.Dial(ctx, ours)
	if err == nil {
		h.client = guest.New(session.Open)
		t.Cleanup(h.client.Close)
		err = h.client.WaitReady(ctx)
	}
	if err != nil {
		log, _ := os.ReadFile(h.console)
		t.Fatalf("the nested host does not start: %v\n%s\n%s", err, &said, log)
	}
	h.prepare(t)
	return h
}

// prepare makes a virtual machine of Kiln's a host: modules that the kernel of a host has
// loaded, and folders that are no overlay, in which overlays can be mounted.
func (h *Host) prepare(t testing.TB) {
	t.Helper()
	h.Must(t, "sh", "-ec", `modprobe -a kvm_amd vhost_vsock tun
mount -t tmpfs none /var/tmp
mount -t tmpfs none /tmp
mkdir -p `+programs)
	h.put(t, testkit.Sandboxd(t), "kiln-sandboxd")
}

// programs is the folder of the programs that come from this machine.
const programs = "/opt/kiln"

// environment of everything that runs on the nested host.
func environment() map[string]string {
	return map[string]string{
		"PATH": programs + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
		"KILN_TEST_CACHE": cacheDir, "KILN_TEST_SANDBOXD": programs + "/kiln-sandboxd",
	}
}

// Must runs a command, fails the test unless it exits with 0, and returns what it printed
// on standard output.
func (h *Host) Must(t testing.TB, args ...string) string {
	t.Helper()
	var stdout, stderr strings.Builder
	exit, err := h.client.Run(t.Context(), guest.Command{Args: args, Env: environment(), Stdout: &stdout, Stderr: &stderr})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%v on the nested host: exit code %d, %v\n%s%s", args, exit.Code, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// Put copies a program to the nested host, where it is found by its name.
func (h *Host) Put(t testing.TB, program string) {
	t.Helper()
	h.put(t, program, filepath.Base(program))
}

func (h *Host) put(t testing.TB, path, name string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	to := programs + "/" + name
	if err := h.client.WriteFile(t.Context(), to, f); err != nil {
		t.Fatal(err)
	}
	h.Must(t, "chmod", "755", to)
}

// socketpair returns a connection and its other end as a file to inherit.
func socketpair(t testing.TB) (ours net.Conn, theirs *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	mine := os.NewFile(uintptr(fds[0]), "link")
	defer mine.Close()
	if ours, err = net.FileConn(mine); err != nil {
		t.Fatal(err)
	}
	return ours, os.NewFile(uintptr(fds[1]), "link")
}
