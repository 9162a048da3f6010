package snapshot

import (
	"context"
	"fmt"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/vmm"
)

// connect gives the next VM of the bake a slot of its own.
func (k *bake) connect(ctx context.Context, policy kiln.EgressPolicy) error {
	if k.opts.Network == nil {
		return nil
	}
	slot, err := k.opts.Network.Acquire(ctx, "bake-"+k.spec.Size.Name, policy)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	k.slot = slot
	return nil
}

func (k *bake) network() *vmm.Network {
	if k.slot == nil {
		return nil
	}
	return k.slot.Config()
}

func (k *bake) disconnect() error {
	if k.slot == nil {
		return nil
	}
	slot := k.slot
	k.slot = nil
	return slot.Release()
}
