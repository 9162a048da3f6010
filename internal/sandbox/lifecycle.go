package sandbox

import (
	"context"
	"time"

	"github.com/kilnvm/kiln"
)

// Keepalive lets a sandbox live for ttl from now on, whether that is longer or shorter
// than before; 0 means the default. The time of a paused one begins when it wakes. It
// returns the sandbox as it then is.
func (m *Manager) Keepalive(ctx context.Context, id string, ttl time.Duration) (*kiln.Sandbox, error) {
	return m.ChangeLifecycle(ctx, id, kiln.LifecycleChange{TTL: &ttl})
}

// ChangeLifecycle changes how long a sandbox lives and what happens then. It returns the
// sandbox as it then is.
func (m *Manager) ChangeLifecycle(ctx context.Context, id string, c kiln.LifecycleChange) (*kiln.Sandbox, error) {
	if c.TTL != nil {
		ttl, err := m.checkTTL(*c.TTL)
		if err != nil {
			return nil, err
		}
		c.TTL = &ttl
	}
	if c.IdleTimeout != nil {
		if err := m.checkIdleTimeout(*c.IdleTimeout); err != nil {
			return nil, err
		}
	}
	b, err := m.livingBox(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := b.changeLifecycle(c, func() { m.becomeIdle(b) }); err != nil {
		return nil, err
	}
	if err := m.save(ctx, b); err != nil {
		return nil, err
	}
	s := b.snapshot()
	return &s, nil
}

func (m *Manager) checkIdleTimeout(idle time.Duration) error {
	if idle != 0 && (idle < time.Second || idle > m.opts.Limits.MaxTTL) {
		return kiln.Errorf(kiln.CodeInvalid, "idle timeout of %s", idle).
			WithHint("it is between 1s and %s, or 0 for none", m.opts.Limits.MaxTTL)
	}
	return nil
}

func (b *box) changeLifecycle(c kiln.LifecycleChange, idle func()) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ending {
		return errEnding(b.id)
	}
	if c.Persistent != nil {
		b.view.Persistent = *c.Persistent
	}
	if c.IdleTimeout != nil {
		b.view.IdleTimeout = *c.IdleTimeout
		b.watchIdle(idle)
	}
	if c.TTL == nil {
		return nil
	}
	b.view.TTL = *c.TTL
	if b.view.ExpiresAt.IsZero() {
		return nil // it is paused
	}
	b.view.ExpiresAt = time.Now().Add(*c.TTL)
	if b.expiry != nil { // else a start is under way and sets the timer at its end
		b.expiry.Reset(*c.TTL)
	}
	return nil
}

// watchIdle begins the idle time anew if the sandbox runs. The lock is held.
func (b *box) watchIdle(idle func()) {
	if b.idle != nil {
		b.idle.Stop()
		b.idle = nil
	}
	if b.expiry != nil && b.view.IdleTimeout > 0 {
		b.idle = time.AfterFunc(b.view.IdleTimeout, idle)
	}
}
