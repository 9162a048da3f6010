package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnvm/kiln"
)

// Pause saves a running sandbox and gives back its process, its CPU and its memory. It
// goes on where it was when somebody uses it next, even under another server. Connections
// to it are cut; commands are not ended. A request that is given up does not stop it.
func (m *Manager) Pause(ctx context.Context, id string) (*kiln.Sandbox, error) {
	b, err := m.livingBox(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := m.pause(ctx, b, "paused by request", nil); err != nil {
		return nil, err
	}
	s := b.snapshot()
	return &s, nil
}

// pauseAlone pauses a box that nobody waits for.
func (m *Manager) pauseAlone(b *box, reason string, allowed func() error) {
	err := m.pause(context.Background(), b, reason, allowed)
	if err != nil && kiln.CodeOf(err) != kiln.CodeConflict { // else it ends, is used or paused
		m.log.Error("sandbox could not be paused", "sandbox", b.id, "reason", reason, "error", err)
	}
}

func (m *Manager) pause(ctx context.Context, b *box, reason string, allowed func() error) error {
	ctx, err := b.beginChange(ctx, kiln.SandboxRunning, kiln.SandboxPausing, allowed)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.opts.Limits.SaveTimeout)
	defer cancel()
	begun := time.Now()
	if err := m.suspend(ctx, b); err != nil {
		return m.notPaused(ctx, b, err)
	}
	b.endChange(kiln.SandboxPaused, func(s *kiln.Sandbox) {
		s.Reason, s.PausedAt, s.ExpiresAt = reason, time.Now(), time.Time{}
	})
	b.giveBack()
	if err := m.save(context.WithoutCancel(ctx), b); err != nil {
		return err
	}
	m.log.Info("sandbox paused", "sandbox", b.id, "reason", reason, "took", time.Since(begun))
	return nil
}

// suspend saves b's machine and ends it. When it fails before the machine has been ended,
// the machine can go on.
func (m *Manager) suspend(ctx context.Context, b *box) error {
	if err := m.save(ctx, b); err != nil {
		return err
	}
	b.mu.Lock()
	machine := b.machine
	b.stopClocks()
	b.mu.Unlock()
	unsaved := filepath.Join(b.dir, unsavedName)
	if err := errors.Join(os.RemoveAll(unsaved), os.Mkdir(unsaved, 0o700)); err != nil {
		return err
	}
	if err := machine.Pause(ctx); err != nil {
		return fmt.Errorf("stop the VM: %w", err)
	}
	if err := machine.Capture(ctx, stateIn(unsaved)); err != nil {
		return err
	}
	vm := savedVM{VMM: m.opts.Driver.Info(), Spec: b.plan.spec, Network: b.network() != nil, SavedAt: time.Now(), Console: filepath.Base(machine.ConsoleLog())}
	if info, err := os.Stat(stateIn(unsaved).Memory); err != nil {
		return err
	} else {
		vm.MemoryBytes = info.Size()
	}
	if err := writeSaved(unsaved, vm); err != nil {
		return err
	}
	client := b.detach()
	client.Close()
	if err := machine.Kill(); err != nil {
		return fmt.Errorf("kill VM: %w", err)
	}
	if err := b.disconnect(); err != nil {
		return err
	}
	return keepSaved(b.dir)
}

// notPaused lets a sandbox whose pause failed run on, if that is possible, and returns why
// it failed.
func (m *Manager) notPaused(ctx context.Context, b *box, err error) error {
	err = fmt.Errorf("sandbox %s could not be paused: %w", b.id, err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.opts.Limits.EndTimeout)
	defer cancel()
	b.mu.Lock()
	machine := b.machine
	b.mu.Unlock()
	resumed := errors.New("its VM has been ended")
	if machine != nil {
		resumed = errors.Join(os.RemoveAll(filepath.Join(b.dir, unsavedName)), machine.Resume(ctx))
	}
	b.endChange(kiln.SandboxRunning, nil)
	if resumed != nil {
		m.end(b, kiln.SandboxFailed, fmt.Sprintf("%v; nor could it go on: %v", err, resumed))
		return err
	}
	m.goOn(b)
	return errors.Join(err, m.save(ctx, b))
}

// goOn starts the clocks of a sandbox that runs.
func (m *Manager) goOn(b *box) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ending {
		b.startClocks(func() { m.expire(b) }, func() { m.becomeIdle(b) })
	}
}
