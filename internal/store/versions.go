package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/kilnvm/kiln"
)

const versionColumns = `v.template_id, v.number, v.build_id, v.status, v.created_at, v.started_at, v.ended_at, v.collected_at, v.build_error_json,
	v.source_blob, v.source_digest, v.options_json, v.metadata_json, v.config_json, v.bases_json, v.rootfs_json, v.stages_json`

func versionFields(v *kiln.Version) []any {
	return []any{
		&v.TemplateID, &v.Number, &v.BuildID, &v.Status, timeColumn{&v.CreatedAt}, timeColumn{&v.StartedAt}, timeColumn{&v.EndedAt}, timeColumn{&v.CollectedAt},
		jsonColumn{&v.BuildError}, &v.SourceBlob, &v.SourceDigest, jsonColumn{&v.Options}, jsonColumn{&v.Metadata},
		jsonColumn{&v.Config}, jsonColumn{&v.BaseImages}, jsonColumn{&v.Rootfs}, jsonColumn{&v.Stages},
	}
}

func scanVersion(row scanner) (*kiln.Version, error) {
	var v kiln.Version
	if err := row.Scan(versionFields(&v)...); err != nil {
		return nil, err
	}
	return &v, nil
}

const selectVersion = `SELECT ` + versionColumns + ` FROM versions v `

// Version returns one version, also of a deleted template.
func (s *Store) Version(ctx context.Context, templateID string, number int) (*kiln.Version, error) {
	v, err := scanVersion(s.readers.QueryRowContext(ctx, selectVersion+`WHERE v.template_id = ? AND v.number = ?`, templateID, number))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, kiln.Errorf(kiln.CodeNotFound, "template %s has no version %d", templateID, number)
	}
	if err != nil {
		return nil, fmt.Errorf("version %d of template %s: %w", number, templateID, err)
	}
	return v, nil
}

// VersionByBuild returns the version that a build makes, also of a deleted template.
func (s *Store) VersionByBuild(ctx context.Context, buildID string) (*kiln.Version, error) {
	return versionByBuild(ctx, s.readers, buildID)
}

func versionByBuild(ctx context.Context, q querier, buildID string) (*kiln.Version, error) {
	v, err := scanVersion(q.QueryRowContext(ctx, selectVersion+`WHERE v.build_id = ?`, buildID))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, kiln.Errorf(kiln.CodeNotFound, "build %q does not exist", buildID)
	}
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", buildID, err)
	}
	return v, nil
}

// ListVersions returns up to limit versions of a template, newest first, that are older
// than the given number; before 0 means from the newest.
func (s *Store) ListVersions(ctx context.Context, templateID string, before, limit int) ([]*kiln.Version, error) {
	rows, err := s.readers.QueryContext(ctx, selectVersion+`WHERE v.template_id = ? AND (? = 0 OR v.number < ?) ORDER BY v.number DESC LIMIT ?`,
		templateID, before, before, limit)
	if err != nil {
		return nil, fmt.Errorf("versions of template %s: %w", templateID, err)
	}
	list, err := collect(rows, scanVersion)
	if err != nil {
		return nil, fmt.Errorf("versions of template %s: %w", templateID, err)
	}
	return list, nil
}

// CreateVersion stores the next version of an existing template and runs also in the
// same transaction. It sets v.Number.
func (s *Store) CreateVersion(ctx context.Context, v *kiln.Version, b Build, also TxFunc) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error { return insertVersion(ctx, tx, v, b, also) })
}

func insertVersion(ctx context.Context, tx *txn, v *kiln.Version, b Build, also TxFunc) error {
	fail := func(err error) error { return fmt.Errorf("new version of template %s: %w", v.TemplateID, err) }
	row := tx.QueryRowContext(ctx, `UPDATE templates SET latest = latest + 1, recipe = latest + 1, updated_at = ? WHERE id = ? AND deleted_at = 0 RETURNING latest`,
		nanos(v.CreatedAt), v.TemplateID)
	if err := row.Scan(&v.Number); errors.Is(err, sql.ErrNoRows) {
		return templateNotFound(v.TemplateID)
	} else if err != nil {
		return fail(err)
	}
	v.Status = kiln.VersionPending
	_, err := exec(ctx, tx, `INSERT INTO versions (template_id, number, build_id, status, created_at, source_blob, source_digest, options_json, metadata_json)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		v.TemplateID, v.Number, v.BuildID, v.Status, nanos(v.CreatedAt), v.SourceBlob, v.SourceDigest, jsonColumn{v.Options}, jsonColumn{v.Metadata})
	if err != nil {
		return fail(err)
	}
	_, err = exec(ctx, tx, `INSERT INTO builds (id, node, needs_secrets, active, traceparent) VALUES (?, ?, ?, ?, ?)`,
		v.BuildID, b.Node, b.NeedsSecrets, !b.Deferred, b.Traceparent)
	if err != nil {
		return fail(err)
	}
	if also == nil || b.Deferred {
		return nil
	}
	return also(ctx, tx.Tx)
}

// AskAgain remembers that a version was asked for again, with options that make no difference
// to it but to those that follow: rebuilds start from it. done is false, and nothing happens,
// if it is not the current version any more, or will not be when a build that runs is ready.
func (s *Store) AskAgain(ctx context.Context, v *kiln.Version) (done bool, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		n, err := exec(ctx, tx, `UPDATE templates SET recipe = ? WHERE id = ? AND current = ? AND deleted_at = 0 AND NOT EXISTS (
			SELECT 1 FROM versions v JOIN builds b ON b.id = v.build_id WHERE v.template_id = templates.id AND v.number > templates.promoted AND b.active)`,
			v.Number, v.TemplateID, v.Number)
		if done = n > 0; err != nil || !done {
			return err
		}
		_, err = exec(ctx, tx, `UPDATE versions SET options_json = ? WHERE template_id = ? AND number = ?`, jsonColumn{v.Options}, v.TemplateID, v.Number)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("version %d of template %s: %w", v.Number, v.TemplateID, err)
	}
	return done, nil
}

// SourceInUse reports whether a version that can be rebuilt refers to the source blob.
func (s *Store) SourceInUse(ctx context.Context, blob kiln.Digest) (bool, error) {
	var n int
	err := s.readers.QueryRowContext(ctx, `SELECT COUNT(*) FROM versions v JOIN templates t ON t.id = v.template_id
		WHERE v.source_blob = ? AND t.deleted_at = 0`, blob).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("source %s: %w", blob.Short(), err)
	}
	return n > 0, nil
}

// checkKept makes sure that the files of a version have not been given up. A version that
// does not exist has none.
func checkKept(ctx context.Context, tx *txn, templateID string, number int, name string) error {
	var collected int64
	err := tx.QueryRowContext(ctx, `SELECT collected_at FROM versions WHERE template_id = ? AND number = ?`, templateID, number).Scan(&collected)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("version %d of template %s: %w", number, name, err)
	}
	if collected != 0 {
		return notKept(ctx, tx, templateID, number, name)
	}
	return nil
}

// notKept says why the files of a version, which is known, are gone.
func notKept(ctx context.Context, q querier, templateID string, number int, name string) error {
	var deleted int64
	if err := q.QueryRowContext(ctx, `SELECT deleted_at FROM templates WHERE id = ?`, templateID).Scan(&deleted); err != nil {
		return fmt.Errorf("template %s: %w", name, err)
	}
	if deleted != 0 {
		return deletedError(name)
	}
	return kiln.Errorf(kiln.CodeConflict, "the files of version %d of template %q are no longer kept", number, name).
		WithHint("`kiln templates versions %s` shows what is; a tag keeps a version for good", name)
}
