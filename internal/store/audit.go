package store

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"github.com/kilnvm/kiln"
)

// RecordAudit stores one change. Nothing changes it afterwards, and only its age removes it.
func (s *Store) RecordAudit(ctx context.Context, e kiln.AuditEvent) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := exec(ctx, tx, `INSERT INTO audit (id, org_id, at, token_id, token_name, address, action, target, detail_json)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			e.ID, e.OrgID, nanos(e.Time), e.TokenID, e.TokenName, e.Address, e.Action, e.Target, jsonColumn{e.Detail})
		if err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
		return nil
	})
}

// Audit returns up to limit events of an organisation, or of all for orgID "", newest
// first, that are older than the one with the ID before, which must be one of them; "" means
// from the newest.
func (s *Store) Audit(ctx context.Context, orgID, before string, limit int) ([]kiln.AuditEvent, error) {
	query, args := `SELECT id, org_id, at, token_id, token_name, address, action, target, detail_json FROM audit WHERE 1 = 1`, []any{}
	if orgID != "" {
		query, args = query+` AND org_id = ?`, append(args, orgID)
	}
	if before != "" {
		query, args = query+` AND (at, id) < (SELECT b.at, b.id FROM audit b WHERE b.id = ?)`, append(args, before)
		if err := s.checkPlace(ctx, orgID, before); err != nil {
			return nil, err
		}
	}
	rows, err := s.readers.QueryContext(ctx, query+` ORDER BY at DESC, id DESC LIMIT ?`, append(args, limit)...)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	list, err := collect(rows, func(r scanner) (e kiln.AuditEvent, err error) {
		return e, r.Scan(&e.ID, &e.OrgID, timeColumn{&e.Time}, &e.TokenID, &e.TokenName, &e.Address, &e.Action, &e.Target, jsonColumn{&e.Detail})
	})
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	return list, nil
}

// CountOldAudit returns how many events were recorded before a time.
func (s *Store) CountOldAudit(ctx context.Context, before time.Time) (n int, err error) {
	if err = s.readers.QueryRowContext(ctx, `SELECT COUNT(*) FROM audit WHERE at < ?`, nanos(before)).Scan(&n); err != nil {
		return 0, fmt.Errorf("audit log: %w", err)
	}
	return n, nil
}

// DropOldAudit removes the events that were recorded before a time.
func (s *Store) DropOldAudit(ctx context.Context, before time.Time) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		if _, err := exec(ctx, tx, `DELETE FROM audit WHERE at < ?`, nanos(before)); err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
		return nil
	})
}

// auditID is what IDs of events look like. PostgreSQL does not take every text.
var auditID = regexp.MustCompile(`^` + kiln.AuditIDPrefix + `[a-z0-9]+$`)

// checkPlace says so if an event is not one that the organisation sees: older than it would
// be none, which would look like the end of the log.
func (s *Store) checkPlace(ctx context.Context, orgID, id string) error {
	known := auditID.MatchString(id)
	if known {
		err := s.readers.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM audit WHERE id = ? AND (org_id = ? OR ? = ''))`, id, orgID, orgID).Scan(&known)
		if err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
	}
	if !known {
		return kiln.Errorf(kiln.CodeInvalid, "before: %q is not the ID of an event", id)
	}
	return nil
}
