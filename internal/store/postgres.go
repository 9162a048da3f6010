package store

import (
	"context"
	_ "embed"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/kilnvm/kiln"
)

//go:embed migrations/collation.pg
var collation string

// defaultConns is how many connections a server opens at most unless its URL says so with
// pool_max_conns. PostgreSQL allows 100 in all by default.
const defaultConns = 16

// OpenPostgres opens a PostgreSQL database by its URL, which may have every parameter of
// libpq and pgxpool, and brings its schema up to date. Several servers may open one.
func OpenPostgres(ctx context.Context, url string) (*Store, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		// The driver's own message may repeat the URL, which holds a password.
		return nil, kiln.Errorf(kiln.CodeInvalid, "store.url is not the URL of a PostgreSQL database").
			WithHint("write it like postgres://user:password@host:5432/name?sslmode=verify-full")
	}
	if !strings.Contains(url, "pool_max_conns") {
		cfg.MaxConns = defaultConns
	}
	conns, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	if err := conns.Ping(ctx); err != nil {
		conns.Close()
		return nil, fmt.Errorf("database: %w", explain(err))
	}
	db := stdlib.OpenDBFromPool(conns)
	s := &Store{dialect: postgresDialect, writer: db, readers: &pool{db, postgresDialect}, conns: conns}
	// Two servers that start at once must not both bring up the schema.
	locker, err := lock.NewPostgresSessionLocker()
	if err == nil {
		err = migrate(ctx, goose.DialectPostgres, db, goose.WithSessionLocker(locker))
	}
	if err == nil {
		err = s.ChangeSchema(ctx, func(ctx context.Context) error {
			_, err := db.ExecContext(ctx, collation)
			return err
		})
	}
	if err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("database schema: %w", err)
	}
	return s, nil
}

// Postgres returns the connections to a PostgreSQL database, for what the job queue does
// beside transactions, and nil for SQLite.
func (s *Store) Postgres() *pgxpool.Pool { return s.conns }

// schemaLock is the key of the lock that servers hold while they change the schema of what
// lives in the same database.
const schemaLock = 0x6b696c6e // "kiln"

// ChangeSchema runs fn while no other server of this database runs one.
func (s *Store) ChangeSchema(ctx context.Context, fn func(context.Context) error) error {
	if s.dialect == sqliteDialect {
		return fn(ctx) // a data directory has one server
	}
	conn, err := s.writer.Conn(ctx)
	if err != nil {
		return fmt.Errorf("database schema: %w", explain(err))
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, schemaLock); err != nil {
		return fmt.Errorf("database schema: %w", err)
	}
	defer func() {
		// A lock that could not be given back ends with the connection.
		_, _ = conn.ExecContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, schemaLock)
	}()
	return fn(ctx)
}
