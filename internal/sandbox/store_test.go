package sandbox

import (
	"context"
	"slices"
	"sync"

	"github.com/kilnvm/kiln"
)

// memoryStore is a Store that forgets, with the rules of the real one.
type memoryStore struct {
	mu        sync.Mutex
	template  kiln.Template
	version   *kiln.Version
	snapshots map[kiln.Digest]*kiln.Snapshot
	sandboxes map[string]kiln.Sandbox
	order     []string
	targets   []kiln.WarmTarget
	fail      func(op string) error
}

func (s *memoryStore) check(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.fail == nil {
		return nil
	}
	return s.fail(op)
}

func (s *memoryStore) ResolveTemplate(ctx context.Context, orgID string, ref kiln.TemplateRef) (*kiln.Template, *kiln.Version, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ref.NameOrID != s.template.Name && ref.NameOrID != s.template.ID || orgID != s.template.OrgID {
		return nil, nil, kiln.Errorf(kiln.CodeNotFound, "template %q does not exist", ref)
	}
	t := s.template
	return &t, s.version, s.check(ctx, "resolve")
}

func (s *memoryStore) Snapshot(ctx context.Context, key kiln.Digest) (*kiln.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if snap, ok := s.snapshots[key]; ok {
		return snap, s.check(ctx, "snapshot")
	}
	return nil, kiln.Errorf(kiln.CodeNotFound, "no snapshot %s", key.Short())
}

func (s *memoryStore) WarmTargets(ctx context.Context) ([]kiln.WarmTarget, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.targets), s.check(ctx, "targets")
}

func (s *memoryStore) CreateSandbox(ctx context.Context, sb *kiln.Sandbox) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(ctx, "create"); err != nil {
		return err
	}
	s.sandboxes[sb.ID] = *sb
	s.order = append(s.order, sb.ID)
	return nil
}

func (s *memoryStore) UpdateSandbox(ctx context.Context, sb *kiln.Sandbox) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(ctx, "update "+string(sb.Status)); err != nil {
		return err
	}
	old, ok := s.sandboxes[sb.ID]
	if !ok {
		return kiln.Errorf(kiln.CodeNotFound, "no sandbox %s", sb.ID)
	}
	if old.Status != sb.Status && !old.Status.CanBecome(sb.Status) {
		return kiln.Errorf(kiln.CodeConflict, "%s cannot become %s", old.Status, sb.Status)
	}
	s.sandboxes[sb.ID] = *sb
	return nil
}

func (s *memoryStore) Sandbox(ctx context.Context, id string) (*kiln.Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb, ok := s.sandboxes[id]
	if !ok {
		return nil, kiln.Errorf(kiln.CodeNotFound, "sandbox %q does not exist", id)
	}
	return &sb, s.check(ctx, "get")
}

func (s *memoryStore) LivingSandboxes(ctx context.Context) ([]*kiln.Sandbox, error) {
	return slices.DeleteFunc(s.all(), func(sb *kiln.Sandbox) bool { return !sb.Status.Living() }), s.check(ctx, "living")
}

func (s *memoryStore) ListSandboxes(ctx context.Context, f kiln.SandboxFilter) ([]*kiln.Sandbox, error) {
	return slices.DeleteFunc(s.all(), func(sb *kiln.Sandbox) bool { return !sb.Status.Living() || f.OrgID != "" && sb.OrgID != f.OrgID }),
		s.check(ctx, "list")
}

// all returns every sandbox ever made.
func (s *memoryStore) all() []*kiln.Sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*kiln.Sandbox
	for _, id := range s.order {
		sb := s.sandboxes[id]
		list = append(list, &sb)
	}
	return list
}
