package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
)

// sandboxRecord is a sandbox with the fields that its JSON form hides from users.
type sandboxRecord struct {
	kiln.Sandbox
	OrgID       string            `json:"org_id"`
	BootTime    time.Duration     `json:"boot_time_ns"`
	Env         map[string]string `json:"env"`
	AccessToken string            `json:"access_token"`
	Process     kiln.Process      `json:"process"`
	TTL         time.Duration     `json:"ttl_ns"`
	IdleTimeout time.Duration     `json:"idle_timeout_ns"`
}

func recordOf(s *kiln.Sandbox) sandboxRecord {
	return sandboxRecord{
		Sandbox: *s, OrgID: s.OrgID, BootTime: s.BootTime, Env: s.Env, AccessToken: s.AccessToken, Process: s.Process,
		TTL: s.TTL, IdleTimeout: s.IdleTimeout,
	}
}

func scanSandbox(row scanner) (*kiln.Sandbox, error) {
	var r sandboxRecord
	if err := row.Scan(jsonColumn{&r}); err != nil {
		return nil, err
	}
	s := r.Sandbox
	s.OrgID, s.BootTime, s.Env, s.AccessToken, s.Process = r.OrgID, r.BootTime, r.Env, r.AccessToken, r.Process
	s.TTL, s.IdleTimeout = r.TTL, r.IdleTimeout
	return &s, nil
}

// CreateSandbox stores a sandbox before it holds any resource. From then on the files of
// its version are kept; if they have been given up already it is a conflict.
func (s *Store) CreateSandbox(ctx context.Context, sb *kiln.Sandbox) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		if err := checkKept(ctx, tx, sb.TemplateID, sb.Version, sb.Template); err != nil {
			return err
		}
		_, err := exec(ctx, tx, `INSERT INTO sandboxes (id, org_id, template_id, template, version, status, living, created_at, sandbox_json)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			sb.ID, sb.OrgID, sb.TemplateID, sb.Template, sb.Version, sb.Status, sb.Status.Living(), nanos(sb.CreatedAt), jsonColumn{recordOf(sb)})
		if duplicate(err) {
			return kiln.Errorf(kiln.CodeConflict, "sandbox %s exists already", sb.ID)
		}
		if err != nil {
			return fmt.Errorf("sandbox %s: %w", sb.ID, err)
		}
		for name, value := range sb.Metadata {
			_, err := exec(ctx, tx, `INSERT INTO sandbox_metadata (sandbox_id, name, value) VALUES (?, ?, ?)`, sb.ID, name, value)
			if err != nil {
				return fmt.Errorf("sandbox %s: metadata: %w", sb.ID, err)
			}
		}
		return nil
	})
}

// UpdateSandbox replaces every field, but for the metadata, of the sandbox with that ID. A status that does not
// follow from the stored one is a conflict.
func (s *Store) UpdateSandbox(ctx context.Context, sb *kiln.Sandbox) error {
	return s.write(ctx, func(ctx context.Context, tx *txn) error {
		old, err := findSandbox(ctx, tx, sb.ID)
		if err != nil {
			return err
		}
		if old.Status != sb.Status && !old.Status.CanBecome(sb.Status) {
			return kiln.Errorf(kiln.CodeConflict, "sandbox %s is %s and cannot become %s", sb.ID, old.Status, sb.Status)
		}
		_, err = exec(ctx, tx, `UPDATE sandboxes SET status = ?, living = ?, sandbox_json = ? WHERE id = ?`,
			sb.Status, sb.Status.Living(), jsonColumn{recordOf(sb)}, sb.ID)
		if err != nil {
			return fmt.Errorf("sandbox %s: %w", sb.ID, err)
		}
		return nil
	})
}

// Sandbox returns one sandbox, living or ended.
func (s *Store) Sandbox(ctx context.Context, id string) (*kiln.Sandbox, error) {
	return findSandbox(ctx, s.readers, id)
}

func findSandbox(ctx context.Context, q querier, id string) (*kiln.Sandbox, error) {
	sb, err := scanSandbox(q.QueryRowContext(ctx, `SELECT sandbox_json FROM sandboxes WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, kiln.Errorf(kiln.CodeNotFound, "sandbox %q does not exist", id)
	}
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", id, err)
	}
	return sb, nil
}

// LivingSandboxes returns those that still hold resources, of every organisation, oldest
// first.
func (s *Store) LivingSandboxes(ctx context.Context) ([]*kiln.Sandbox, error) {
	rows, err := s.readers.QueryContext(ctx, `SELECT sandbox_json FROM sandboxes WHERE living ORDER BY created_at, id`)
	if err != nil {
		return nil, fmt.Errorf("living sandboxes: %w", err)
	}
	list, err := collect(rows, scanSandbox)
	if err != nil {
		return nil, fmt.Errorf("living sandboxes: %w", err)
	}
	return list, nil
}

// ListSandboxes returns the sandboxes that f chooses, oldest first.
func (s *Store) ListSandboxes(ctx context.Context, f kiln.SandboxFilter) ([]*kiln.Sandbox, error) {
	query, args := sandboxQuery(f)
	rows, err := s.readers.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	list, err := collect(rows, scanSandbox)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	return list, nil
}

func sandboxQuery(f kiln.SandboxFilter) (query string, args []any) {
	var where []string
	add := func(condition string, values ...any) {
		where, args = append(where, condition), append(args, values...)
	}
	if len(f.Statuses) == 0 {
		add("living")
	} else {
		values := make([]any, len(f.Statuses))
		for i, status := range f.Statuses {
			values[i] = status
		}
		add("status IN (?"+strings.Repeat(", ?", len(values)-1)+")", values...)
	}
	if f.OrgID != "" {
		add("org_id = ?", f.OrgID)
	}
	if f.Template != "" {
		add("(template_id = ? OR template = ?)", f.Template, f.Template)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Metadata)) {
		add("EXISTS (SELECT 1 FROM sandbox_metadata m WHERE m.sandbox_id = sandboxes.id AND m.name = ? AND m.value = ?)",
			name, f.Metadata[name])
	}
	if f.After.ID != "" {
		add("(created_at, id) > (?, ?)", nanos(f.After.CreatedAt), f.After.ID)
	}
	query = `SELECT sandbox_json FROM sandboxes WHERE ` + strings.Join(where, " AND ") + ` ORDER BY created_at, id`
	if f.Limit > 0 {
		query, args = query+" LIMIT ?", append(args, f.Limit)
	}
	return query, args
}
