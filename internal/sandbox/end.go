package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/vmm"
)

// endedCause is why a start is abandoned.
type endedCause struct {
	final  kiln.SandboxStatus
	reason string
}

func (e endedCause) Error() string { return e.reason }

// end is the only way in which a sandbox ends. Whoever calls it first decides the final
// status and the reason; everybody returns when it is over. It takes no context: it must
// always run to its end.
func (m *Manager) end(b *box, final kiln.SandboxStatus, reason string) {
	if !b.beginEnding(reason) {
		<-b.ended
		return
	}
	b.cancelStart(endedCause{final, reason})
	<-b.started
	b.abandonChange(endedCause{final, reason}) // from here on nobody else acquires anything for b

	ctx, cancel := context.WithTimeout(context.Background(), m.opts.Limits.EndTimeout)
	defer cancel()
	if err := m.save(ctx, b); err != nil {
		m.log.Error("sandbox is ending", "sandbox", b.id, "error", err)
	}
	if err := m.releaseAll(ctx, b); err != nil {
		final, reason = kiln.SandboxFailed, fmt.Sprintf("%s; not everything was released", reason)
		m.log.Error("release sandbox", "sandbox", b.id, "error", err)
	}
	b.change(func(s *kiln.Sandbox) {
		s.Status, s.Reason, s.EndedAt, s.Process = final, reason, time.Now(), kiln.Process{}
	})
	if err := m.save(ctx, b); err != nil {
		m.log.Error("sandbox ended", "sandbox", b.id, "error", err)
	}
	m.remove(b)
	close(b.ended)
	m.log.Info("sandbox ended", "sandbox", b.id, "status", final, "reason", reason)
}

// releaseAll gives back everything but the row, in the reverse order of acquisition.
func (m *Manager) releaseAll(ctx context.Context, b *box) error {
	b.mu.Lock()
	machine, client := b.machine, b.client
	b.stopClocks()
	b.mu.Unlock()

	var errs []error
	if client != nil {
		client.Close()
	}
	if machine != nil {
		if err := machine.Kill(); err != nil {
			errs = append(errs, fmt.Errorf("kill VM: %w", err))
		}
	}
	if err := b.disconnect(); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, m.dropGroup(ctx, b.id), os.RemoveAll(b.dir))
	b.giveBack()
	return errors.Join(errs...)
}

// watch ends the box when its VM ends by itself.
func (m *Manager) watch(b *box, machine vmm.Machine) {
	select {
	case <-b.ended:
	case <-machine.Done():
		if !b.has(machine) {
			return // the box was paused and goes on without it
		}
		reason := "the VM shut down"
		if err := machine.Err(); err != nil {
			reason = fmt.Sprintf("the VM ended: %v", err)
			m.log.Warn("VM ended", "sandbox", b.id, "error", err, "console", consoleTail(machine))
		}
		m.end(b, kiln.SandboxFailed, reason)
	}
}

// expire ends the box because its time is over, or pauses it if it is persistent.
func (m *Manager) expire(b *box) {
	switch {
	case !b.expired():
	case b.snapshot().Persistent:
		m.pauseAlone(b, "expired", nil)
	default:
		m.end(b, kiln.SandboxDeleted, "expired")
	}
}

// consoleTail returns the last lines that the guest printed, for the log.
func consoleTail(machine vmm.Machine) string {
	const limit = 2 << 10
	text, err := os.ReadFile(machine.ConsoleLog())
	if err != nil {
		return ""
	}
	return string(text[max(0, len(text)-limit):])
}
