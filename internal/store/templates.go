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

const templateColumns = `t.id, t.org_id, t.name, t.description, t.author, t.icon, t.tags_json, t.current, t.recipe, t.created_at, t.updated_at, t.quota_json`

func scanTemplate(row scanner, t *kiln.Template, more ...any) error {
	dest := append([]any{
		&t.ID, &t.OrgID, &t.Name, &t.Description, &t.Author, &t.Icon, jsonColumn{&t.Tags}, &t.Current, &t.Recipe,
		timeColumn{&t.CreatedAt}, timeColumn{&t.UpdatedAt}, jsonColumn{&t.Quota},
	}, more...)
	if err := row.Scan(dest...); err != nil {
		return err
	}
	t.BuiltIn = t.OrgID == ""
	return nil
}

// selectTemplate loads templates with their newest version and the current one, which is the
// newest once more where there is none.
var selectTemplate = `SELECT ` + templateColumns + `, ` + versionColumns + `, ` + strings.ReplaceAll(versionColumns, "v.", "c.") + `
	FROM templates t JOIN versions v ON v.template_id = t.id AND v.number = t.latest
	JOIN versions c ON c.template_id = t.id AND c.number = CASE t.current WHEN 0 THEN t.latest ELSE t.current END `

func scanTemplateAndVersions(row scanner) (*kiln.Template, error) {
	var t kiln.Template
	var latest, current kiln.Version
	if err := scanTemplate(row, &t, append(versionFields(&latest), versionFields(&current)...)...); err != nil {
		return nil, err
	}
	t.Latest = &latest
	if t.Current > 0 {
		t.Serving = &current
	}
	return &t, nil
}

func templateNotFound(ref string) *kiln.Error {
	return kiln.Errorf(kiln.CodeNotFound, "template %q does not exist", ref)
}

// findTemplate returns the first template that is not deleted and matches. The first of
// args is what an error calls it.
func findTemplate(ctx context.Context, q querier, where string, args ...any) (*kiln.Template, error) {
	t, err := scanTemplateAndVersions(q.QueryRowContext(ctx, selectTemplate+`WHERE t.deleted_at = 0 AND `+where, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, templateNotFound(fmt.Sprint(args[0]))
	}
	if err != nil {
		return nil, fmt.Errorf("template %v: %w", args[0], err)
	}
	return t, nil
}

// FindTemplate looks a template up by ID, then by name among those of orgID, then by
// name among the built-in ones, then by an alias of those.
func (s *Store) FindTemplate(ctx context.Context, orgID, nameOrID string) (*kiln.Template, error) {
	return lookUp(ctx, s.readers, orgID, nameOrID)
}

// TemplateOrg returns whose a template is, also a deleted one; "" for a built-in one.
func (s *Store) TemplateOrg(ctx context.Context, templateID string) (orgID string, err error) {
	err = s.readers.QueryRowContext(ctx, `SELECT org_id FROM templates WHERE id = ?`, templateID).Scan(&orgID)
	if errors.Is(err, sql.ErrNoRows) {
		return "", templateNotFound(templateID)
	}
	if err != nil {
		return "", fmt.Errorf("organisation of template %s: %w", templateID, err)
	}
	return orgID, nil
}

// lookUp is FindTemplate in any transaction. Of a template that there was it says that it
// was deleted.
func lookUp(ctx context.Context, q querier, orgID, nameOrID string) (*kiln.Template, error) {
	t, err := lookUpLiving(ctx, q, orgID, nameOrID)
	if kiln.CodeOf(err) != kiln.CodeNotFound {
		return t, err
	}
	var n int
	row := q.QueryRowContext(ctx, `SELECT COUNT(*) FROM templates WHERE org_id = ? AND deleted_at <> 0 AND (name = ? OR id = ?)`, orgID, nameOrID, nameOrID)
	if scanErr := row.Scan(&n); scanErr != nil {
		return nil, fmt.Errorf("template %q: %w", nameOrID, scanErr)
	}
	if n > 0 {
		return nil, deletedError(nameOrID)
	}
	return nil, err
}

func deletedError(name string) *kiln.Error {
	return kiln.Errorf(kiln.CodeNotFound, "template %q was deleted", name)
}

func lookUpLiving(ctx context.Context, q querier, orgID, nameOrID string) (*kiln.Template, error) {
	if strings.HasPrefix(nameOrID, kiln.TemplateIDPrefix) {
		return findTemplate(ctx, q, `t.id = ? AND t.org_id IN (?, '')`, nameOrID, orgID)
	}
	// One query for both: an own template sorts before the built-in one, whose
	// organisation is empty.
	t, err := findTemplate(ctx, q, `t.name = ? AND t.org_id IN (?, '') ORDER BY t.org_id DESC LIMIT 1`, nameOrID, orgID)
	if kiln.CodeOf(err) != kiln.CodeNotFound {
		return t, err
	}
	return findTemplate(ctx, q, `t.id = (SELECT template_id FROM template_aliases WHERE name = ?)`, nameOrID)
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
// transaction. It sets v.Number and t.Recipe. A name that is taken is a conflict.
func (s *Store) CreateTemplate(ctx context.Context, t *kiln.Template, v *kiln.Version, b Build, also TxFunc) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		_, err := exec(ctx, tx, `INSERT INTO templates (id, org_id, name, description, author, icon, tags_json, created_at, updated_at)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			t.ID, t.OrgID, t.Name, t.Description, t.Author, t.Icon, jsonColumn{t.Tags}, nanos(t.CreatedAt), nanos(t.UpdatedAt))
		if duplicate(err) {
			return kiln.Errorf(kiln.CodeConflict, "a template named %q exists already", t.Name).
				WithHint("`kiln templates build %s …` makes its next version; else delete it or choose another name", t.Name)
		}
		if err != nil {
			return fmt.Errorf("template %q: %w", t.Name, err)
		}
		err = insertVersion(ctx, tx, v, b, also)
		t.Recipe = v.Number
		return err
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
