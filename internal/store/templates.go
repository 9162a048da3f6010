package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
)

const templateColumns = `t.id, t.org_id, t.name, t.description, t.author, t.icon, t.tags_json, t.current, t.created_at, t.updated_at`

func scanTemplate(row scanner, t *kiln.Template, more ...any) error {
	dest := append([]any{
		&t.ID, &t.OrgID, &t.Name, &t.Description, &t.Author, &t.Icon, jsonColumn{&t.Tags}, &t.Current,
		timeColumn{&t.CreatedAt}, timeColumn{&t.UpdatedAt},
	}, more...)
	if err := row.Scan(dest...); err != nil {
		return err
	}
	t.BuiltIn = t.OrgID == ""
	return nil
}

// selectTemplate loads templates with their newest version.
const selectTemplate = `SELECT ` + templateColumns + `, ` + versionColumns + `
	FROM templates t JOIN versions v ON v.template_id = t.id AND v.number = t.latest `

func scanTemplateAndLatest(row scanner) (*kiln.Template, error) {
	var t kiln.Template
	var v kiln.Version
	if err := scanTemplate(row, &t, versionFields(&v)...); err != nil {
		return nil, err
	}
	t.Latest = &v
	return &t, nil
}

func templateNotFound(ref string) *kiln.Error {
	return kiln.Errorf(kiln.CodeNotFound, "template %q does not exist", ref)
}

// findTemplate returns the first template that is not deleted and matches. The first of
// args is what an error calls it.
func findTemplate(ctx context.Context, q querier, where string, args ...any) (*kiln.Template, error) {
	t, err := scanTemplateAndLatest(q.QueryRowContext(ctx, selectTemplate+`WHERE t.deleted_at = 0 AND `+where, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, templateNotFound(fmt.Sprint(args[0]))
	}
	if err != nil {
		return nil, fmt.Errorf("template %v: %w", args[0], err)
	}
	return t, nil
}

// FindTemplate looks a template up by ID, then by name among those of orgID, then by
// name among the built-in ones.
func (s *Store) FindTemplate(ctx context.Context, orgID, nameOrID string) (*kiln.Template, error) {
	return lookUp(ctx, s.readers, orgID, nameOrID)
}

func lookUp(ctx context.Context, q querier, orgID, nameOrID string) (*kiln.Template, error) {
	if strings.HasPrefix(nameOrID, kiln.TemplateIDPrefix) {
		return findTemplate(ctx, q, `t.id = ? AND t.org_id IN (?, '')`, nameOrID, orgID)
	}
	// One query for both: an own template sorts before the built-in one, whose
	// organisation is empty.
	return findTemplate(ctx, q, `t.name = ? AND t.org_id IN (?, '') ORDER BY t.org_id DESC LIMIT 1`, nameOrID, orgID)
}

// ResolveTemplate finds the template that ref means to orgID, and the version it is
// pinned to, else the promoted one. The version is nil when ref pins none and none has
// been promoted. A pinned version that is not ready is a conflict.
func (s *Store) ResolveTemplate(ctx context.Context, orgID string, ref kiln.TemplateRef) (*kiln.Template, *kiln.Version, error) {
	t, err := lookUp(ctx, s.readers, orgID, ref.NameOrID)
	if err != nil {
		return nil, nil, err
	}
	number := t.Current
	switch {
	case ref.Version > 0:
		number = ref.Version
	case ref.Tag != "":
		if number, err = s.taggedVersion(ctx, t, ref.Tag); err != nil {
			return nil, nil, err
		}
	}
	if number == 0 {
		return t, nil, nil
	}
	v, err := s.Version(ctx, t.ID, number)
	if kiln.CodeOf(err) == kiln.CodeNotFound {
		return nil, nil, kiln.Errorf(kiln.CodeNotFound, "template %q has no version %d", t.Name, number)
	}
	if err != nil {
		return nil, nil, err
	}
	if v.Status != kiln.VersionReady {
		return nil, nil, kiln.Errorf(kiln.CodeConflict, "version %d of template %q is not ready but %s", number, t.Name, v.Status)
	}
	return t, v, nil
}

func (s *Store) taggedVersion(ctx context.Context, t *kiln.Template, tag string) (int, error) {
	var number int
	err := s.readers.QueryRowContext(ctx, `SELECT number FROM version_tags WHERE template_id = ? AND name = ?`, t.ID, tag).Scan(&number)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, kiln.Errorf(kiln.CodeNotFound, "template %q has no tag %q", t.Name, tag)
	}
	if err != nil {
		return 0, fmt.Errorf("tag %q of template %q: %w", tag, t.Name, err)
	}
	return number, nil
}

// Cursor is a place in the list of templates: after the one with this name and ID.
type Cursor struct{ Name, ID string }

// ListTemplates returns up to limit templates that orgID sees, its own and the built-in
// ones, by name, from after the given place. The next place is nil at the end.
func (s *Store) ListTemplates(ctx context.Context, orgID string, after *Cursor, limit int) ([]*kiln.Template, *Cursor, error) {
	var from Cursor
	if after != nil {
		from = *after
	}
	// Each half reads only its page from the index, whatever else the table holds.
	const half = `SELECT id FROM (SELECT id FROM templates WHERE org_id = ? AND deleted_at = 0 AND (name, id) > (?, ?) ORDER BY name, id LIMIT ?) AS page`
	rows, err := s.readers.QueryContext(ctx, selectTemplate+`WHERE t.id IN (`+half+` UNION ALL `+half+`) ORDER BY t.name, t.id LIMIT ?`,
		orgID, from.Name, from.ID, limit+1, "", from.Name, from.ID, limit+1, limit+1)
	if err != nil {
		return nil, nil, fmt.Errorf("list templates: %w", err)
	}
	list, err := collect(rows, scanTemplateAndLatest)
	if err != nil {
		return nil, nil, fmt.Errorf("list templates: %w", err)
	}
	if len(list) <= limit {
		return list, nil, nil
	}
	last := list[limit-1]
	return list[:limit], &Cursor{Name: last.Name, ID: last.ID}, nil
}

func collect[T any](rows *sql.Rows, scan func(scanner) (T, error)) ([]T, error) {
	defer rows.Close()
	var list []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// CreateTemplate stores a new template with its first version and runs also in the same
// transaction. It sets v.Number. A name that is taken is a conflict.
func (s *Store) CreateTemplate(ctx context.Context, t *kiln.Template, v *kiln.Version, b Build, also TxFunc) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := exec(ctx, tx, `INSERT INTO templates (id, org_id, name, description, author, icon, tags_json, created_at, updated_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			t.ID, t.OrgID, t.Name, t.Description, t.Author, t.Icon, jsonColumn{t.Tags}, nanos(t.CreatedAt), nanos(t.UpdatedAt))
		if duplicate(err) {
			return kiln.Errorf(kiln.CodeConflict, "a template named %q exists already", t.Name).
				WithHint("rebuild it, delete it, or choose another name")
		}
		if err != nil {
			return fmt.Errorf("template %q: %w", t.Name, err)
		}
		return insertVersion(ctx, tx, v, b, also)
	})
}

// DeleteTemplate makes a custom template invisible and its name free. Builds that have
// not ended fail; their IDs are returned so that they can be stopped. Versions stay for
// the sandboxes that run on them.
func (s *Store) DeleteTemplate(ctx context.Context, orgID, nameOrID string) (builds []string, err error) {
	err = s.write(ctx, func(ctx context.Context, tx *txn) error {
		t, err := lookUp(ctx, tx, orgID, nameOrID)
		if err != nil {
			return err
		}
		if t.BuiltIn {
			return kiln.Errorf(kiln.CodeForbidden, "template %q is built-in and cannot be deleted", t.Name)
		}
		now := time.Now()
		if _, err := exec(ctx, tx, `UPDATE templates SET deleted_at = ?, updated_at = ? WHERE id = ?`, nanos(now), nanos(now), t.ID); err != nil {
			return fmt.Errorf("delete template %q: %w", t.Name, err)
		}
		builds, err = failUnfinished(ctx, tx, t.ID, &kiln.BuildError{Stage: kiln.StagePromote, Message: "the template was deleted"})
		return err
	})
	return builds, err
}

// setTag makes a name of a version, moving it if it exists.
func setTag(ctx context.Context, tx *txn, templateID, tag string, number int) error {
	_, err := exec(ctx, tx, `INSERT INTO version_tags (template_id, name, number) VALUES (?, ?, ?)
		ON CONFLICT (template_id, name) DO UPDATE SET number = excluded.number`, templateID, tag, number)
	if err != nil {
		return fmt.Errorf("tag %q: %w", tag, err)
	}
	return nil
}
