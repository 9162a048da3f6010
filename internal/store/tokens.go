package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/kilnvm/kiln"
)

func hashToken(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// CreateToken stores a token and returns its secret, which cannot be had again. It takes the
// name of one that has expired.
func (s *Store) CreateToken(ctx context.Context, t kiln.Token) (secret string, err error) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand.Read aborts the program instead
	secret = kiln.TokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		if _, err := exec(ctx, tx, `DELETE FROM tokens WHERE org_id = ? AND name = ? AND expires_at <> 0 AND expires_at <= ?`, t.OrgID, t.Name, nanos(time.Now())); err != nil {
			return fmt.Errorf("token %q: %w", t.Name, err)
		}
		var taken int
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM tokens WHERE org_id = ? AND name = ?`, t.OrgID, t.Name).Scan(&taken); err != nil {
			return fmt.Errorf("token %q: %w", t.Name, err)
		}
		if taken > 0 {
			return kiln.Errorf(kiln.CodeConflict, "a token named %q exists already", t.Name).WithHint("revoke it, or choose another name")
		}
		if _, err := findOrg(ctx, tx, t.OrgID); err != nil {
			return err
		}
		_, err := exec(ctx, tx, `INSERT INTO tokens (id, org_id, name, scopes_json, hash, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			t.ID, t.OrgID, t.Name, jsonColumn{t.Scopes}, hashToken(secret), nanos(t.CreatedAt), nanos(t.ExpiresAt))
		if err != nil {
			return fmt.Errorf("token %q: %w", t.Name, err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return secret, nil
}

// Authenticate returns for whom whoever knows secret acts, or an error with code
// unauthorized. What is looked up is a hash, so the time it takes tells nothing about how
// much of a wrong secret is right.
func (s *Store) Authenticate(ctx context.Context, secret string) (kiln.Principal, error) {
	var p kiln.Principal
	err := s.readers.QueryRowContext(ctx, `SELECT id, org_id, name, scopes_json, expires_at FROM tokens WHERE hash = ?`, hashToken(secret)).
		Scan(&p.TokenID, &p.OrgID, &p.TokenName, jsonColumn{&p.Scopes}, timeColumn{&p.ExpiresAt})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return kiln.Principal{}, kiln.Errorf(kiln.CodeUnauthorized, "unknown token")
	case err != nil:
		return kiln.Principal{}, fmt.Errorf("token: %w", explain(err))
	case !p.ExpiresAt.IsZero() && !time.Now().Before(p.ExpiresAt):
		return kiln.Principal{}, kiln.Errorf(kiln.CodeUnauthorized, "token has expired")
	}
	return p, nil
}

// Tokens returns the tokens of an organisation, oldest first. Their secrets are known to
// nobody but who has them.
func (s *Store) Tokens(ctx context.Context, orgID string) ([]kiln.Token, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT id, org_id, name, scopes_json, created_at, expires_at FROM tokens
		WHERE org_id = ? ORDER BY created_at, id`, orgID)
	if err != nil {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	list, err := collect(rows, func(r scanner) (t kiln.Token, err error) {
		return t, r.Scan(&t.ID, &t.OrgID, &t.Name, jsonColumn{&t.Scopes}, timeColumn{&t.CreatedAt}, timeColumn{&t.ExpiresAt})
	})
	if err != nil {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	return list, nil
}

// RevokeToken deletes the token of an organisation with that ID or name and returns its ID.
func (s *Store) RevokeToken(ctx context.Context, orgID, idOrName string) (id string, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		err := tx.QueryRowContext(ctx, `DELETE FROM tokens WHERE org_id = ? AND (id = ? OR name = ?) RETURNING id`, orgID, idOrName, idOrName).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return kiln.Errorf(kiln.CodeNotFound, "token %q does not exist", idOrName)
		}
		if err != nil {
			return fmt.Errorf("token %q: %w", idOrName, err)
		}
		return nil
	})
	return id, err
}
