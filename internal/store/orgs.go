package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/kilnvm/kiln"
)

// CreateOrg stores an organisation. A name that is taken is a conflict.
func (s *Store) CreateOrg(ctx context.Context, o kiln.Org) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := exec(ctx, tx, `INSERT INTO orgs (id, name, created_at) VALUES (?, ?, ?)`, o.ID, o.Name, nanos(o.CreatedAt))
		if duplicate(err) {
			return kiln.Errorf(kiln.CodeConflict, "an organisation named %q exists already", o.Name)
		}
		if err != nil {
			return fmt.Errorf("organisation %q: %w", o.Name, err)
		}
		return nil
	})
}

// Orgs returns every organisation by name.
func (s *Store) Orgs(ctx context.Context) ([]kiln.Org, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT id, name, created_at FROM orgs ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("organisations: %w", err)
	}
	list, err := collect(rows, scanOrg)
	if err != nil {
		return nil, fmt.Errorf("organisations: %w", err)
	}
	return list, nil
}

// Org returns the organisation with that name or ID.
func (s *Store) Org(ctx context.Context, nameOrID string) (kiln.Org, error) {
	return findOrg(ctx, s.readers, nameOrID)
}

func scanOrg(r scanner) (o kiln.Org, err error) {
	return o, r.Scan(&o.ID, &o.Name, timeColumn{&o.CreatedAt})
}

func findOrg(ctx context.Context, q querier, nameOrID string) (kiln.Org, error) {
	// IDs hold an underscore and names do not, so that at most one row matches; the
	// organisation "local" is both.
	o, err := scanOrg(q.QueryRowContext(ctx, `SELECT id, name, created_at FROM orgs WHERE id = ? OR name = ?`, nameOrID, nameOrID))
	if errors.Is(err, sql.ErrNoRows) {
		return o, kiln.Errorf(kiln.CodeNotFound, "organisation %q does not exist", nameOrID)
	}
	if err != nil {
		return o, fmt.Errorf("organisation %q: %w", nameOrID, err)
	}
	return o, nil
}

// DeleteOrg removes an organisation and its tokens. It is a conflict while it has
// templates or living sandboxes.
func (s *Store) DeleteOrg(ctx context.Context, nameOrID string) (o kiln.Org, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		if o, err = findOrg(ctx, tx, nameOrID); err != nil {
			return err
		}
		if o.ID == kiln.LocalOrgID {
			return kiln.Errorf(kiln.CodeForbidden, "organisation %q runs the server and cannot be deleted", o.Name)
		}
		for what, query := range map[string]string{
			"templates": `SELECT COUNT(*) FROM templates WHERE org_id = ? AND deleted_at = 0`,
			"sandboxes": `SELECT COUNT(*) FROM sandboxes WHERE org_id = ? AND living`,
		} {
			var n int
			if err := tx.QueryRowContext(ctx, query, o.ID).Scan(&n); err != nil {
				return fmt.Errorf("organisation %q: %w", o.Name, err)
			}
			if n > 0 {
				return kiln.Errorf(kiln.CodeConflict, "organisation %q still has %d %s", o.Name, n, what).WithHint("delete them first, with a token of that organisation")
			}
		}
		for _, statement := range []string{`DELETE FROM tokens WHERE org_id = ?`, `DELETE FROM orgs WHERE id = ?`} {
			if _, err := exec(ctx, tx, statement, o.ID); err != nil {
				return fmt.Errorf("organisation %q: %w", o.Name, err)
			}
		}
		return nil
	})
	return o, err
}
