package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/kilnvm/kiln"
)

// CachedStage loads the output of a stage that has run with this key into output. It
// reports whether there is one.
func (s *Store) CachedStage(ctx context.Context, stage kiln.Stage, key kiln.Digest, output any) (bool, error) {
	err := s.readers.QueryRowContext(ctx, `SELECT output_json FROM stage_cache WHERE stage = ? AND key = ?`, stage, key).Scan(jsonColumn{output})
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cache of %s %s: %w", stage, key.Short(), err)
	}
	return true, nil
}

// CacheStage remembers the output of a stage. The files it names must be durable.
func (s *Store) CacheStage(ctx context.Context, stage kiln.Stage, key kiln.Digest, output any) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := exec(ctx, tx, `INSERT INTO stage_cache (stage, key, output_json, created_at) VALUES (?, ?, ?, ?)
			ON CONFLICT (stage, key) DO UPDATE SET output_json = excluded.output_json, created_at = excluded.created_at`,
			stage, key, jsonColumn{output}, nanos(time.Now()))
		if err != nil {
			return fmt.Errorf("cache of %s %s: %w", stage, key.Short(), err)
		}
		return nil
	})
}

// Snapshot returns the golden snapshot stored under exactly this key.
func (s *Store) Snapshot(ctx context.Context, key kiln.Digest) (*kiln.Snapshot, error) {
	var snap kiln.Snapshot
	err := s.readers.QueryRowContext(ctx, `SELECT snapshot_json FROM snapshots WHERE key = ?`, key).Scan(jsonColumn{&snap})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, kiln.Errorf(kiln.CodeNotFound, "snapshot %s does not exist", key.Short())
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", key.Short(), err)
	}
	return &snap, nil
}

// PutSnapshot stores a snapshot and that a version uses it. Several versions may share one.
func (s *Store) PutSnapshot(ctx context.Context, templateID string, number int, snap kiln.Snapshot) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		if err := checkKept(ctx, tx, templateID, number, templateID); err != nil {
			return err
		}
		_, err := exec(ctx, tx, `INSERT INTO snapshots (key, snapshot_json, created_at) VALUES (?, ?, ?)
			ON CONFLICT (key) DO UPDATE SET snapshot_json = excluded.snapshot_json, created_at = excluded.created_at`,
			snap.Key, jsonColumn{snap}, nanos(snap.CreatedAt))
		if err != nil {
			return fmt.Errorf("snapshot %s: %w", snap.Key.Short(), err)
		}
		_, err = exec(ctx, tx, `INSERT INTO version_snapshots (template_id, number, size, key) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			templateID, number, snap.SizeName, snap.Key)
		if err != nil {
			return fmt.Errorf("snapshot %s of version %d: %w", snap.Key.Short(), number, err)
		}
		return nil
	})
}

// VersionSnapshots returns every snapshot that a version has, by size and then age.
func (s *Store) VersionSnapshots(ctx context.Context, templateID string, number int) ([]kiln.Snapshot, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT s.snapshot_json FROM version_snapshots v JOIN snapshots s ON s.key = v.key
		WHERE v.template_id = ? AND v.number = ? ORDER BY v.size, s.created_at, s.key`, templateID, number)
	if err != nil {
		return nil, fmt.Errorf("snapshots of version %d: %w", number, err)
	}
	list, err := collect(rows, func(r scanner) (snap kiln.Snapshot, err error) { return snap, r.Scan(jsonColumn{&snap}) })
	if err != nil {
		return nil, fmt.Errorf("snapshots of version %d: %w", number, err)
	}
	return list, nil
}
