package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/kilnvm/kiln"
)

// UpdateQuota changes the quota of a custom template and returns the template.
func (s *Store) UpdateQuota(ctx context.Context, orgID, nameOrID string, change func(kiln.Quota) (kiln.Quota, error)) (*kiln.Template, error) {
	var t *kiln.Template
	err := s.write(ctx, func(ctx context.Context, tx *txn) (err error) {
		if t, err = lookUp(ctx, tx, orgID, nameOrID); err != nil {
			return err
		}
		if t.BuiltIn && orgID != "" {
			return kiln.Errorf(kiln.CodeForbidden, "template %q is built-in and its quota is the server's", t.Name)
		}
		if t.Quota, err = change(t.Quota); err != nil {
			return err
		}
		t.UpdatedAt = time.Now().UTC()
		if _, err := exec(ctx, tx, `UPDATE templates SET quota_json = ?, updated_at = ? WHERE id = ?`, jsonColumn{t.Quota}, nanos(t.UpdatedAt), t.ID); err != nil {
			return fmt.Errorf("quota of template %q: %w", t.Name, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// TemplateQuota returns the quota of a template, also of a deleted one.
func (s *Store) TemplateQuota(ctx context.Context, templateID string) (kiln.Quota, error) {
	var q kiln.Quota
	err := s.readers.QueryRowContext(ctx, `SELECT quota_json FROM templates WHERE id = ?`, templateID).Scan(jsonColumn{&q})
	if errors.Is(err, sql.ErrNoRows) {
		return q, templateNotFound(templateID)
	}
	if err != nil {
		return q, fmt.Errorf("quota of template %s: %w", templateID, err)
	}
	return q, nil
}
