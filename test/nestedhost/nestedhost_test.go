package nestedhost

import (
	"strings"
	"testing"

	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// patience bounds every wait for a VM there, beside other tests on this machine.
const patience = "5m"

// TestNestedHost shows what this machine's kernel may be unable to show: control groups of
// version 2, and virtual machines on KVM that are reached over vsock.
func TestNestedHost(t *testing.T) {
	h := Start(t)
	onKVM := map[string]string{"KILN_TEST_ACCEL": "kvm", "KILN_TEST_PATIENCE": patience}

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
	t.Run("driver over vsock", func(t *testing.T) {
		// How QEMU is confined, limits a disk, gets a network and refuses what is wrong has to do
		// with neither KVM nor vsock.
		passed := h.Test(t, "internal/vmm/qemu", onKVM, "-test.run=TestConformance|TestChannel",
			"-test.skip=TestConformance/(confine|disk_limits|network|refusals)")
		for _, name := range []string{
			"TestConformance/boot/on_KVM", "TestConformance/boot/over_vsock", "TestChannelIsChosen/numbers_are_reserved",
		} {
			if !passed[name] {
				t.Errorf("%s did not run", name)
			}
		}
	})
	t.Run("driver over virtio-serial", func(t *testing.T) {
		overSerial := map[string]string{"KILN_TEST_ACCEL": "kvm", "KILN_TEST_CHANNEL": "serial", "KILN_TEST_PATIENCE": patience}
		// Streams and clones over this port are tried without a nested host.
		passed := h.Test(t, "internal/vmm/qemu", overSerial, "-test.run=TestConformance/boot", "-test.skip=TestConformance/boot/streams")
		if !passed["TestConformance/boot/on_KVM"] || passed["TestConformance/boot/over_vsock"] {
			t.Error("the machines had other means")
		}
	})
}
