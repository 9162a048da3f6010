package store

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"time"

	"github.com/kilnvm/kiln"
)

// VersionRef names one version of one template.
type VersionRef struct {
	TemplateID string
	Number     int
}

// Collectable is a version that nothing needs any more.
type Collectable struct {
	VersionRef
	Template string // its name
	BuildID  string
	Why      string
}

// collectable is the condition on a version v of a template t: it has ended, no living
// sandbox runs on it, and either its template is deleted, or it is neither the current nor
// the newest version, nor what rebuilds start from, has no tag, and failed or is older than
// the newest ready ones that are kept anyway. Its two parameters are how many those are, and
// one less.
const collectable = `v.collected_at = 0 AND v.status IN ('ready', 'failed')
	AND NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.living AND s.template_id = v.template_id AND s.version = v.number)
	AND (t.deleted_at <> 0 OR (v.number NOT IN (t.current, t.latest, t.recipe)
		AND NOT EXISTS (SELECT 1 FROM version_tags g WHERE g.template_id = v.template_id AND g.number = v.number)
		AND (v.status = 'failed' OR ? <= 0 OR v.number < (SELECT r.number FROM versions r WHERE r.template_id = v.template_id
			AND r.status = 'ready' AND r.collected_at = 0 ORDER BY r.number DESC LIMIT 1 OFFSET ?))))`

// Collectable returns the versions that nothing needs, when the newest keep ready ones of
// every template are kept anyway.
func (s *Store) Collectable(ctx context.Context, keep int) ([]Collectable, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT v.template_id, v.number, t.name, v.build_id, t.deleted_at, v.status
		FROM versions v JOIN templates t ON t.id = v.template_id WHERE `+collectable+` ORDER BY t.name, t.id, v.number`, keep, max(keep-1, 0))
	if err != nil {
		return nil, fmt.Errorf("unused versions: %w", err)
	}
	list, err := collect(rows, func(r scanner) (c Collectable, err error) {
		var deleted time.Time
		var status kiln.VersionStatus
		err = r.Scan(&c.TemplateID, &c.Number, &c.Template, &c.BuildID, timeColumn{&deleted}, &status)
		switch {
		case !deleted.IsZero():
			c.Why = "its template was deleted"
		case status == kiln.VersionFailed:
			c.Why = "it failed and is not the newest"
		default:
			c.Why = "older than what is kept"
		}
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("unused versions: %w", err)
	}
	return list, nil
}

// CollectVersion gives up the files of a version and its snapshots, if nothing needs it
// still. It reports whether it did. From then on nothing can refer to it again.
func (s *Store) CollectVersion(ctx context.Context, ref VersionRef, keep int) (done bool, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		n, err := exec(ctx, tx, `UPDATE versions SET collected_at = ? WHERE template_id = ? AND number = ? AND EXISTS (
			SELECT 1 FROM versions v JOIN templates t ON t.id = v.template_id WHERE v.template_id = ? AND v.number = ? AND `+collectable+`)`,
			nanos(time.Now()), ref.TemplateID, ref.Number, ref.TemplateID, ref.Number, keep, max(keep-1, 0))
		if done = n > 0; err != nil || !done {
			return err
		}
		_, err = exec(ctx, tx, `DELETE FROM version_snapshots WHERE template_id = ? AND number = ?`, ref.TemplateID, ref.Number)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("give up version %d of template %s: %w", ref.Number, ref.TemplateID, err)
	}
	return done, nil
}

// digests finds blobs in whatever a row holds, also in columns that are added later.
var digests = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// References returns every digest that a version whose files are kept mentions, or one of
// its snapshots, or a living sandbox. Those in without count as given up.
func (s *Store) References(ctx context.Context, without map[VersionRef]bool) (map[kiln.Digest]bool, error) {
	found := map[kiln.Digest]bool{}
	for _, query := range []string{
		`SELECT v.template_id, v.number, v.* FROM versions v WHERE v.collected_at = 0`,
		`SELECT l.template_id, l.number, s.* FROM version_snapshots l JOIN snapshots s ON s.key = l.key`,
		`SELECT '', 0, s.* FROM sandboxes s WHERE s.living`,
	} {
		if err := s.mentioned(ctx, found, without, query); err != nil {
			return nil, fmt.Errorf("references to blobs: %w", err)
		}
	}
	return found, nil
}

// mentioned adds the digests in all columns of the rows of a query, which begin with the
// version that they belong to.
func (s *Store) mentioned(ctx context.Context, found map[kiln.Digest]bool, without map[VersionRef]bool, query string) error {
	rows, err := s.readers.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	var ref VersionRef
	texts := make([]sql.NullString, len(columns)-2)
	dest := []any{&ref.TemplateID, &ref.Number}
	for i := range texts {
		dest = append(dest, &texts[i])
	}
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		if without[ref] {
			continue
		}
		for _, text := range texts {
			for _, d := range digests.FindAllString(text.String, -1) {
				found[kiln.Digest(d)] = true
			}
		}
	}
	return rows.Err()
}

// CacheEntry is what a stage left for a key, and the blobs that it names.
type CacheEntry struct {
	Stage   kiln.Stage
	Key     kiln.Digest
	Blobs   []kiln.Digest
	created int64
}

// CacheEntries returns the whole stage cache.
func (s *Store) CacheEntries(ctx context.Context) ([]CacheEntry, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT stage, key, output_json, created_at FROM stage_cache`)
	if err != nil {
		return nil, fmt.Errorf("stage cache: %w", err)
	}
	list, err := collect(rows, func(r scanner) (e CacheEntry, err error) {
		var output string
		err = r.Scan(&e.Stage, &e.Key, &output, &e.created)
		for _, d := range digests.FindAllString(output, -1) {
			e.Blobs = append(e.Blobs, kiln.Digest(d))
		}
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("stage cache: %w", err)
	}
	return list, nil
}

// DropCacheEntry removes an entry unless it was written again meanwhile.
func (s *Store) DropCacheEntry(ctx context.Context, e CacheEntry) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		if _, err := exec(ctx, tx, `DELETE FROM stage_cache WHERE stage = ? AND key = ? AND created_at = ?`, e.Stage, e.Key, e.created); err != nil {
			return fmt.Errorf("cache of %s %s: %w", e.Stage, e.Key.Short(), err)
		}
		return nil
	})
}

// UnusedSnapshots returns the snapshots that no version has but those in without.
func (s *Store) UnusedSnapshots(ctx context.Context, without map[VersionRef]bool) ([]kiln.Snapshot, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT s.snapshot_json, l.template_id, l.number FROM snapshots s LEFT JOIN version_snapshots l ON l.key = s.key ORDER BY s.key`)
	if err != nil {
		return nil, fmt.Errorf("unused snapshots: %w", err)
	}
	used := map[kiln.Digest]bool{}
	all, err := collect(rows, func(r scanner) (snap kiln.Snapshot, err error) {
		var template sql.NullString
		var number sql.NullInt64
		err = r.Scan(jsonColumn{&snap}, &template, &number)
		if template.Valid && !without[VersionRef{template.String, int(number.Int64)}] {
			used[snap.Key] = true
		}
		return snap, err
	})
	if err != nil {
		return nil, fmt.Errorf("unused snapshots: %w", err)
	}
	var unused []kiln.Snapshot
	for _, snap := range all {
		if !used[snap.Key] {
			used[snap.Key] = true // once only
			unused = append(unused, snap)
		}
	}
	return unused, nil
}

// DropSnapshot removes a snapshot that no version has. It reports whether it did.
func (s *Store) DropSnapshot(ctx context.Context, key kiln.Digest) (done bool, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		n, err := exec(ctx, tx, `DELETE FROM snapshots WHERE key = ? AND NOT EXISTS (SELECT 1 FROM version_snapshots l WHERE l.key = ?)`, key, key)
		done = n > 0
		return err
	})
	if err != nil {
		return false, fmt.Errorf("snapshot %s: %w", key.Short(), err)
	}
	return done, nil
}

// Rebaked is a version that has more than one snapshot of a size.
type Rebaked struct {
	VersionRef
	Size string
}

// RebakedVersions returns the versions that no sandbox runs on and that have more than one
// snapshot of a size: the kernel, the daemon or the VMM has changed since the first.
func (s *Store) RebakedVersions(ctx context.Context) ([]Rebaked, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT l.template_id, l.number, l.size FROM version_snapshots l
		WHERE NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.living AND s.template_id = l.template_id AND s.version = l.number)
		GROUP BY l.template_id, l.number, l.size HAVING COUNT(*) > 1 ORDER BY l.template_id, l.number, l.size`)
	if err != nil {
		return nil, fmt.Errorf("versions with several snapshots: %w", err)
	}
	list, err := collect(rows, func(r scanner) (v Rebaked, err error) { return v, r.Scan(&v.TemplateID, &v.Number, &v.Size) })
	if err != nil {
		return nil, fmt.Errorf("versions with several snapshots: %w", err)
	}
	return list, nil
}

// ForgetSnapshot takes a snapshot from a version, unless a sandbox runs on it.
func (s *Store) ForgetSnapshot(ctx context.Context, ref VersionRef, key kiln.Digest) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := exec(ctx, tx, `DELETE FROM version_snapshots WHERE template_id = ? AND number = ? AND key = ?
			AND NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.living AND s.template_id = ? AND s.version = ?)`,
			ref.TemplateID, ref.Number, key, ref.TemplateID, ref.Number)
		if err != nil {
			return fmt.Errorf("snapshot %s of version %d: %w", key.Short(), ref.Number, err)
		}
		return nil
	})
}

// CountEndedSandboxes returns how many sandboxes that were created before a time have
// ended.
func (s *Store) CountEndedSandboxes(ctx context.Context, before time.Time) (n int, err error) {
	err = s.readers.QueryRowContext(ctx, `SELECT COUNT(*) FROM sandboxes WHERE NOT living AND created_at < ?`, nanos(before)).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("ended sandboxes: %w", err)
	}
	return n, nil
}

// DropEndedSandboxes forgets the sandboxes that were created before a time and have ended.
func (s *Store) DropEndedSandboxes(ctx context.Context, before time.Time) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		if _, err := exec(ctx, tx, `DELETE FROM sandboxes WHERE NOT living AND created_at < ?`, nanos(before)); err != nil {
			return fmt.Errorf("ended sandboxes: %w", err)
		}
		return nil
	})
}
