package test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHazard12KilledServerHangsNoVM: the memory of a restored VM is a file that the kernel
// maps, so the VM needs nobody for its pages. It goes on while the server stands still, and
// ends when the server is killed. The next server releases everything and serves the
// templates that were ready.
func TestHazard12KilledServerHangsNoVM(t *testing.T) {
	s := newServer(t)
	dir := writeFiles(t, map[string]string{"Dockerfile": "FROM debian:bookworm-slim\n"})
	s.must("templates", "build", "plain", dir)
	id := strings.TrimSpace(s.must("sandbox", "create", "-t", "plain", "--boot-mode", "snapshot"))
	vm := findVM(t, id)
	if !mapsPrivately(t, vm, 512<<20, filepath.Join(s.dataDir, "blobs")) {
		t.Error("the guest's memory is not a private mapping of a blob")
	}
	for _, pid := range []int{vm, s.cmd.Process.Pid} {
		for _, file := range openFiles(t, pid) {
			if strings.Contains(file, "userfaultfd") {
				t.Errorf("process %d has %s: somebody serves page faults", pid, file)
			}
		}
	}

	s.must("sandbox", "exec", "-d", id, "--", "sh", "-c", "for i in $(seq 15); do dd if=/dev/zero of=/tmp/$i bs=1M count=16; sleep 0.5; done")
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	before, deadline := touched(t, vm), time.Now().Add(time.Minute)
	for touched(t, vm) < before+32<<20 {
		if time.Now().After(deadline) {
			t.Fatalf("the guest got %d bytes of memory of its own while the server stood still", touched(t, vm)-before)
		}
		time.Sleep(50 * time.Millisecond) // memory has no event
	}

	ended, err := unix.PidfdOpen(vm, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ended)
	s.kill()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(ended), Events: unix.POLLIN}}, int(time.Minute.Milliseconds())); n != 1 {
		t.Errorf("the VM of a killed server still runs: %v", err)
	}
	s.start()

	if r := s.kiln("sandbox", "exec", id, "--", "true"); r.code == 0 {
		t.Error("a sandbox of a killed server still answers")
	}
	if left, err := os.ReadDir(filepath.Join(s.dataDir, "sandboxes")); err != nil || len(left) > 0 {
		t.Errorf("left in sandboxes/: %v, %v", left, err)
	}
	if got := s.must("sandbox", "run", "-t", "plain", "--", "echo", "back"); got != "back\n" {
		t.Errorf("after the restart a sandbox printed %q", got)
	}
}

// findVM returns the process of a sandbox's VM.
func findVM(t *testing.T, id string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")) // it may have ended
		if bytes.Contains(line, []byte("qemu")) && bytes.Contains(line, []byte(id)) {
			return pid
		}
	}
	t.Fatalf("sandbox %s has no VM", id)
	return 0
}

// mapsPrivately reports whether a process has a private mapping of that size of a file
// below dir.
func mapsPrivately(t *testing.T, pid, size int, dir string) bool {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil {
			t.Fatal(err)
		}
		if to-from == uint64(size) && strings.HasSuffix(mode, "p") && strings.Contains(lines.Text(), " "+dir+"/") {
			return true
		}
	}
	return false
}

// openFiles returns what a process has open.
func openFiles(t *testing.T, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		if file, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			files = append(files, file)
		}
	}
	return files
}

// touched returns how much memory of its own a process has, in bytes: pages of a private
// mapping count once they were written.
func touched(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	var kib int
	if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
