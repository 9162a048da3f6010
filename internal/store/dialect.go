package store

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/kilnvm/kiln"
)

// dialect is in what the two databases differ, as far as the SQL of this package goes: all
// statements are written with "?" for a parameter.
type dialect int

const (
	sqliteDialect dialect = iota
	postgresDialect
)

// bind returns the query with the parameters written as the database wants them. Statements
// of this package hold "?" in no other meaning.
func (d dialect) bind(query string) string {
	if d == sqliteDialect {
		return query
	}
	var b strings.Builder
	for n := 1; ; n++ {
		before, after, found := strings.Cut(query, "?")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n))
		query = after
	}
}

// querier is a *pool or a *txn.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) row
}

// row is a *sql.Row, unless what was looked for cannot be.
type row struct {
	*sql.Row
	err error
}

// Scan shadows that of sql.Row.
func (r row) Scan(dst ...any) error {
	if r.err != nil {
		return r.err
	}
	return r.Row.Scan(dst...)
}

// checkText refuses what PostgreSQL does not take for text. What people look for comes here
// as they wrote it, and that is no fault of ours.
func checkText(args []any) error {
	for _, arg := range args {
		if text, ok := arg.(string); ok && (!utf8.ValidString(text) || strings.Contains(text, "\x00")) {
			return kiln.Errorf(kiln.CodeInvalid, "%.100q is not a text: it holds a NUL byte or is not UTF-8", text)
		}
	}
	return nil
}

// pool is a database for reading, outside any transaction.
type pool struct {
	*sql.DB
	dialect dialect
}

// QueryContext shadows that of sql.DB.
func (p *pool) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if err := checkText(args); err != nil {
		return nil, err
	}
	return p.DB.QueryContext(ctx, p.dialect.bind(query), args...)
}

// QueryRowContext shadows that of sql.DB.
func (p *pool) QueryRowContext(ctx context.Context, query string, args ...any) row {
	if err := checkText(args); err != nil {
		return row{err: err}
	}
	return row{Row: p.DB.QueryRowContext(ctx, p.dialect.bind(query), args...)}
}

// txn is one writing transaction. It sees the database as if no other ran beside it.
type txn struct {
	*sql.Tx
	dialect dialect
}

// ExecContext shadows that of sql.Tx.
func (t *txn) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return t.Tx.ExecContext(ctx, t.dialect.bind(query), args...)
}

// QueryContext shadows that of sql.Tx.
func (t *txn) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if err := checkText(args); err != nil {
		return nil, err
	}
	return t.Tx.QueryContext(ctx, t.dialect.bind(query), args...)
}

// QueryRowContext shadows that of sql.Tx.
func (t *txn) QueryRowContext(ctx context.Context, query string, args ...any) row {
	if err := checkText(args); err != nil {
		return row{err: err}
	}
	return row{Row: t.Tx.QueryRowContext(ctx, t.dialect.bind(query), args...)}
}

// SQLSTATE codes of PostgreSQL, appendix A of its manual.
const (
	pgUniqueViolation      = "23505"
	pgSerializationFailure = "40001"
	pgDeadlock             = "40P01"
	pgDiskFull             = "53100"
)

func isPostgres(err error, codes ...string) bool {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.Code == c {
			return true
		}
	}
	return false
}

// duplicate reports whether err says that a unique value exists already.
func duplicate(err error) bool {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
	}
	return isPostgres(err, pgUniqueViolation)
}

// collided reports whether err ended a transaction only because another one ran beside it,
// so that it may succeed when it is run again.
func collided(err error) bool { return isPostgres(err, pgSerializationFailure, pgDeadlock) }

// Unreachable reports whether err says that the database server cannot be reached, which
// passes.
func Unreachable(err error) bool {
	var c *pgconn.ConnectError
	return errors.As(err, &c)
}

// explain gives an error of the database a code where it is one that an operator can mend.
func explain(err error) error {
	var e *sqlite.Error
	if errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_FULL {
		return kiln.DiskFull(err)
	}
	if isPostgres(err, pgDiskFull) {
		return kiln.Errorf(kiln.CodeExhausted, "the database server's disk is full: %w", err).WithHint("free space on the database server")
	}
	if Unreachable(err) {
		return kiln.Errorf(kiln.CodeUnavailable, "the database server cannot be reached: %w", err).WithHint("check store.url and that PostgreSQL runs")
	}
	return err
}
