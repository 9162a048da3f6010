package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is an open database. Its methods are safe for concurrent use, and each is one
// transaction. Values that are passed in and returned are copies.
type Store struct {
	dialect dialect
	writer  *sql.DB
	readers *pool
	conns   *pgxpool.Pool // of PostgreSQL
}

func migrate(ctx context.Context, d goose.Dialect, db *sql.DB, opts ...goose.ProviderOption) error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("database schema: %w", err)
	}
	p, err := goose.NewProvider(d, db, dir, opts...)
	if err != nil {
		return fmt.Errorf("database schema: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("database schema: %w", err)
	}
	return nil
}

// DB returns the connections that write, for the job queue that lives in the same
// database. SQLite has one only: never use it inside a transaction of this package.
func (s *Store) DB() *sql.DB { return s.writer }

// Close closes the database.
func (s *Store) Close() error {
	if s.conns != nil {
		err := s.writer.Close()
		s.conns.Close()
		return err
	}
	return errors.Join(s.readers.Close(), s.writer.Close())
}

// TxFunc does more work in a transaction of the store, such as putting a job on the queue.
// It may be run again if another transaction got in its way.
type TxFunc func(ctx context.Context, tx *sql.Tx) error

// maxCollisions bounds how often a transaction is run again. Whenever two collide one of
// them gets through, so many in a row mean many that write the same rows at once.
const maxCollisions = 50

// write runs fn in a transaction and commits it unless fn fails. Transactions see each
// other as if they ran one after the other: SQLite does so by waiting, PostgreSQL by
// refusing one of two that collide, which is then run again.
func (s *Store) write(ctx context.Context, fn func(context.Context, *txn) error) error {
	for n := 0; ; n++ {
		err := s.try(ctx, fn)
		if !collided(err) || n == maxCollisions {
			return err
		}
		pause := time.Duration(rand.Int64N(int64(min(n+1, 20)) * int64(2*time.Millisecond)))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Store) try(ctx context.Context, fn func(context.Context, *txn) error) error {
	var opts *sql.TxOptions // SQLite's are exclusive by the way they begin
	if s.dialect == postgresDialect {
		opts = &sql.TxOptions{Isolation: sql.LevelSerializable}
	}
	tx, err := s.writer.BeginTx(ctx, opts)
	if err != nil {
		return fmt.Errorf("database: %w", explain(err))
	}
	defer func() { _ = tx.Rollback() }() // no effect after Commit
	if err := fn(ctx, &txn{tx, s.dialect}); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("database: %w", explain(err))
	}
	return nil
}

// exec runs one statement and returns how many rows it changed.
func exec(ctx context.Context, tx *txn, query string, args ...any) (int64, error) {
	res, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, explain(err)
	}
	return res.RowsAffected()
}
