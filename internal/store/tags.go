package store

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnvm/kiln"
)

// setTag makes a name of a version, moving it if it exists.
func setTag(ctx context.Context, tx *txn, templateID, tag string, number int, at time.Time) error {
	_, err := exec(ctx, tx, `INSERT INTO version_tags (template_id, name, number, created_at) VALUES (?, ?, ?, ?)
		ON CONFLICT (template_id, name) DO UPDATE SET number = excluded.number, created_at = excluded.created_at`,
		templateID, tag, number, nanos(at))
	if err != nil {
		return fmt.Errorf("tag %q: %w", tag, err)
	}
	return nil
}

// SetTag makes tag a name of a version of a custom template, moving it if it exists. The
// version must be ready; 0 means the current one. It returns the version's number.
func (s *Store) SetTag(ctx context.Context, orgID, nameOrID string, number int, tag string) (int, error) {
	err := s.write(ctx, func(ctx context.Context, tx *txn) error {
		t, err := lookUpCustom(ctx, tx, orgID, nameOrID, "tagged")
		if err != nil {
			return err
		}
		n := number
		if n == 0 {
			if n = t.Current; n == 0 {
				return kiln.Errorf(kiln.CodeConflict, "template %q has no ready version yet", t.Name)
			}
		}
		if _, err := usableVersion(ctx, tx, t, n); err != nil {
			return err
		}
		number = n
		return setTag(ctx, tx, t.ID, tag, n, time.Now())
	})
	return number, err
}

// RemoveTag removes a tag of a custom template; the version stays.
func (s *Store) RemoveTag(ctx context.Context, orgID, nameOrID, tag string) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		t, err := lookUpCustom(ctx, tx, orgID, nameOrID, "untagged")
		if err != nil {
			return err
		}
		n, err := exec(ctx, tx, `DELETE FROM version_tags WHERE template_id = ? AND name = ?`, t.ID, tag)
		if err != nil {
			return fmt.Errorf("tag %q of template %q: %w", tag, t.Name, err)
		}
		if n == 0 {
			return kiln.Errorf(kiln.CodeNotFound, "template %q has no tag %q", t.Name, tag)
		}
		return nil
	})
}

// Tags returns the tags of a template by name.
func (s *Store) Tags(ctx context.Context, templateID string) ([]kiln.Tag, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT g.name, g.number, v.build_id, g.created_at
		FROM version_tags g JOIN versions v ON v.template_id = g.template_id AND v.number = g.number
		WHERE g.template_id = ? ORDER BY g.name`, templateID)
	if err != nil {
		return nil, fmt.Errorf("tags of template %s: %w", templateID, err)
	}
	list, err := collect(rows, func(r scanner) (t kiln.Tag, err error) {
		return t, r.Scan(&t.Name, &t.Version, &t.BuildID, timeColumn{&t.CreatedAt})
	})
	if err != nil {
		return nil, fmt.Errorf("tags of template %s: %w", templateID, err)
	}
	return list, nil
}
