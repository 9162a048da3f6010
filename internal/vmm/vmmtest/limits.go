package vmmtest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
)

// confine shows that the VMM is handed over before the guest runs, and that a refusal ends
// the start without a trace.
func (s *suite) confine(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cfg := s.config(t, "confine")
	refused := errors.New("no room")
	var confined int
	cfg.Confine = func(cmd *exec.Cmd) error {
		if err := cmd.Start(); err != nil {
			return err
		}
		confined = cmd.Process.Pid
		return refused
	}
	if m, err := s.driver.Boot(ctx, cfg); !errors.Is(err, refused) {
		t.Errorf("error %v, want that of Confine", err)
		if err == nil {
			m.Kill()
		}
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(confined)); err == nil {
		t.Errorf("process %d is left", confined)
	}
	cfg.Confine = func(cmd *exec.Cmd) error {
		if err := cmd.Start(); err != nil {
			return err
		}
		confined = cmd.Process.Pid
		if console, err := os.ReadFile(cfg.Dir + "/console.log"); err == nil && len(console) > 0 {
			t.Error("the guest printed something before its VMM was confined")
		}
		return nil
	}
	m, err := s.driver.Boot(ctx, cfg)
	must(t, err)
	defer m.Kill()
	if confined != m.PID() {
		t.Errorf("process %d was confined, want %d", confined, m.PID())
	}
	waitReady(t, ctx, m)
}

// diskLimits shows that limited disks are slow: what bounds the time below cannot be met
// from above by a busy host.
func (s *suite) diskLimits(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cfg := s.config(t, "limits")
	cfg.Disk = kiln.DiskLimits{BandwidthMBps: 8}
	m, err := s.driver.Boot(ctx, cfg)
	must(t, err)
	defer m.Kill()
	client := waitReady(t, ctx, m)
	begun := time.Now()
	output(t, ctx, client, "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=32 2>/dev/null; sync")
	// The first second's worth may pass at once.
	if took := time.Since(begun); took < 2500*time.Millisecond {
		t.Errorf("32 MiB were written in %s at a limit of 8 MiB/s", took)
	}
}
