package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/span"
	"github.com/kilnvm/kiln/internal/vmm"
)

// Wake lets a paused sandbox run again. One that runs is left alone, which is no error.
func (m *Manager) Wake(ctx context.Context, id string) (*kiln.Sandbox, error) {
	b, err := m.livingBox(ctx, id)
	if err != nil {
		return nil, err
	}
	_, leave, err := m.use(ctx, b)
	if err != nil {
		return nil, err
	}
	leave()
	s := b.snapshot()
	return &s, nil
}

// wake makes a paused box run. It is not given up with the request that asked for it:
// others may wait for it.
func (m *Manager) wake(ctx context.Context, b *box) error {
	ctx, err := b.beginChange(ctx, kiln.SandboxPaused, kiln.SandboxWaking, nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.opts.Limits.RestoreTimeout)
	defer cancel()
	begun := time.Now()
	var resumed bool
	err = span.Do(ctx, "wake", func(ctx context.Context) (err error) {
		resumed, err = m.bringBack(ctx, b)
		return err
	})
	if err != nil {
		return m.notWoken(ctx, b, resumed, err)
	}
	b.endChange(kiln.SandboxRunning, func(s *kiln.Sandbox) {
		s.Reason, s.PausedAt = "", time.Time{}
		if s.ExpiresAt.IsZero() { // its time stood still; that of a fork's parent did not
			s.ExpiresAt = time.Now().Add(s.TTL)
		}
	})
	m.goOn(b)
	if err := m.save(context.WithoutCancel(ctx), b); err != nil {
		return err
	}
	m.log.Info("sandbox woke", "sandbox", b.id, "took", time.Since(begun))
	return nil
}

// bringBack restores the machine of a paused box and has the daemon notice that time has
// passed. resumed says whether the guest has run, and may have changed its disk.
func (m *Manager) bringBack(ctx context.Context, b *box) (resumed bool, err error) {
	if _, err := m.readSaved(b.dir); err != nil {
		return false, err
	}
	if err := b.promise(m.reserve); err != nil {
		return false, err
	}
	done, err := m.turn(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	if err := m.save(ctx, b); err != nil {
		return false, err
	}
	if err := m.checkBlobs(ctx, b.plan.spec.Rootfs); err != nil {
		return false, err
	}
	machine, err := m.restoreSaved(ctx, b)
	if err != nil {
		return false, err
	}
	if err := span.Do(ctx, "resume", machine.Resume); err != nil {
		return true, fmt.Errorf("resume: %w", err)
	}
	err = span.Do(ctx, "identity", func(ctx context.Context) error { return b.client.Refresh(ctx, b.snapshot().AccessToken, entropy()) })
	if err != nil {
		return true, fmt.Errorf("clock: %w", err)
	}
	return true, m.save(ctx, b) // with the process, should the server die
}

// restoreSaved starts a machine from what is saved in b's folder. It is paused.
func (m *Manager) restoreSaved(ctx context.Context, b *box) (vmm.Machine, error) {
	if err := m.connect(ctx, b); err != nil {
		return nil, err
	}
	machine, err := m.restoreVM(ctx, b, stateIn(filepath.Join(b.dir, savedName)))
	if err != nil {
		return nil, err
	}
	m.adopt(b, machine)
	return machine, nil
}

// notWoken makes a box paused again if its guest has not run, and ends it if it has: its
// disk may have moved on from its memory.
func (m *Manager) notWoken(ctx context.Context, b *box, resumed bool, err error) error {
	told := wakeError(b.id, err)
	if resumed || isDamaged(err) {
		b.endChange(kiln.SandboxWaking, nil)
		m.end(b, kiln.SandboxFailed, "did not wake: "+err.Error())
		return told
	}
	b.mu.Lock()
	machine := b.machine
	b.mu.Unlock()
	if machine != nil {
		b.detach().Close()
		err = errors.Join(err, machine.Kill())
	}
	err = errors.Join(err, b.disconnect())
	b.giveBack()
	b.endChange(kiln.SandboxPaused, func(s *kiln.Sandbox) {
		if s.PausedAt.IsZero() {
			s.PausedAt, s.ExpiresAt = time.Now(), time.Time{}
		}
	})
	m.log.Error("sandbox did not wake", "sandbox", b.id, "error", err)
	return errors.Join(told, m.save(context.WithoutCancel(ctx), b))
}

func wakeError(id string, err error) error {
	var known *kiln.Error
	if errors.As(err, &known) {
		return &kiln.Error{Code: known.Code, Message: "sandbox " + id + " did not wake: " + known.Message, Hint: known.Hint, Err: err}
	}
	return &kiln.Error{Code: kiln.CodeUnavailable, Message: "sandbox " + id + " did not wake: " + err.Error(),
		Hint: "the server's log says more", Err: err}
}

// adoptPaused takes over a paused sandbox of an earlier server.
func (m *Manager) adoptPaused(ctx context.Context, s *kiln.Sandbox) error {
	dir := m.dir(s.ID)
	vm, err := m.readSaved(dir)
	if isDamaged(err) {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, unsavedName)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	b := m.newBox(*s, &plan{
		template: &kiln.Template{ID: s.TemplateID, Name: s.Template, OrgID: s.OrgID},
		version:  &kiln.Version{TemplateID: s.TemplateID, Number: s.Version, Metadata: kiln.Metadata{Egress: vm.Spec.Egress}},
		spec:     vm.Spec, size: vm.Spec.Size,
	}, nil)
	close(b.started)
	b.console = vm.Console
	return m.add(b)
}

// entropy returns fresh random bytes for a guest.
func entropy() []byte {
	b := make([]byte, entropyBytes)
	_, _ = rand.Read(b) // never fails: crypto/rand.Read aborts the program instead
	return b
}
