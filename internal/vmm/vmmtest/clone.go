package vmmtest

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm"
)

// saved is a captured machine with its disk.
type saved struct {
	vmm.State
	disk string
}

// clone is a machine restored from what was saved.
type clone struct {
	vmm.Machine
	disk string
}

// A number in a process's memory, files in the machine's memory and on its disk.
const leaveTraces = `mkdir -p /run/d
(n=0; while :; do n=$((n+1)); echo $n >/run/d/count; sleep 0.05; done) </dev/null >/dev/null 2>&1 &
head -c 5000000 /dev/urandom >/run/d/memory; md5sum /run/d/memory >/run/d/sum; echo disk >/root/disk; echo first >/run/d/name`

const (
	findTraces  = "md5sum -c /run/d/sum >&2 && cat /root/disk /run/d/name"
	countGoesOn = `a=$(cat /run/d/count); while [ "$(cat /run/d/count)" = "$a" ]; do sleep 0.05; done`
)

// captureClone captures a clone, restores what was saved twice, captures one of those and
// restores that: memory, disk and processes go on each time from where they were.
func (s *suite) captureClone(t *testing.T, ctx context.Context, golden saved) {
	first := s.clone(t, ctx, golden, "first")
	output(t, ctx, waitReady(t, ctx, first), "sh", "-c", leaveTraces)
	state := s.save(t, ctx, first)

	second, other := s.clone(t, ctx, state, "second"), s.clone(t, ctx, state, "other")
	for name, m := range map[string]clone{"second": second, "other": other} {
		client := waitReady(t, ctx, m)
		if got := output(t, ctx, client, "sh", "-c", findTraces); got != "disk\nfirst\n" {
			t.Errorf("%s sees %q", name, got)
		}
		output(t, ctx, client, "sh", "-c", countGoesOn)
		output(t, ctx, client, "sh", "-c", "echo "+name+" >/run/d/name")
	}

	third := s.clone(t, ctx, s.save(t, ctx, second), "third")
	if got := output(t, ctx, waitReady(t, ctx, third), "sh", "-c", findTraces); got != "disk\nsecond\n" {
		t.Errorf("the third generation sees %q", got)
	}
	if got := output(t, ctx, waitReady(t, ctx, other), "cat", "/run/d/name"); got != "other\n" {
		t.Errorf("another clone of the same state sees %q", got)
	}
}

// clone restores a machine and lets it run.
func (s *suite) clone(t *testing.T, ctx context.Context, from saved, name string) clone {
	t.Helper()
	return s.cloneOn(t, ctx, from, name, nil)
}

// cloneOn is clone with a network.
func (s *suite) cloneOn(t *testing.T, ctx context.Context, from saved, name string, n *vmm.Network) clone {
	t.Helper()
	content, err := os.ReadFile(from.disk)
	must(t, err)
	cfg := s.config(t, name)
	cfg.Network = n
	must(t, os.WriteFile(cfg.Scratch, content, 0o600))
	m, err := s.driver.Restore(ctx, cfg, from.State)
	if err != nil {
		t.Fatalf("restore %s: %v", name, err)
	}
	t.Cleanup(func() { must(t, m.Kill()) })
	must(t, m.Resume(ctx))
	return clone{m, cfg.Scratch}
}

// save captures a running clone and kills it.
func (s *suite) save(t *testing.T, ctx context.Context, m clone) saved {
	t.Helper()
	must(t, m.Pause(ctx))
	dir := testkit.ShortTempDir(t)
	state := vmm.State{Memory: filepath.Join(dir, "memory"), State: filepath.Join(dir, "state")}
	if err := m.Capture(ctx, state); err != nil {
		t.Fatal(err)
	}
	must(t, m.Kill())
	info, err := os.Stat(state.Memory)
	if want := int64(s.size.MemoryMiB) << 20; err != nil || info.Size() != want {
		t.Errorf("the saved memory: %v, %v, want %d bytes", info, err, want)
	}
	disk := filepath.Join(dir, "disk")
	must(t, artifact.CopySparse(ctx, disk, m.disk))
	return saved{state, disk}
}
