package store

import (
	"context"
	"fmt"

	"github.com/kilnvm/kiln"
)

// AddNetworkSlot records a network slot of a node before it exists.
func (s *Store) AddNetworkSlot(ctx context.Context, node string, slot int) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := exec(ctx, tx, `INSERT INTO network_slots (node, slot) VALUES (?, ?)`, node, slot)
		if duplicate(err) {
			return kiln.Errorf(kiln.CodeConflict, "network slot %d exists already", slot)
		}
		if err != nil {
			return fmt.Errorf("network slot %d: %w", slot, err)
		}
		return nil
	})
}

// ClaimNetworkSlot gives a free slot an owner. One that has an owner is a conflict.
func (s *Store) ClaimNetworkSlot(ctx context.Context, node string, slot int, owner string) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		n, err := exec(ctx, tx, `UPDATE network_slots SET owner = ? WHERE node = ? AND slot = ? AND owner = ''`, owner, node, slot)
		if err != nil {
			return fmt.Errorf("network slot %d: %w", slot, err)
		}
		if n == 0 {
			return kiln.Errorf(kiln.CodeConflict, "network slot %d is not free", slot)
		}
		return nil
	})
}

// FreeNetworkSlot takes the owner of a slot away, if there is one.
func (s *Store) FreeNetworkSlot(ctx context.Context, node string, slot int) error {
	return s.changeSlot(ctx, `UPDATE network_slots SET owner = '' WHERE node = ? AND slot = ?`, node, slot)
}

// RemoveNetworkSlot forgets a slot that no longer exists.
func (s *Store) RemoveNetworkSlot(ctx context.Context, node string, slot int) error {
	return s.changeSlot(ctx, `DELETE FROM network_slots WHERE node = ? AND slot = ?`, node, slot)
}

func (s *Store) changeSlot(ctx context.Context, query, node string, slot int) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		if _, err := exec(ctx, tx, query, node, slot); err != nil {
			return fmt.Errorf("network slot %d: %w", slot, err)
		}
		return nil
	})
}

// NetworkSlots returns the owners of a node's slots, "" for one that is free.
func (s *Store) NetworkSlots(ctx context.Context, node string) (map[int]string, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT slot, owner FROM network_slots WHERE node = ?`, node)
	if err != nil {
		return nil, fmt.Errorf("network slots: %w", err)
	}
	type row struct {
		slot  int
		owner string
	}
	list, err := collect(rows, func(sc scanner) (row, error) {
		var r row
		return r, sc.Scan(&r.slot, &r.owner)
	})
	if err != nil {
		return nil, fmt.Errorf("network slots: %w", err)
	}
	slots := map[int]string{}
	for _, r := range list {
		slots[r.slot] = r.owner
	}
	return slots, nil
}
