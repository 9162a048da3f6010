package qemu

import (
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm"
)

// counter counts what is logged.
type counter struct{ atomic.Int64 }

func (c *counter) Write(b []byte) (int, error) { c.Add(1); return len(b), nil }

// bootFirst boots a VM that waits for nothing.
func bootFirst(t *testing.T, change func(d *Driver)) (*machine, *counter) {
	t.Helper()
	testkit.RequireVM(t)
	restarts := &counter{}
	d, err := New(t.Context(), Options{Accel: TCG, Log: slog.New(slog.NewTextHandler(restarts, nil))})
	if err != nil {
		t.Fatal(err)
	}
	change(d)
	m, err := d.Boot(t.Context(), vmm.Config{
		ID: "first", Dir: testkit.ShortTempDir(t), Boot: testkit.BootBundle(t), Size: kiln.Sizes()[0],
		Rootfs: testkit.MinimalRootfs(t), Scratch: testkit.ScratchDisk(t, 64),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Kill() })
	return m.(*machine), restarts
}

// A guest that hangs on its way up is started again and comes up.
func TestGuestThatHangsIsStartedAgain(t *testing.T) {
	m, restarts := bootFirst(t, func(*Driver) {})
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
	m, restarts := bootFirst(t, func(d *Driver) {
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
	m, restarts := bootFirst(t, func(d *Driver) { d.cmdline += " rdinit=/none init=/none" })
	select {
	case <-m.Done():
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	if m.Err() == nil || restarts.Load() != 0 {
		t.Errorf("%d restarts, then %v", restarts.Load(), m.Err())
	}
}
