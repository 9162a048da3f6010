package sandboxd

import (
	"crypto/rand"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespaces runs f on a thread with host name and mounts of its own, which end with it.
func inNamespaces(t *testing.T, f func() error) {
	t.Helper()
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread must not be used again
		failed <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWUTS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
				return err
			}
			return f()
		}()
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}

func TestLinuxNames(t *testing.T) {
	before, err := os.ReadFile(bootIDFile)
	if err != nil {
		t.Fatal(err)
	}
	inNamespaces(t, func() error {
		if err := new(Linux).SetHostname("a-clone"); err != nil {
			return err
		}
		var name unix.Utsname
		if err := unix.Uname(&name); err != nil {
			return err
		}
		if got := unix.ByteSliceToString(name.Nodename[:]); got != "a-clone" {
			t.Errorf("host name %q", got)
		}
		for range 3 {
			id := formatUUID(uuid())
			if err := new(Linux).SetBootID(id); err != nil {
				return err
			}
			if got, err := os.ReadFile(bootIDFile); err != nil || string(got) != id+"\n" {
				t.Errorf("boot ID %q, %v; want %s", got, err, id)
			}
		}
		mounts, err := os.ReadFile("/proc/thread-self/mounts")
		if n := strings.Count(string(mounts), bootIDFile); n != 1 {
			t.Errorf("%d mounts over the boot ID", n)
		}
		return err
	})
	if after, err := os.ReadFile(bootIDFile); err != nil || string(after) != string(before) {
		t.Errorf("this machine's boot ID has changed: %q, %v", after, err)
	}
}

// TestHazard01EntropyIsTaken asks only whether the kernel accepts it: more entropy does no
// harm to this machine.
func TestHazard01EntropyIsTaken(t *testing.T) {
	fresh := make([]byte, 64)
	_, _ = rand.Read(fresh)
	if err := new(Linux).AddEntropy(fresh); err != nil {
		t.Error(err)
	}
}

func TestReloadSignalsOnlyWhatItShould(t *testing.T) {
	pidFile := t.TempDir() + "/pid"
	if err := new(Linux).Reload(pidFile, "sleep"); err != nil {
		t.Errorf("no file: %v", err)
	}
	hangUps := make(chan os.Signal, 1) // else the program of a test under nohup ignores them, too
	signal.Notify(hangUps, unix.SIGHUP)
	defer signal.Stop(hangUps)
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	defer func() { _ = cmd.Process.Kill() }()
	for _, test := range []struct {
		text, command string
		ok            bool
	}{{"nonsense", "sleep", false}, {"1", "sleep", false}, {"0", "sleep", false}, {pid, "sshd", true}, {pid + "\n", "sleep", true}} {
		if err := os.WriteFile(pidFile, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := new(Linux).Reload(pidFile, test.command); (err == nil) != test.ok {
			t.Errorf("%q: %v", test.text, err)
		}
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: hangup" {
		t.Errorf("ended with %v", err)
	}
}
