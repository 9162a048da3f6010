package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/kilnvm/kiln"
)

// Promote ends a build with success: v with all that it holds becomes ready, and the
// template's newest ready version becomes the one that sandboxes start from. If the
// template has been deleted meanwhile it is a conflict and nothing changes.
func (s *Store) Promote(ctx context.Context, v *kiln.Version) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		err := setStatus(ctx, tx, v.BuildID, kiln.VersionReady, `ended_at = ?, config_json = ?, bases_json = ?, rootfs_json = ?, stages_json = ?`,
			nanos(v.EndedAt), jsonColumn{v.Config}, jsonColumn{v.BaseImages}, jsonColumn{v.Rootfs}, jsonColumn{v.Stages})
		if err != nil {
			return err
		}
		// A rollback is not undone by a build that was begun before the one rolled back.
		n, err := exec(ctx, tx, `UPDATE templates SET promoted = ? WHERE id = ? AND deleted_at = 0 AND promoted < ?`, v.Number, v.TemplateID, v.Number)
		if err != nil {
			return fmt.Errorf("promote build %s: %w", v.BuildID, err)
		}
		if n > 0 {
			return setCurrent(ctx, tx, v, v.EndedAt)
		}
		// A newer version was promoted first and stays, or there is nothing to promote to.
		_, err = findTemplate(ctx, tx, `t.id = ?`, v.TemplateID)
		if kiln.CodeOf(err) == kiln.CodeNotFound {
			return kiln.Errorf(kiln.CodeConflict, "template %s was deleted", v.TemplateID)
		}
		return err
	})
}

// setCurrent makes v the version that sandboxes start from, with all that says so.
func setCurrent(ctx context.Context, tx *txn, v *kiln.Version, at time.Time) error {
	m := v.Metadata
	_, err := exec(ctx, tx, `UPDATE templates SET current = ?, description = ?, author = ?, icon = ?, tags_json = ?, updated_at = ? WHERE id = ?`,
		v.Number, m.Description, m.Author, m.Icon, jsonColumn{m.Tags}, nanos(at), v.TemplateID)
	if err != nil {
		return fmt.Errorf("promote version %d: %w", v.Number, err)
	}
	return setTag(ctx, tx, v.TemplateID, kiln.LatestTag, v.Number, at)
}

// Rollback makes another ready version of a custom template the one that sandboxes start
// from: to, or if that is 0 the newest one before the current. It returns the template as
// it then is, and the number of the version that was current before.
func (s *Store) Rollback(ctx context.Context, orgID, nameOrID string, to int) (t *kiln.Template, from int, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		if t, err = lookUpCustom(ctx, tx, orgID, nameOrID, "rolled back"); err != nil {
			return err
		}
		from = t.Current
		number := to
		if number == 0 {
			if number, err = versionBefore(ctx, tx, t); err != nil {
				return err
			}
		}
		v, err := usableVersion(ctx, tx, t, number)
		if err != nil {
			return err
		}
		if number == from {
			return kiln.Errorf(kiln.CodeConflict, "version %d of template %q is the current one", number, t.Name)
		}
		if err := setCurrent(ctx, tx, v, time.Now()); err != nil {
			return err
		}
		t, err = findTemplate(ctx, tx, `t.id = ?`, t.ID)
		return err
	})
	return t, from, err
}

// lookUpCustom is lookUp for a change that built-in templates do not allow.
func lookUpCustom(ctx context.Context, tx *txn, orgID, nameOrID, what string) (*kiln.Template, error) {
	t, err := lookUp(ctx, tx, orgID, nameOrID)
	if err == nil && t.BuiltIn {
		return nil, kiln.Errorf(kiln.CodeForbidden, "template %q is built-in and cannot be %s", t.Name, what)
	}
	return t, err
}

func versionBefore(ctx context.Context, tx *txn, t *kiln.Template) (number int, err error) {
	err = tx.QueryRowContext(ctx, `SELECT number FROM versions WHERE template_id = ? AND number < ? AND status = ? AND collected_at = 0
		ORDER BY number DESC LIMIT 1`, t.ID, t.Current, kiln.VersionReady).Scan(&number)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, kiln.Errorf(kiln.CodeConflict, "template %q has no older version to go back to", t.Name).
			WithHint("`kiln templates versions %s` shows what is kept", t.Name)
	}
	if err != nil {
		return 0, fmt.Errorf("versions of template %q: %w", t.Name, err)
	}
	return number, nil
}

// usableVersion returns a version that is ready and has its files.
func usableVersion(ctx context.Context, tx *txn, t *kiln.Template, number int) (*kiln.Version, error) {
	v, err := scanVersion(tx.QueryRowContext(ctx, selectVersion+`WHERE v.template_id = ? AND v.number = ?`, t.ID, number))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, kiln.Errorf(kiln.CodeNotFound, "template %q has no version %d", t.Name, number)
	case err != nil:
		return nil, fmt.Errorf("version %d of template %q: %w", number, t.Name, err)
	case v.Status != kiln.VersionReady:
		return nil, kiln.Errorf(kiln.CodeConflict, "version %d of template %q is not ready but %s", number, t.Name, v.Status)
	case !v.CollectedAt.IsZero():
		return nil, notKept(ctx, tx, t.ID, number, t.Name)
	}
	return v, nil
}
