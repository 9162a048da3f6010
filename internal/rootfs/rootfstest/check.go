package rootfstest

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Fsck fails the test unless e2fsck finds nothing at all to say.
func Fsck(t testing.TB, path string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "e2fsck", "-fn", path).CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for _, l := range lines {
		if err != nil || !strings.HasPrefix(l, "e2fsck ") && !strings.HasPrefix(l, "Pass ") && !strings.HasPrefix(l, path+": ") {
			t.Fatalf("e2fsck: %v\n%s", err, out)
		}
	}
}

// Mount mounts an image read-only through a loop device until the test ends.
func Mount(t testing.TB, path string) string {
	t.Helper()
	at := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "ext4", "-o", "ro,loop", path, at).CombinedOutput(); err != nil {
		t.Fatalf("mount (this test needs root): %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return at
}
