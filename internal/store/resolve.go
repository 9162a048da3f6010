package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/kilnvm/kiln"
)

// ResolveTemplate finds the template that ref means to orgID, and the version it is
// pinned to, else the promoted one. The version is nil when ref pins none and none has
// been promoted. A pinned version that is not ready is a conflict.
func (s *Store) ResolveTemplate(ctx context.Context, orgID string, ref kiln.TemplateRef) (*kiln.Template, *kiln.Version, error) {
	t, err := lookUp(ctx, s.readers, orgID, ref.NameOrID)
	if err != nil {
		return nil, nil, err
	}
	if ref.Pin() == "" {
		if t.Current == 0 {
			return t, nil, nil
		}
		ref.Version = t.Current
	}
	v, err := s.Pinned(ctx, t, ref)
	if err != nil {
		return nil, nil, err
	}
	if v.Status != kiln.VersionReady {
		return nil, nil, kiln.Errorf(kiln.CodeConflict, "version %d of template %q is not ready but %s", v.Number, t.Name, v.Status)
	}
	if !v.CollectedAt.IsZero() {
		return nil, nil, notKept(ctx, s.readers, t.ID, v.Number, t.Name)
	}
	return t, t.Quota.Apply(v), nil
}

// Pinned returns the version of t that ref pins, whatever became of it.
func (s *Store) Pinned(ctx context.Context, t *kiln.Template, ref kiln.TemplateRef) (*kiln.Version, error) {
	number := ref.Version
	if ref.Tag != "" {
		var err error
		if number, err = s.taggedVersion(ctx, t, ref.Tag); err != nil {
			return nil, err
		}
	}
	if t.Serving != nil && number == t.Current {
		return t.Serving, nil
	}
	v, err := s.Version(ctx, t.ID, number)
	if kiln.CodeOf(err) == kiln.CodeNotFound {
		return nil, kiln.Errorf(kiln.CodeNotFound, "template %q has no version %d", t.Name, number)
	}
	return v, err
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
