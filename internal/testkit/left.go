package testkit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// LeftOf returns what a server that has ended left of its data directory's business on the
// host: processes, mounts, networks and control groups. A process may take leaveTime to end.
func LeftOf(dataDir string) []string {
	left := processesLeft(concerned(dataDir))
	left = append(left, mountsBelow(dataDir)...)
	left = append(left, networksLeft(filepath.Dir(dataDir))...)
	for _, name := range []string{"kiln/" + shortSum(dataDir), "kiln-build-" + shortSum(filepath.Join(dataDir, "buildkit"))} {
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			groups, _ := filepath.Glob(pattern + name)
			for _, g := range groups {
				left = append(left, "control group "+g)
			}
		}
	}
	return left
}

// shortSum is how servers name what belongs to a directory where paths cannot be used.
func shortSum(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:6])
}

// concerned returns the processes, without this one, that name something below dir in their
// arguments or environment, or that live in it.
func concerned(dir string) []int {
	files, _ := filepath.Glob("/proc/[0-9]*")
	var pids []int
	for _, proc := range files {
		pid, _ := strconv.Atoi(filepath.Base(proc))
		if pid != os.Getpid() && concerns(proc, dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// concerns is concerned for one process.
func concerns(proc, dir string) bool {
	for _, name := range []string{"cmdline", "environ"} {
		if text, _ := os.ReadFile(filepath.Join(proc, name)); bytes.Contains(text, []byte(dir)) {
			return true
		}
	}
	for _, name := range []string{"cwd", "root"} {
		if path, _ := os.Readlink(filepath.Join(proc, name)); strings.HasPrefix(path, dir) {
			return true
		}
	}
	return false
}
