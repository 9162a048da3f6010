package qemu_test

import (
	"os"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm/qemu"
	"github.com/kilnvm/kiln/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestConformance(t *testing.T) {
	testkit.RequireVM(t)
	driver, err := qemu.New(t.Context(), qemu.Options{Accel: testkit.Accelerator(), Channel: os.Getenv("KILN_TEST_CHANNEL")})
	if err != nil {
		t.Fatal(err)
	}
	vmmtest.Run(t, driver)
}

func TestNewExplains(t *testing.T) {
	for name, c := range map[string]struct {
		options qemu.Options
		want    kiln.ErrorCode
	}{
		"missing":     {qemu.Options{Binary: "no-such-qemu", Accel: qemu.TCG}, kiln.CodeUnavailable},
		"no QEMU":     {qemu.Options{Binary: "true", Accel: qemu.TCG}, kiln.CodeUnavailable},
		"accelerator": {qemu.Options{Accel: "xen"}, kiln.CodeInvalid},
	} {
		if _, err := qemu.New(t.Context(), c.options); kiln.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}
