package store

import (
	"context"
	"fmt"

	"github.com/kilnvm/kiln"
)

// SetWarmTarget stores how many warm slots of a template at a size are kept, whatever the
// demand.
func (s *Store) SetWarmTarget(ctx context.Context, t kiln.WarmTarget) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := exec(ctx, tx, `INSERT INTO warm_targets (template_id, size, slots) VALUES (?, ?, ?)
			ON CONFLICT (template_id, size) DO UPDATE SET slots = excluded.slots`, t.TemplateID, t.Size, t.Slots)
		if err != nil {
			return fmt.Errorf("warm slots of template %s: %w", t.TemplateID, err)
		}
		return nil
	})
}

// WarmTargets returns the targets of templates that still exist.
func (s *Store) WarmTargets(ctx context.Context) ([]kiln.WarmTarget, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT t.org_id, w.template_id, w.size, w.slots FROM warm_targets w
		JOIN templates t ON t.id = w.template_id WHERE t.deleted_at = 0 ORDER BY w.template_id, w.size`)
	if err != nil {
		return nil, fmt.Errorf("warm slots: %w", err)
	}
	list, err := collect(rows, func(row scanner) (kiln.WarmTarget, error) {
		var t kiln.WarmTarget
		err := row.Scan(&t.OrgID, &t.TemplateID, &t.Size, &t.Slots)
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("warm slots: %w", err)
	}
	return list, nil
}
