package vmmtest

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kilnvm/kiln/internal/vmm"
)

// means shows by the descriptors of a running VMM that the kernel runs the guest, and
// carries its connections, if and only if
// the driver's name says so. Sub-tests bear the names of what was found, so that
// whoever runs the suite can ask for them.
func (s *suite) means(t *testing.T, m vmm.Machine) {
	t.Helper()
	uses := descriptors(t, m.PID())
	hasVCPU := slices.ContainsFunc(uses, func(d string) bool { return strings.HasPrefix(d, "anon_inode:kvm-vcpu") })
	if emulated := strings.HasPrefix(s.driver.Info().Name, "qemu-tcg"); emulated == hasVCPU {
		t.Errorf("a VMM of the driver %s has these descriptors: %v", s.driver.Info().Name, uses)
	}
	if hasVCPU {
		t.Run("on KVM", func(*testing.T) {})
	}
	hasVsock := slices.Contains(uses, "/dev/vhost-vsock")
	if strings.HasSuffix(s.driver.Info().Name, "-vsock") != hasVsock {
		t.Errorf("a VMM of the driver %s has these descriptors: %v", s.driver.Info().Name, uses)
	}
	if hasVsock {
		t.Run("over vsock", func(*testing.T) {})
	}
}

// descriptors returns what the descriptors of a process refer to.
func descriptors(t *testing.T, pid int) []string {
	t.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // else closed meanwhile
			all = append(all, target)
		}
	}
	return all
}
