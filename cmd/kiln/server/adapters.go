package server

import (
	"context"
	"errors"
	"iter"

	"go.opentelemetry.io/otel/attribute"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/pipeline"
	"github.com/kilnvm/kiln/internal/sandbox"
	"github.com/kilnvm/kiln/internal/span"
	"github.com/kilnvm/kiln/internal/store"
)

// templates is the pipeline as the API wants it.
type templates struct {
	*pipeline.Service
	sandboxes sandboxes
	store     *store.Store
}

// Create implements api.Templates.
func (t templates) Create(ctx context.Context, orgID string, req api.NewTemplate) (api.Queued, error) {
	return queued(t.Service.Create(ctx, orgID, pipeline.NewTemplate(req)))
}

// Rebuild implements api.Templates.
func (t templates) Rebuild(ctx context.Context, orgID string, req api.NewVersion) (api.Queued, error) {
	return queued(t.Service.Rebuild(ctx, orgID, pipeline.Rebuild(req)))
}

func queued(res *pipeline.Result, err error) (api.Queued, error) {
	if err != nil {
		return api.Queued{}, err
	}
	return api.Queued{Template: res.Template, Version: res.Version, Unchanged: res.Unchanged, Warnings: res.Warnings}, nil
}

// versions is the pipeline as the API wants it for versions.
type versions struct{ *pipeline.Service }

// ListPage implements api.Versions.
func (v versions) ListPage(ctx context.Context, orgID string, q api.TemplateQuery) ([]*kiln.Template, string, error) {
	return v.Service.ListPage(ctx, orgID, pipeline.Query(q))
}

// Logs implements api.Templates.
func (t templates) Logs(ctx context.Context, orgID, buildID string, offset int64, follow bool) iter.Seq2[api.LogLine, error] {
	return func(yield func(api.LogLine, error) bool) {
		for l, err := range t.Service.Logs(ctx, orgID, buildID, offset, follow) {
			if !yield(api.LogLine{
				Next: l.Next, Time: l.Time, Stage: l.Stage, Line: l.Line, Kind: l.Kind, Event: l.Event, Result: l.Result,
			}, err) {
				return
			}
		}
	}
}

// sandboxes is the manager as the API wants it: each organisation sees its own.
type sandboxes struct {
	*sandbox.Manager
	catalog *pipeline.Service
}

// Create implements api.Sandboxes.
func (s sandboxes) Create(ctx context.Context, req api.NewSandbox) (*kiln.Sandbox, error) {
	sb, err := s.Manager.Create(ctx, sandbox.CreateRequest{
		OrgID: req.OrgID, Template: req.Template, Size: req.Size, TTL: req.TTL, Env: req.Env, Metadata: req.Metadata,
		BootMode: req.BootMode, Egress: req.Egress,
		Persistent: req.Persistent, IdleTimeout: req.IdleTimeout,
	})
	if err != nil {
		return nil, s.onFirstUse(ctx, req.OrgID, req.Template, err)
	}
	return sb, nil
}

// List implements api.Sandboxes.
func (s sandboxes) List(ctx context.Context, f kiln.SandboxFilter) ([]*kiln.Sandbox, error) {
	return s.Manager.Find(ctx, f)
}

// Get implements api.Sandboxes.
func (s sandboxes) Get(ctx context.Context, orgID, id string) (*kiln.Sandbox, error) {
	sb, err := s.Manager.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if sb.OrgID != orgID {
		return nil, kiln.Errorf(kiln.CodeNotFound, "sandbox %q does not exist", id)
	}
	return sb, nil
}

// ChangeLifecycle implements api.Sandboxes.
func (s sandboxes) ChangeLifecycle(ctx context.Context, orgID, id string, c kiln.LifecycleChange) (*kiln.Sandbox, error) {
	if _, err := s.Get(ctx, orgID, id); err != nil {
		return nil, err
	}
	return s.Manager.ChangeLifecycle(ctx, id, c)
}

// Console implements api.Observer; Usage is the manager's.
func (s sandboxes) Console(ctx context.Context, orgID, id string) (string, <-chan struct{}, error) {
	if _, err := s.Get(ctx, orgID, id); err != nil {
		return "", nil, err
	}
	return s.Manager.Console(ctx, id)
}

// Pause implements api.Sandboxes.
func (s sandboxes) Pause(ctx context.Context, orgID, id string) (*kiln.Sandbox, error) {
	if _, err := s.Get(ctx, orgID, id); err != nil {
		return nil, err
	}
	return s.Manager.Pause(ctx, id)
}

// Wake implements api.Sandboxes.
func (s sandboxes) Wake(ctx context.Context, orgID, id string) (*kiln.Sandbox, error) {
	if _, err := s.Get(ctx, orgID, id); err != nil {
		return nil, err
	}
	return s.Manager.Wake(ctx, id)
}

// Fork implements api.Sandboxes.
func (s sandboxes) Fork(ctx context.Context, orgID, id string, req api.ForkSandbox) ([]api.Forked, error) {
	if _, err := s.Get(ctx, orgID, id); err != nil {
		return nil, err
	}
	forked, err := s.Manager.Fork(ctx, id, sandbox.ForkRequest(req))
	if err != nil {
		return nil, err
	}
	list := make([]api.Forked, len(forked))
	for i, f := range forked {
		list[i] = api.Forked(f)
	}
	return list, nil
}

// Destroy implements api.Sandboxes.
func (s sandboxes) Destroy(ctx context.Context, orgID, id string) error {
	if _, err := s.Get(ctx, orgID, id); err != nil {
		return err
	}
	return s.Manager.Destroy(ctx, id)
}

// Guest implements api.Sandboxes.
func (s sandboxes) Guest(ctx context.Context, orgID, id string) (api.Guest, error) {
	if _, err := s.Get(ctx, orgID, id); err != nil {
		return nil, err
	}
	g, err := s.Manager.Guest(ctx, id)
	if err != nil {
		return nil, notRunning(err)
	}
	return g, nil
}

// notRunning says of a sandbox that has ended what is said of one that never was: for
// whoever wants to use it, it does not exist.
func notRunning(err error) error {
	var e *kiln.Error
	if errors.As(err, &e) && e.Code == kiln.CodeConflict {
		return &kiln.Error{Code: kiln.CodeNotFound, Message: e.Message, Hint: e.Hint, Err: e}
	}
	return err
}

// daemons finds the daemons of running sandboxes for the proxy.
type daemons struct{ *sandbox.Manager }

// Lookup implements proxy.Sandboxes. The span of the request learns what the sandbox is made
// from.
func (d daemons) Lookup(ctx context.Context, id string) (string, *guest.Client, error) {
	sb, err := d.Get(ctx, id)
	if err != nil {
		return "", nil, err
	}
	span.Note(ctx, attribute.String("kiln.template", sb.TemplateID), attribute.Int("kiln.version", sb.Version), attribute.String("kiln.size", sb.Size))
	g, err := d.Guest(ctx, id)
	return sb.OrgID, g, notRunning(err)
}
