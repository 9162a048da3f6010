package sandbox

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
)

// ledger is what a box's network was used for before its present slot. Every slot counts
// from its own beginning, so that what a sandbox did before a pause is kept here and in its
// row.
type ledger struct {
	unclaimed kiln.NetworkUse // what the slot had counted before it was the sandbox's
	denied    []kiln.Denial   // before the last pause
}

// Bounds of what is kept of the deny log over a pause.
const (
	deniedKept   = 1024
	deniedRemain = 24 * time.Hour
)

// NetworkUse returns what a sandbox has sent and received and what was refused, from its
// start to now or to its end.
func (m *Manager) NetworkUse(ctx context.Context, id string) (kiln.NetworkUse, error) {
	if m.opts.Network == nil {
		return kiln.NetworkUse{}, errNoNetwork
	}
	b := m.box(id)
	if b == nil {
		s, err := m.opts.Store.Sandbox(ctx, id)
		if err != nil {
			return kiln.NetworkUse{}, err
		}
		return s.Network, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used()
}

// used is what has passed by now. The lock is held.
func (b *box) used() (kiln.NetworkUse, error) {
	if b.slot == nil {
		return b.view.Network, nil
	}
	now, err := b.slot.Use()
	if err != nil {
		return kiln.NetworkUse{}, err
	}
	return b.view.Network.Plus(now).Minus(b.ledger.unclaimed), nil
}

// Denials returns what a living sandbox was not allowed to reach, the latest first.
func (m *Manager) Denials(ctx context.Context, id string) ([]kiln.Denial, error) {
	if m.opts.Network == nil {
		return nil, errNoNetwork
	}
	b := m.box(id)
	if b == nil {
		if _, err := m.opts.Store.Sandbox(ctx, id); err != nil {
			return nil, err
		}
		return nil, kiln.Errorf(kiln.CodeConflict, "sandbox %s has ended, and its deny log with it", id)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refusals()
}

// refusals is the deny log by now. The lock is held.
func (b *box) refusals() ([]kiln.Denial, error) {
	var now []kiln.Denial
	if b.slot != nil {
		var err error
		if now, err = b.slot.Denials(); err != nil {
			return nil, err
		}
	}
	return joinDenials(now, b.ledger.denied, time.Now()), nil
}

// joinDenials adds an earlier log to a later one and leaves out what is too old.
func joinDenials(later, earlier []kiln.Denial, now time.Time) []kiln.Denial {
	type key struct {
		destination, protocol, reason string
		port                          int
	}
	at := map[key]int{}
	var list []kiln.Denial
	for _, d := range slices.Concat(later, earlier) {
		k := key{d.Destination, d.Protocol, d.Reason, d.Port}
		if i, known := at[k]; known {
			list[i].Attempts += d.Attempts
			continue
		}
		if now.Sub(d.LastAt) < deniedRemain {
			at[k] = len(list)
			list = append(list, d)
		}
	}
	slices.SortStableFunc(list, func(a, b kiln.Denial) int {
		return cmp.Or(b.LastAt.Compare(a.LastAt), cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Port, b.Port))
	})
	return list[:min(len(list), deniedKept)]
}

// settle keeps what a slot has counted, before it is given back. The lock is held.
func (b *box) settle(slot *network.Slot) {
	use, useErr := b.used()
	denied, deniedErr := b.refusals()
	b.ledger.unclaimed = kiln.NetworkUse{}
	if useErr == nil { // else what it did last is not counted, which is no reason to keep it
		b.view.Network = use
	}
	if deniedErr == nil {
		b.ledger.denied = denied
	}
}

// waits notes what the slot of a box has counted while nobody had claimed it.
func (b *box) waits() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.slot == nil {
		return nil
	}
	var err error
	b.ledger.unclaimed, err = b.slot.Use()
	return err
}
