package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/kilnvm/kiln"
)

// Build is what only matters while a version is being built.
type Build struct {
	ID           string // the version's BuildID
	Node         string // whose job it is
	Attempts     int    // how often it has been started
	Cancel       bool   // somebody asked to stop it
	NeedsSecrets bool   // it was requested with secrets, which are stored nowhere
	// Deferred says that nobody has asked for the build yet: it is on no queue until
	// [Store.StartBuild].
	Deferred bool
	// Traceparent names the span of the request for it, "" when there is none.
	Traceparent string
}

// Build returns the state of a build.
func (s *Store) Build(ctx context.Context, id string) (*Build, error) {
	return findBuild(ctx, s.readers, id)
}

func findBuild(ctx context.Context, q querier, id string) (*Build, error) {
	b := Build{ID: id}
	err := q.QueryRowContext(ctx, `SELECT b.node, b.attempts, b.cancel_requested, b.needs_secrets, b.traceparent, NOT b.active AND v.status = ?
		FROM builds b JOIN versions v ON v.build_id = b.id WHERE b.id = ?`, kiln.VersionPending, id).
		Scan(&b.Node, &b.Attempts, &b.Cancel, &b.NeedsSecrets, &b.Traceparent, &b.Deferred)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, kiln.Errorf(kiln.CodeNotFound, "build %q does not exist", id)
	}
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", id, err)
	}
	return &b, nil
}

// UnfinishedBuilds returns the IDs of all builds of a node whose version is pending or
// building, oldest first.
func (s *Store) UnfinishedBuilds(ctx context.Context, node string) ([]string, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT b.id FROM builds b JOIN versions v ON v.build_id = b.id
		WHERE b.active AND b.node = ? ORDER BY v.created_at, b.id`, node)
	if err != nil {
		return nil, fmt.Errorf("unfinished builds: %w", err)
	}
	ids, err := collect(rows, func(r scanner) (id string, err error) { return id, r.Scan(&id) })
	if err != nil {
		return nil, fmt.Errorf("unfinished builds: %w", err)
	}
	return ids, nil
}

// setStatus moves a version along its state machine. set are further assignments.
func setStatus(ctx context.Context, tx *txn, buildID string, next kiln.VersionStatus, set string, args ...any) error {
	v, err := versionByBuild(ctx, tx, buildID)
	if err != nil {
		return err
	}
	if !v.Status.CanBecome(next) {
		return kiln.Errorf(kiln.CodeConflict, "build %s is %s and cannot become %s", buildID, v.Status, next)
	}
	if set != "" {
		set = ", " + set
	}
	if _, err := exec(ctx, tx, `UPDATE versions SET status = ?`+set+` WHERE build_id = ?`, append(append([]any{next}, args...), buildID)...); err != nil {
		return fmt.Errorf("build %s: %w", buildID, err)
	}
	if next.Terminal() {
		if _, err := exec(ctx, tx, `UPDATE builds SET active = FALSE WHERE id = ?`, buildID); err != nil {
			return fmt.Errorf("build %s: %w", buildID, err)
		}
	}
	return nil
}

// ClaimBuild takes a pending build: its version is building and one more attempt is
// counted. Only one of several claimants succeeds; for the others it is a conflict.
func (s *Store) ClaimBuild(ctx context.Context, buildID string) (v *kiln.Version, b *Build, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		now := nanos(time.Now())
		err := setStatus(ctx, tx, buildID, kiln.VersionBuilding, `started_at = CASE started_at WHEN 0 THEN ? ELSE started_at END`, now)
		if err != nil {
			return err
		}
		if _, err := exec(ctx, tx, `UPDATE builds SET attempts = attempts + 1 WHERE id = ?`, buildID); err != nil {
			return fmt.Errorf("build %s: %w", buildID, err)
		}
		// Read here, so that a claim that failed has not been made.
		if v, err = versionByBuild(ctx, tx, buildID); err != nil {
			return err
		}
		b, err = findBuild(ctx, tx, buildID)
		return err
	})
	return v, b, err
}

// RequeueBuild makes a build pending again, whether it was building or not, and runs also
// (which may be nil) in the same transaction. refund takes back the attempt that was counted.
func (s *Store) RequeueBuild(ctx context.Context, buildID string, refund bool, also TxFunc) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		v, err := versionByBuild(ctx, tx, buildID)
		if err != nil {
			return err
		}
		if v.Status != kiln.VersionPending {
			if err := setStatus(ctx, tx, buildID, kiln.VersionPending, ""); err != nil {
				return err
			}
			if refund {
				if _, err := exec(ctx, tx, `UPDATE builds SET attempts = attempts - 1 WHERE id = ?`, buildID); err != nil {
					return fmt.Errorf("build %s: %w", buildID, err)
				}
			}
		}
		if also == nil {
			return nil
		}
		return also(ctx, tx.Tx)
	})
}

// SaveBuild stores what a build has found out so far: configuration, base images, root
// filesystem and stages. A build that has ended is a conflict.
func (s *Store) SaveBuild(ctx context.Context, v *kiln.Version) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		n, err := exec(ctx, tx, `UPDATE versions SET config_json = ?, bases_json = ?, rootfs_json = ?, stages_json = ? WHERE build_id = ? AND status = ?`,
			jsonColumn{v.Config}, jsonColumn{v.BaseImages}, jsonColumn{v.Rootfs}, jsonColumn{v.Stages}, v.BuildID, kiln.VersionBuilding)
		if err != nil {
			return fmt.Errorf("build %s: %w", v.BuildID, err)
		}
		if n == 0 {
			return kiln.Errorf(kiln.CodeConflict, "build %s has ended", v.BuildID)
		}
		return nil
	})
}

// FailBuild ends a build without success.
func (s *Store) FailBuild(ctx context.Context, buildID string, why *kiln.BuildError) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error { return failBuild(ctx, tx, buildID, why) })
}

func failBuild(ctx context.Context, tx *txn, buildID string, why *kiln.BuildError) error {
	return setStatus(ctx, tx, buildID, kiln.VersionFailed, `ended_at = ?, build_error_json = ?`, nanos(time.Now()), jsonColumn{why})
}

func failUnfinished(ctx context.Context, tx *txn, templateID string, why *kiln.BuildError) ([]string, error) {
	rows, err := tx.QueryContext(ctx, `SELECT build_id FROM versions WHERE template_id = ? AND status IN (?, ?)`,
		templateID, kiln.VersionPending, kiln.VersionBuilding)
	if err != nil {
		return nil, fmt.Errorf("builds of template %s: %w", templateID, err)
	}
	ids, err := collect(rows, func(r scanner) (id string, err error) { return id, r.Scan(&id) })
	if err != nil {
		return nil, fmt.Errorf("builds of template %s: %w", templateID, err)
	}
	for _, id := range ids {
		if err := failBuild(ctx, tx, id, why); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// CancelBuild remembers that a build is to stop. A pending build fails at once with why;
// stopped tells so. A build that has ended is a conflict.
func (s *Store) CancelBuild(ctx context.Context, buildID string, why *kiln.BuildError) (stopped bool, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		v, err := versionByBuild(ctx, tx, buildID)
		if err != nil {
			return err
		}
		switch {
		case v.Status.Terminal():
			return kiln.Errorf(kiln.CodeConflict, "build %s has ended: it is %s", buildID, v.Status)
		case v.Status == kiln.VersionPending:
			stopped = true
			return failBuild(ctx, tx, buildID, why)
		}
		if _, err := exec(ctx, tx, `UPDATE builds SET cancel_requested = TRUE WHERE id = ?`, buildID); err != nil {
			return fmt.Errorf("build %s: %w", buildID, err)
		}
		return nil
	})
	return stopped, err
}
