package sandbox

import (
	"context"

	"github.com/kilnvm/kiln"
)

// Store is what the manager remembers across restarts. It deals in copies: what it is
// given and what it returns may be changed by either side afterwards. A thing that does
// not exist is a *kiln.Error with code not_found.
type Store interface {
	// ResolveTemplate finds the template that ref means to an organisation, and the
	// version it is pinned to, else the promoted one. The version is nil when the
	// template has none that is ready and ref pins none.
	ResolveTemplate(ctx context.Context, orgID string, ref kiln.TemplateRef) (*kiln.Template, *kiln.Version, error)
	// Snapshot returns the golden snapshot stored under exactly this key.
	Snapshot(ctx context.Context, key kiln.Digest) (*kiln.Snapshot, error)

	// WarmTargets returns how many warm slots were asked for, of which templates.
	WarmTargets(ctx context.Context) ([]kiln.WarmTarget, error)

	// CreateSandbox stores a sandbox before it holds any resource.
	CreateSandbox(ctx context.Context, s *kiln.Sandbox) error
	// UpdateSandbox replaces every field of the sandbox with that ID.
	UpdateSandbox(ctx context.Context, s *kiln.Sandbox) error
	// Sandbox returns one sandbox, living or ended.
	Sandbox(ctx context.Context, id string) (*kiln.Sandbox, error)
	// ListSandboxes returns those that f chooses, oldest first.
	ListSandboxes(ctx context.Context, f kiln.SandboxFilter) ([]*kiln.Sandbox, error)
	// LivingSandboxes returns those whose status is Living, of every organisation,
	// oldest first.
	LivingSandboxes(ctx context.Context) ([]*kiln.Sandbox, error)
}
