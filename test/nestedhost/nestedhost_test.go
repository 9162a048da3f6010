package nestedhost

import (
	"strings"
	"testing"

	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// TestNestedHost shows what this machine's kernel may be unable to show: control groups of
// version 2, and virtual machines on KVM.
func TestNestedHost(t *testing.T) {
	h := Start(t)
	onKVM := map[string]string{"KILN_TEST_ACCEL": "kvm"}

	t.Run("control groups of version 2", func(t *testing.T) {
		if kind := h.Must(t, "stat", "-f", "-c", "%T", "/sys/fs/cgroup"); strings.TrimSpace(kind) != "cgroup2fs" {
			t.Fatalf("the nested host has control groups of another kind: %s", kind)
		}
		h.Test(t, "internal/cgroup", nil)
	})
	t.Run("probe", func(t *testing.T) {
		passed := h.Test(t, "internal/vmm/probe", onKVM, "-test.run=Accelerator")
		if !passed["TestAcceleratorIsProvenAndKept"] {
			t.Error("the probe did not find KVM")
		}
	})
	t.Run("driver", func(t *testing.T) {
		passed := h.Test(t, "internal/vmm/qemu", onKVM, "-test.run=TestConformance")
		if !passed["TestConformance/boot/on_KVM"] {
			t.Error("the machines did not run on KVM")
		}
	})
}
