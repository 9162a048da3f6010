package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/kilnvm/kiln"
)

// Cursor is a place in the list of templates: after the one with this name and ID.
type Cursor struct{ Name, ID string }

// Filter says which templates are listed. Its zero value lists all.
type Filter struct {
	Status  kiln.VersionStatus // of the template; "" any
	BuiltIn *bool
	Prefix  string // of the name
	Tag     string // one of the words that the metadata calls tags
}

// where returns the conditions beside those on owner and place, with their arguments.
func (f Filter) where() (string, []any) {
	var where strings.Builder
	var args []any
	add := func(condition string, more ...any) {
		where.WriteString(" AND " + condition)
		args = append(args, more...)
	}
	if f.Prefix != "" {
		// Names hold nothing beyond '~', so that the index finds a prefix as a range.
		add(`t.name >= ? AND t.name < ?`, f.Prefix, f.Prefix+"\x7f")
	}
	if f.Status != "" {
		add(`CASE WHEN t.current > 0 THEN 'ready' ELSE (SELECT v.status FROM versions v WHERE v.template_id = t.id AND v.number = t.latest) END = ?`, f.Status)
	}
	if f.Tag != "" {
		text, _ := json.Marshal(f.Tag) // a string always marshals
		add(`replace(t.tags_json, ?, '') <> t.tags_json`, string(text))
	}
	return where.String(), args
}

// ListTemplates returns up to limit templates that orgID sees and that match the filter,
// its own and the built-in ones, by name, from after the given place. The next place is
// nil at the end.
func (s *Store) ListTemplates(ctx context.Context, orgID string, f Filter, after *Cursor, limit int) ([]*kiln.Template, *Cursor, error) {
	var from Cursor
	if after != nil {
		from = *after
	}
	var halves []string
	var args []any
	where, whereArgs := f.where()
	for _, owner := range []string{orgID, ""} {
		if f.BuiltIn != nil && *f.BuiltIn != (owner == "") {
			continue
		}
		// Each half reads only its page from the index, whatever else the table holds.
		halves = append(halves, `SELECT id FROM (SELECT t.id FROM templates t WHERE t.org_id = ? AND t.deleted_at = 0 AND (t.name, t.id) > (?, ?)`+
			where+` ORDER BY t.name, t.id LIMIT ?) AS page`)
		args = append(append(append(args, owner, from.Name, from.ID), whereArgs...), limit+1)
	}
	rows, err := s.readers.QueryContext(ctx, selectTemplate+`WHERE t.id IN (`+strings.Join(halves, ` UNION ALL `)+`) ORDER BY t.name, t.id LIMIT ?`,
		append(args, limit+1)...)
	if err != nil {
		return nil, nil, fmt.Errorf("list templates: %w", err)
	}
	list, err := collect(rows, scanTemplateAndVersions)
	if err != nil {
		return nil, nil, fmt.Errorf("list templates: %w", err)
	}
	if len(list) <= limit {
		return list, nil, nil
	}
	last := list[limit-1]
	return list[:limit], &Cursor{Name: last.Name, ID: last.ID}, nil
}
