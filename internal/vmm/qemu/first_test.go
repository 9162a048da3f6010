package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm"
)

// bootFirst boots a VM that waits for nothing. It counts how often its guest is started again.
func bootFirst(t *testing.T, change func(*Driver, *vmm.Config)) (*machine, *atomic.Int64) {
	t.Helper()
	testkit.RequireVM(t)
	restarts := &atomic.Int64{}
	d, err := New(t.Context(), Options{Accel: TCG, Restarted: func() { restarts.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	cfg := vmm.Config{
		ID: "first", Dir: testkit.ShortTempDir(t), Boot: testkit.BootBundle(t), Size: kiln.Sizes()[0],
		Rootfs: testkit.MinimalRootfs(t), Scratch: testkit.ScratchDisk(t, 64),
	}
	change(d, &cfg)
	m, err := d.Boot(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Kill() })
	return m.(*machine), restarts
}

// A guest that hangs on its way up is started again and comes up.
func TestGuestThatHangsIsStartedAgain(t *testing.T) {
	m, restarts := bootFirst(t, func(*Driver, *vmm.Config) {})
	ctx := t.Context()
	if err := m.Pause(ctx); err != nil { // what a guest without timers looks like
		t.Fatal(err)
	}
	client := guest.Of(m)
	defer client.Close()
	if err := client.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if restarts.Load() == 0 {
		t.Error("it was not started again")
	}
	if err := client.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	<-m.Done() // from now on the guest may switch the machine off
	if m.Err() != nil {
		t.Errorf("Err() = %v after a shutdown", m.Err())
	}
}

// A guest whose timers are wrong does not come up, and is not started for ever.
func TestGuestWithWrongTimersIsStartedAgain(t *testing.T) {
	m, restarts := bootFirst(t, func(d *Driver, _ *vmm.Config) {
		d.cmdline = strings.Replace(d.cmdline, fmt.Sprint(timerWord, timerKHz), fmt.Sprint(timerWord, 1000*timerKHz), 1)
	})
	if _, err := m.Dial(t.Context()); kiln.CodeOf(err) != kiln.CodeUnavailable {
		t.Fatalf("got %v, want %s", err, kiln.CodeUnavailable)
	}
	<-m.Done()
	if m.Err() == nil || restarts.Load() != maxRestarts {
		t.Errorf("%d restarts, then %v; want %d and an error", restarts.Load(), m.Err(), maxRestarts)
	}
}

// A guest that panics is not started again.
func TestGuestThatPanicsEnds(t *testing.T) {
	m, restarts := bootFirst(t, func(d *Driver, _ *vmm.Config) { d.cmdline += " rdinit=/none init=/none" })
	select {
	case <-m.Done():
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	if m.Err() == nil || restarts.Load() != 0 {
		t.Errorf("%d restarts, then %v", restarts.Load(), m.Err())
	}
}

// A guest whose own init system switches it off before the daemon answers is taken at its word:
// it is no guest with wrong timers, which looks the same from outside.
func TestGuestWhoseInitSwitchesItOffEnds(t *testing.T) {
	m, _ := bootFirst(t, func(_ *Driver, cfg *vmm.Config) {
		tree := t.TempDir()
		testkit.MinimalTree(t, tree)
		init := filepath.Join(tree, "lib/systemd/systemd")
		if err := os.MkdirAll(filepath.Dir(init), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(init, []byte("#!/bin/sh\nexec /bin/busybox poweroff -f\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		cfg.Rootfs, cfg.Init = filepath.Join(t.TempDir(), "rootfs"), kiln.InitSystemd
		testkit.Rootfs(t, tree, cfg.Rootfs)
	})
	if _, err := m.Dial(t.Context()); kiln.CodeOf(err) != kiln.CodeUnavailable {
		t.Fatalf("got %v, want %s", err, kiln.CodeUnavailable)
	}
	<-m.Done()
	console, err := os.ReadFile(m.ConsoleLog())
	if n := strings.Count(string(console), "becomes systemd"); err != nil || n != 1 {
		t.Errorf("its init was started %d times, %v\n%s", n, err, console)
	}
	if m.Err() != nil {
		t.Errorf("Err() = %v after it switched itself off", m.Err())
	}
}
