package doctor_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnvm/kiln/internal/doctor"
	"github.com/kilnvm/kiln/internal/network"
)

func options(dir string) doctor.Options {
	return doctor.Options{
		DataDir:     dir,
		Accelerator: func(context.Context) (string, string, error) { return "kvm", "", nil },
		Network:     func() []network.Finding { return network.Examine(network.Settings{}, nil) },
		Channel:     func() (string, string, error) { return "serial", "no vsock", nil },
	}
}

func find(t *testing.T, checks []doctor.Check, name string) doctor.Check {
	t.Helper()
	for _, c := range checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %q in %+v", name, checks)
	return doctor.Check{}
}

func TestAHostThatWasSetUpPasses(t *testing.T) {
	dir := t.TempDir()
	checks := doctor.Run(t.Context(), options(dir))
	if doctor.Failed(checks) {
		t.Errorf("checks failed on a host after make setup: %+v", checks)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("the checks left %v behind, %v", left, err)
	}
}

func TestEveryFailureNamesItsRemedy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		check  string
		break_ func(*doctor.Options)
		want   doctor.Status
	}{
		{"qemu", func(o *doctor.Options) { o.QEMU = "no-such-qemu" }, doctor.Fail},
		{"guest kernel", func(o *doctor.Options) { o.Kernel = "/no/such/kernel" }, doctor.Fail},
		{"guest kernel", func(o *doctor.Options) { o.Kernel = os.TempDir() }, doctor.Fail},
		{"data directory", func(o *doctor.Options) { o.DataDir = filepath.Join(file, "below") }, doctor.Fail},
		{"boot probe", func(o *doctor.Options) {
			o.Accelerator = func(context.Context) (string, string, error) { return "", "", errors.New("no boot") }
		}, doctor.Fail},
		{"boot probe", func(o *doctor.Options) {
			o.Accelerator = func(context.Context) (string, string, error) { return "tcg", "no KVM", nil }
		}, doctor.Warn},
		{"guest channel", func(o *doctor.Options) {
			o.Channel = func() (string, string, error) { return "", "", errors.New("no vsock") }
		}, doctor.Fail},
		{"network subnet", func(o *doctor.Options) {
			o.Network = func() []network.Finding {
				return []network.Finding{{Name: "network subnet", Err: errors.New("overlaps"), Fix: "another", Minor: true}}
			}
		}, doctor.Warn},
		{"network settings", func(o *doctor.Options) {
			o.Network = func() []network.Finding { return network.Examine(network.Settings{Subnet: "nonsense"}, nil) }
		}, doctor.Fail},
	} {
		o := options(t.TempDir())
		c.break_(&o)
		got := find(t, doctor.Run(t.Context(), o), c.check)
		if got.Status != c.want || got.Detail == "" || got.Fix == "" {
			t.Errorf("%s: %+v, want %s with a detail and a fix", c.check, got, c.want)
		}
	}
}
