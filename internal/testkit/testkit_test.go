package testkit_test

import (
	"os/exec"
	"testing"

	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// The parts of a VM come out of the cache the second time.
func TestPartsAreMadeOnce(t *testing.T) {
	bundle := testkit.BootBundle(t)
	if again := testkit.BootBundle(t); again != bundle {
		t.Errorf("two boot bundles: %v, %v", bundle, again)
	}
	rootfs := testkit.MinimalRootfs(t)
	if again := testkit.MinimalRootfs(t); again != rootfs {
		t.Errorf("two root filesystems: %s, %s", rootfs, again)
	}
	for _, image := range []string{rootfs, testkit.ScratchDisk(t, 64)} {
		if out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", image, err, out)
		}
	}
}
