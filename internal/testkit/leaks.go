package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leaveTime is how long processes may take to end after the last test.
const leaveTime = 3 * time.Second

// runMarker is a variable that every child of a test process inherits. It tells the processes
// of one test binary from those of others that run at the same time.
const runMarker = "KILN_TEST_RUN"

// Main runs the tests of a package and fails when they leave something behind: a process, a
// file or mount in the temporary folder, a network namespace. Use it as
//
//	func TestMain(m *testing.M) { testkit.Main(m) }
func Main(m *testing.M) { os.Exit(mainCode(m)) }

func mainCode(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kt")
	if err != nil {
		fmt.Fprintln(os.Stderr, "testkit:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	marker := fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano())
	// Programs that tests run as other users pass through the folder.
	if err := errors.Join(os.Chmod(dir, 0o711), os.Setenv(runMarker, marker), os.Setenv("TMPDIR", dir)); err != nil {
		fmt.Fprintln(os.Stderr, "testkit:", err)
		return 1
	}

	code := m.Run()

	var left []string
	left = append(left, processesLeft(marked(runMarker+"="+marker))...)
	left = append(left, mountsBelow(dir)...)
	left = append(left, filesIn(dir)...)
	left = append(left, networksLeft(dir)...)
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "left behind:", l)
	}
	if code == 0 && len(left) > 0 {
		code = 1
	}
	return code
}

// processesLeft returns those of the processes that are still there after leaveTime.
func processesLeft(pids []int) []string {
	deadline := time.Now().Add(leaveTime)
	var left []string
	for _, pid := range pids {
		if !ends(pid, deadline) {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			left = append(left, fmt.Sprintf("process %d: %s", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte(" "))))
		}
	}
	return left
}

// marked returns the processes, without this one, that have marker in their environment.
func marked(marker string) []int {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	var pids []int
	for _, f := range files {
		environ, err := os.ReadFile(f)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil || pid == os.Getpid() { // it has just ended, or it is another user's
			continue
		}
		for v := range bytes.SplitSeq(environ, []byte{0}) {
			if string(v) == marker {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// ends reports whether a process ends before the deadline.
func ends(pid int, deadline time.Time) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	wait := max(time.Until(deadline), 0)
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait/time.Millisecond))
	return n > 0
}

func mountsBelow(dir string) []string {
	table, _ := os.ReadFile("/proc/self/mounts")
	var left []string
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[1], dir+"/") {
			left = append(left, fmt.Sprintf("mount %s (%s)", f[1], f[2]))
		}
	}
	return left
}

func filesIn(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var left []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "go-build") { // of a compiler that was killed
			continue
		}
		left = append(left, "file "+filepath.Join(dir, e.Name()))
	}
	return left
}
