package qemu_test

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm"
	"github.com/kilnvm/kiln/internal/vmm/qemu"
)

// BenchmarkRestore measures from Restore to the daemon's first answer. In the same loop it
// starts a QEMU without any machine until its monitor answers, and reports the ratio.
func BenchmarkRestore(b *testing.B) {
	testkit.RequireVM(b)
	driver, err := qemu.New(b.Context(), qemu.Options{Accel: qemu.TCG})
	if err != nil {
		b.Fatal(err)
	}
	cfg, state := golden(b, driver)
	var bare, answers, loaded []time.Duration
	dir := testkit.ShortTempDir(b)
	for b.Loop() {
		bare = append(bare, bareStart(b, dir))
		clone := cfg
		clone.Dir, clone.Scratch = dir, filepath.Join(dir, "scratch")
		if err := artifact.CopySparse(b.Context(), clone.Scratch, cfg.Scratch); err != nil {
			b.Fatal(err)
		}
		begun := time.Now()
		m, err := driver.Restore(b.Context(), clone, state)
		if err != nil {
			b.Fatal(err)
		}
		loaded = append(loaded, time.Since(begun))
		if err := m.Resume(b.Context()); err != nil {
			b.Fatal(err)
		}
		client := guest.New(m.Dial)
		if err := client.WaitReady(b.Context()); err != nil {
			b.Fatal(err)
		}
		answers = append(answers, time.Since(begun))
		client.Close()
		if err := m.Kill(); err != nil {
			b.Fatal(err)
		}
		if err := os.Remove(clone.Scratch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(ms(quantile(bare, 50)), "bare-p50-ms")
	b.ReportMetric(ms(quantile(loaded, 50)), "loaded-p50-ms")
	b.ReportMetric(ms(quantile(answers, 50)), "p50-ms")
	b.ReportMetric(ms(quantile(answers, 99)), "p99-ms")
	b.ReportMetric(float64(quantile(answers, 50))/float64(quantile(bare, 50)), "p50/bare")
	b.ReportMetric(float64(quantile(answers, 99))/float64(quantile(answers, 50)), "p99/p50")
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func quantile(d []time.Duration, percent int) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[(len(d)-1)*percent/100]
}

// golden boots a machine and captures it.
func golden(b *testing.B, driver vmm.Driver) (vmm.Config, vmm.State) {
	b.Helper()
	dir := testkit.ShortTempDir(b)
	cfg := vmm.Config{
		ID: "golden", Dir: dir, Boot: testkit.BootBundle(b), Size: kiln.Sizes()[0],
		Rootfs: testkit.MinimalRootfs(b), Scratch: testkit.ScratchDisk(b, 64), Memory: filepath.Join(dir, "memory"),
	}
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	begun := time.Now()
	m, err := driver.Boot(ctx, cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Kill()
	client := guest.New(m.Dial)
	defer client.Close()
	if err := client.WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	b.Logf("cold boot to the daemon's answer: %v", time.Since(begun).Round(time.Millisecond))
	state := vmm.State{Memory: filepath.Join(dir, "golden.memory"), State: filepath.Join(dir, "golden.state")}
	if err := client.Quiesce(ctx); err != nil {
		b.Fatal(err)
	}
	client.Close()
	if err := m.Pause(ctx); err != nil {
		b.Fatal(err)
	}
	if err := m.Capture(ctx, state); err != nil {
		b.Fatal(err)
	}
	return cfg, state
}

// bareStart starts QEMU without a machine and waits for its monitor.
func bareStart(b *testing.B, dir string) time.Duration {
	b.Helper()
	socket := filepath.Join(dir, "bare.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command("qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-qmp", "unix:"+socket)
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	conn, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	var greeting any
	if err := json.NewDecoder(conn).Decode(&greeting); err != nil {
		b.Fatal(err)
	}
	return time.Since(begun)
}
