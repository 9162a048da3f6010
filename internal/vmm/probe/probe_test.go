package probe

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestGuestBootsOnSoftwareEmulation(t *testing.T) {
	testkit.RequireVM(t)
	if err := (Options{Timeout: time.Minute}).withDefaults().boot(t.Context(), TCG); err != nil {
		t.Fatal(err)
	}
}

func TestAcceleratorIsProvenAndKept(t *testing.T) {
	testkit.RequireVM(t)
	o := Options{CacheFile: filepath.Join(t.TempDir(), "probe.json")}
	first, err := Accelerator(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", first)
	if first.Reason == "" || first.Accel != KVM && first.Accel != TCG {
		t.Fatalf("got %+v", first)
	}
	if want := os.Getenv("KILN_TEST_ACCEL"); want != "" && first.Accel != want {
		t.Errorf("got %+v, want %s", first, want)
	}
	if _, err := os.Stat(o.CacheFile); err != nil {
		return // the result was not conclusive
	}
	o.Timeout = time.Nanosecond // a second guest could not boot
	if again, err := Accelerator(t.Context(), o); err != nil || again != first {
		t.Fatalf("kept %+v, %v; want %+v", again, err, first)
	}
}

// script makes a program that stands in for QEMU where QEMU cannot be made to misbehave.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n[ \"$1\" = --version ] && echo version 9 && exit\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

const tcgWorks = `case "$*" in *"-accel tcg"*) echo kiln-probe-ok; exit 0;; esac`

func TestVerdicts(t *testing.T) {
	device := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, body, device string
		accel, reason      string
		kept               bool
	}{
		{"boots", "echo kiln-probe-ok", device, KVM, "booted on KVM", true},
		{"aborts", tcgWorks + "\necho cannot set MSR >&2; exit 1", device, TCG, "cannot set MSR", true},
		{"ends without a word", tcgWorks, device, TCG, "does not run on kvm", true},
		{"spins", tcgWorks + "\nexec sleep 1000", device, TCG, "did not end in time", false},
		{"no device", tcgWorks, filepath.Join(t.TempDir(), "none"), TCG, "virtualisation is off", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cache := filepath.Join(t.TempDir(), "probe.json")
			r, err := Accelerator(t.Context(), Options{
				Binary: script(t, c.body), Device: c.device, Timeout: 2 * time.Second, CacheFile: cache,
			})
			if err != nil || r.Accel != c.accel || !strings.Contains(r.Reason, c.reason) {
				t.Fatalf("got %+v, %v; want %s because of %q", r, err, c.accel, c.reason)
			}
			if _, err := os.Stat(cache); (err == nil) != c.kept {
				t.Errorf("kept: %v, want %v", err == nil, c.kept)
			}
		})
	}
}

func TestNothingWorks(t *testing.T) {
	for _, binary := range []string{script(t, "exit 1"), "no-such-qemu"} {
		if _, err := Accelerator(t.Context(), Options{Binary: binary}); kiln.CodeOf(err) != kiln.CodeUnavailable {
			t.Errorf("%s: %v, want %s", binary, err, kiln.CodeUnavailable)
		}
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := Accelerator(ctx, Options{Binary: script(t, "exec sleep 1000")})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}
