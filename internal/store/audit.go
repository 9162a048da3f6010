package store

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnvm/kiln"
)

// RecordAudit stores one change. Nothing changes or removes it afterwards.
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

// AuditCursor is a place in the audit log: before the event of this time and ID.
type AuditCursor struct {
	Time time.Time
	ID   string
}

// Audit returns up to limit events of an organisation, or of all for orgID "", newest
// first, from before the given place. The next place is nil at the end.
func (s *Store) Audit(ctx context.Context, orgID string, before *AuditCursor, limit int) ([]kiln.AuditEvent, *AuditCursor, error) {
	query, args := `SELECT id, org_id, at, token_id, token_name, address, action, target, detail_json FROM audit WHERE 1 = 1`, []any{}
	if orgID != "" {
		query, args = query+` AND org_id = ?`, append(args, orgID)
	}
	if before != nil {
		query, args = query+` AND (at, id) < (?, ?)`, append(args, nanos(before.Time), before.ID)
	}
	rows, err := s.readers.QueryContext(ctx, query+` ORDER BY at DESC, id DESC LIMIT ?`, append(args, limit+1)...)
	if err != nil {
		return nil, nil, fmt.Errorf("audit log: %w", err)
	}
	list, err := collect(rows, func(r scanner) (e kiln.AuditEvent, err error) {
		return e, r.Scan(&e.ID, &e.OrgID, timeColumn{&e.Time}, &e.TokenID, &e.TokenName, &e.Address, &e.Action, &e.Target, jsonColumn{&e.Detail})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("audit log: %w", err)
	}
	if len(list) <= limit {
		return list, nil, nil
	}
	last := list[limit-1]
	return list[:limit], &AuditCursor{Time: last.Time, ID: last.ID}, nil
}
