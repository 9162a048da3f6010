package store

import (
	"context"
	"fmt"

	"github.com/kilnvm/kiln"
)

// SetAliases makes names further names of a built-in template, in place of those it had.
func (s *Store) SetAliases(ctx context.Context, templateID string, names []string) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		if _, err := exec(ctx, tx, `DELETE FROM template_aliases WHERE template_id = ?`, templateID); err != nil {
			return fmt.Errorf("aliases of template %s: %w", templateID, err)
		}
		for _, name := range names {
			_, err := exec(ctx, tx, `INSERT INTO template_aliases (name, template_id) VALUES (?, ?)
				ON CONFLICT (name) DO UPDATE SET template_id = excluded.template_id`, name, templateID)
			if err != nil {
				return fmt.Errorf("alias %q of template %s: %w", name, templateID, err)
			}
		}
		return nil
	})
}

// StartBuild makes a deferred build one of a node's and runs also, which may be nil, in the
// same transaction. started is false, and nothing happens, if the build is not deferred any
// more.
func (s *Store) StartBuild(ctx context.Context, buildID, node string, also TxFunc) (started bool, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		n, err := exec(ctx, tx, `UPDATE builds SET active = TRUE, node = ? WHERE id = ? AND NOT active
			AND EXISTS (SELECT 1 FROM versions v WHERE v.build_id = builds.id AND v.status = ?)`, node, buildID, kiln.VersionPending)
		if err != nil {
			return fmt.Errorf("start build %s: %w", buildID, err)
		}
		if started = n > 0; !started || also == nil {
			return nil
		}
		return also(ctx, tx.Tx)
	})
	return started, err
}
