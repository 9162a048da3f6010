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

// Token is a credential of an organisation. Only the hash of its secret is stored.
type Token struct {
	ID        string
	OrgID     string
	Name      string // for people
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never
}

// tokenPrefix lets people and secret scanners recognise a token.
const tokenPrefix = "kiln_"

func hashToken(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// CreateToken stores a token and returns its secret, which cannot be had again.
func (s *Store) CreateToken(ctx context.Context, t Token) (secret string, err error) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand.Read aborts the program instead
	secret = tokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := exec(ctx, tx, `INSERT INTO tokens (id, org_id, name, hash, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)`,
			t.ID, t.OrgID, t.Name, hashToken(secret), nanos(t.CreatedAt), nanos(t.ExpiresAt))
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

// Authenticate returns the organisation whose token secret is, or an error with code
// unauthorized. What is looked up is a hash, so the time it takes tells nothing about how
// much of a wrong secret is right.
func (s *Store) Authenticate(ctx context.Context, secret string) (orgID string, err error) {
	var expires time.Time
	err = s.readers.QueryRowContext(ctx, `SELECT org_id, expires_at FROM tokens WHERE hash = ?`, hashToken(secret)).
		Scan(&orgID, timeColumn{&expires})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", kiln.Errorf(kiln.CodeUnauthorized, "unknown token")
	case err != nil:
		return "", fmt.Errorf("token: %w", err)
	case !expires.IsZero() && !time.Now().Before(expires):
		return "", kiln.Errorf(kiln.CodeUnauthorized, "token has expired")
	}
	return orgID, nil
}

// RevokeTokens deletes the tokens of that name of an organisation.
func (s *Store) RevokeTokens(ctx context.Context, orgID, name string) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		if _, err := exec(ctx, tx, `DELETE FROM tokens WHERE org_id = ? AND name = ?`, orgID, name); err != nil {
			return fmt.Errorf("token %q: %w", name, err)
		}
		return nil
	})
}
