package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/orphan"
)

// Reconcile releases what an earlier server left: it ends the VMs of sandboxes that the
// store believes alive, removes their folders and marks them ended, and removes folders
// that belong to no sandbox. Paused sandboxes are taken over; no other one survives its
// server. Call it once, before the
// first Create. It goes on after an error and returns all of them.
func (m *Manager) Reconcile(ctx context.Context) error {
	left, err := m.opts.Store.LivingSandboxes(ctx)
	if err != nil {
		return fmt.Errorf("reconcile sandboxes: %w", err)
	}
	var errs []error
	for _, s := range left {
		if err := m.reconcile(ctx, s); err != nil {
			errs = append(errs, fmt.Errorf("reconcile sandbox %s: %w", s.ID, err))
		}
	}
	return errors.Join(append(errs, m.sweep(ctx), m.sweepGroups(ctx))...)
}

// reconcile takes over a paused sandbox; of any other one it ends what is left, its row
// last.
func (m *Manager) reconcile(ctx context.Context, s *kiln.Sandbox) error {
	if m.box(s.ID) != nil {
		return nil
	}
	reason := "server restarted: lost while " + string(s.Status)
	if s.Status == kiln.SandboxPaused {
		err := m.adoptPaused(ctx, s)
		if err == nil {
			m.log.Info("paused sandbox of an earlier server", "sandbox", s.ID)
			return nil
		}
		reason = err.Error()
	}
	if err := orphan.End(ctx, s.Process); err != nil {
		return err
	}
	if err := m.removeLeftover(ctx, m.dir(s.ID)); err != nil {
		return err
	}
	s.Status, s.Reason, s.EndedAt, s.Process = kiln.SandboxFailed, reason, time.Now(), kiln.Process{}
	if err := m.opts.Store.UpdateSandbox(ctx, s); err != nil {
		return err
	}
	m.log.Info("sandbox of an earlier server ended", "sandbox", s.ID, "reason", reason)
	return nil
}

// sweep removes the folders that are nobody's. All of them are: this runs before the
// first sandbox is made.
func (m *Manager) sweep(ctx context.Context) error {
	entries, err := os.ReadDir(m.opts.Dir)
	if err != nil {
		return fmt.Errorf("reconcile sandboxes: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if m.box(e.Name()) == nil {
			errs = append(errs, m.removeLeftover(ctx, filepath.Join(m.opts.Dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// removeLeftover removes a folder after ending the VM that writes in it: one that was
// started but not recorded yet when the server died.
func (m *Manager) removeLeftover(ctx context.Context, dir string) error {
	if _, err := orphan.EndHolders(ctx, scratchIn(dir)); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
