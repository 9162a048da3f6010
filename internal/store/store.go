package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/kilnvm/kiln"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is an open database. Its methods are safe for concurrent use, and each is one
// transaction. Values that are passed in and returned are copies.
type Store struct {
	writer  *sql.DB
	readers *sql.DB
}

// Open opens the SQLite database at path, creates it with mode 0600 if need be, and
// brings its schema up to date.
func Open(ctx context.Context, path string) (*Store, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	// SQLite gives its side files the mode of the database, which holds access tokens.
	f, err := os.OpenFile(abs, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "database cannot be opened: %w", err).WithHint("check the data directory and its owner")
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	s := &Store{}
	if s.writer, err = sql.Open("sqlite", dsn(abs, url.Values{"_txlock": {"immediate"}})); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	s.writer.SetMaxOpenConns(1)
	if err := migrate(ctx, s.writer); err != nil {
		_ = s.writer.Close()
		return nil, err
	}
	if s.readers, err = sql.Open("sqlite", dsn(abs, url.Values{"_pragma": {"query_only(1)"}})); err != nil {
		_ = s.writer.Close()
		return nil, fmt.Errorf("database: %w", err)
	}
	s.readers.SetMaxOpenConns(4)
	return s, nil
}

func dsn(path string, more url.Values) string {
	q := url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(NORMAL)", "foreign_keys(1)"}}
	for k, v := range more {
		q[k] = append(q[k], v...)
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}
	return u.String()
}

func migrate(ctx context.Context, db *sql.DB) error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("database schema: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, dir)
	if err != nil {
		return fmt.Errorf("database schema: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("database schema: %w", err)
	}
	return nil
}

// DB returns the writing connection, for the job queue that lives in the same database.
// There is one connection only: never use it inside a transaction of this package.
func (s *Store) DB() *sql.DB { return s.writer }

// Close closes the database.
func (s *Store) Close() error { return errors.Join(s.readers.Close(), s.writer.Close()) }

// TxFunc does more work in a transaction of the store, such as putting a job on the queue.
type TxFunc func(ctx context.Context, tx *sql.Tx) error

// write runs fn in a transaction and commits it unless fn fails.
func (s *Store) write(ctx context.Context, fn TxFunc) error {
	tx, err := s.writer.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // no effect after Commit
	if err := fn(ctx, tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("database: %w", diskFull(err))
	}
	return nil
}

// querier is a *sql.DB or a *sql.Tx.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// exec runs one statement and returns how many rows it changed.
func exec(ctx context.Context, tx *sql.Tx, query string, args ...any) (int64, error) {
	res, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, diskFull(err)
	}
	return res.RowsAffected()
}

// duplicate reports whether err says that a unique value exists already.
func duplicate(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && (e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

func diskFull(err error) error {
	var e *sqlite.Error
	if errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_FULL {
		return kiln.Errorf(kiln.CodeExhausted, "disk full: %w", err).WithHint("free space in the data directory")
	}
	return err
}
