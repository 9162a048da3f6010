package store

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/pressly/goose/v3"

	"github.com/kilnvm/kiln"
)

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
	writer, err := sql.Open("sqlite", dsn(abs, url.Values{"_txlock": {"immediate"}}))
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	writer.SetMaxOpenConns(1)
	if err := migrate(ctx, goose.DialectSQLite3, writer); err != nil {
		_ = writer.Close()
		return nil, err
	}
	readers, err := sql.Open("sqlite", dsn(abs, url.Values{"_pragma": {"query_only(1)"}}))
	if err != nil {
		_ = writer.Close()
		return nil, fmt.Errorf("database: %w", err)
	}
	readers.SetMaxOpenConns(4)
	return &Store{dialect: sqliteDialect, writer: writer, readers: &pool{readers, sqliteDialect}}, nil
}

func dsn(path string, more url.Values) string {
	q := url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(NORMAL)", "foreign_keys(1)"}}
	for k, v := range more {
		q[k] = append(q[k], v...)
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}
	return u.String()
}
