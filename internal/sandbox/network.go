package sandbox

import (
	"context"
	"fmt"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/span"
	"github.com/kilnvm/kiln/internal/vmm"
)

// connect gives b a slot, which lets nothing out. It is part of b, so that ending b gives it
// back.
func (m *Manager) connect(ctx context.Context, b *box) error {
	if m.opts.Network == nil {
		return nil
	}
	err := span.Do(ctx, "network slot", func(ctx context.Context) error {
		slot, err := m.opts.Network.Lend(ctx, b.id)
		if err == nil {
			b.mu.Lock()
			b.slot = slot
			b.mu.Unlock()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	return nil
}

// permit puts the policy of b into force in its slot, before its guest can send anything.
func (m *Manager) permit(ctx context.Context, b *box) error {
	b.mu.Lock()
	slot, policy := b.slot, b.view.Egress
	b.mu.Unlock()
	if slot == nil {
		return nil
	}
	if err := span.Do(ctx, "network policy", func(context.Context) error { return slot.SetPolicy(policy) }); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	b.change(func(s *kiln.Sandbox) { s.Egress = slot.Policy() })
	return nil
}

// disconnect gives back the slot of a box that goes on without a VM. Its policy stays.
func (b *box) disconnect() error {
	b.mu.Lock()
	slot := b.slot
	if slot != nil {
		b.settle(slot)
	}
	b.slot = nil
	b.mu.Unlock()
	if slot == nil {
		return nil
	}
	b.traffic.leave(slot)
	if err := slot.Release(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	return nil
}

func (b *box) network() *vmm.Network {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.slot == nil {
		return nil
	}
	return b.slot.Config()
}

// checkEgress refuses a policy that cannot be kept.
func (m *Manager) checkEgress(p kiln.EgressPolicy) error {
	if m.opts.Network == nil && !p.IsZero() {
		return errNoNetwork
	}
	return p.Validate()
}

var errNoNetwork = kiln.Errorf(kiln.CodeInvalid, "sandboxes of this server have no network").
	WithHint("network.enabled = true in the server's configuration gives them one")

// SetEgress changes what a running sandbox may reach. Connections that stay allowed go on.
// What the policy does not say stays as the template and the cluster have it.
func (m *Manager) SetEgress(ctx context.Context, id string, policy kiln.EgressPolicy) (*kiln.Sandbox, error) {
	b, slot, err := m.slotOf(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := slot.SetPolicy(policy.Over(b.plan.version.Metadata.Egress)); err != nil {
		return nil, err
	}
	b.change(func(s *kiln.Sandbox) { s.Egress = slot.Policy() })
	if err := m.save(ctx, b); err != nil {
		return nil, err
	}
	s := b.snapshot()
	return &s, nil
}

// NetworkSlots returns how many connections to the network there are.
func (m *Manager) NetworkSlots() kiln.NetworkSlots {
	if m.opts.Network == nil {
		return kiln.NetworkSlots{}
	}
	return m.opts.Network.Counts()
}

// slotOf returns the slot of a sandbox that has one.
func (m *Manager) slotOf(ctx context.Context, id string) (*box, *network.Slot, error) {
	if m.opts.Network == nil {
		return nil, nil, errNoNetwork
	}
	b := m.box(id)
	if b == nil {
		if _, err := m.opts.Store.Sandbox(ctx, id); err != nil {
			return nil, nil, err
		}
		return nil, nil, kiln.Errorf(kiln.CodeConflict, "sandbox %s has ended", id)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.slot == nil {
		return nil, nil, kiln.Errorf(kiln.CodeConflict, "sandbox %s has no network at the moment", id)
	}
	return b, b.slot, nil
}
