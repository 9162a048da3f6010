package api

import (
	"cmp"
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// Lifecycle says how long a sandbox lives.
type Lifecycle struct {
	TTLSeconds  int64 `json:"ttl_seconds" doc:"Seconds left; of a paused sandbox those that it has when it wakes"`
	Persistent  bool  `json:"persistent"`
	IdleSeconds int64 `json:"idle_seconds" doc:"0: it may be idle for ever"`
}

// LifecycleChange changes it.
type LifecycleChange struct {
	_           struct{} `additionalProperties:"true"`
	TTLSeconds  *int64   `json:"ttl_seconds,omitempty" doc:"Life in seconds from now"`
	Persistent  *bool    `json:"persistent,omitempty" doc:"Pause it, instead of ending it, when it expires or is idle"`
	IdleSeconds *int64   `json:"idle_seconds,omitempty" minimum:"0" maximum:"86400" doc:"0: never"`
}

// ForkSandbox asks for copies of a sandbox.
type ForkSandbox struct {
	Count    int
	TTL      time.Duration     // 0 means the parent's
	Metadata map[string]string // nil means the parent's
}

// Forked is one copy, or why there is none.
type Forked struct {
	Sandbox *kiln.Sandbox
	Err     error
}

// ForkRequest is the body of a fork request.
type ForkRequest struct {
	_          struct{}          `additionalProperties:"true"`
	Count      int               `json:"count,omitempty" minimum:"0" maximum:"100" doc:"How many copies; default 1"`
	TTLSeconds *int64            `json:"ttl_seconds,omitempty" doc:"Default the parent's"`
	Metadata   map[string]string `json:"metadata,omitempty" doc:"Default the parent's"`
}

// ForkResult lists the copies of a sandbox.
type ForkResult struct {
	ParentID string    `json:"parent_id"`
	Children []Sandbox `json:"children"`
	Errors   []Error   `json:"errors,omitempty" doc:"One for every copy that did not start"`
	At       time.Time `json:"at"`
}

type (
	lifecycleInput struct {
		SandboxID
		Body *LifecycleChange
	}
	lifecycleOutput struct{ Body Lifecycle }
	forkInput       struct {
		SandboxID
		Body *ForkRequest
	}
	forkOutput struct{ Body ForkResult }
)

func (s *Server) registerLifecycle() {
	tags := []string{"sandboxes"}
	register(s, route{Operation: huma.Operation{
		OperationID: "keepSandboxAlive", Method: http.MethodPost, Path: "/v1/sandboxes/{id}/keepalive", Tags: tags,
		Summary: "Let a sandbox live ttl_seconds from now, by default as long as was asked for last",
	}}, s.keepalive)
	register(s, route{Operation: huma.Operation{
		OperationID: "getLifecycle", Method: http.MethodGet, Path: "/v1/sandboxes/{id}/lifecycle", Tags: tags,
		Summary: "Show how long a sandbox lives",
	}}, s.getLifecycle)
	register(s, route{Operation: huma.Operation{
		OperationID: "changeLifecycle", Method: http.MethodPatch, Path: "/v1/sandboxes/{id}/lifecycle", Tags: tags,
		Summary: "Change how long a sandbox lives",
	}}, s.changeLifecycle)
	for _, name := range []string{"pause", "hibernate"} {
		register(s, route{Operation: huma.Operation{
			OperationID: name + "Sandbox", Method: http.MethodPost, Path: "/v1/sandboxes/{id}/" + name, Tags: tags,
			Summary: "Save a running sandbox and give back its CPU and memory; whatever uses it next wakes it",
		}, unbounded: true}, s.pauseSandbox)
	}
	for _, name := range []string{"wake", "resume"} {
		register(s, route{Operation: huma.Operation{
			OperationID: name + "Sandbox", Method: http.MethodPost, Path: "/v1/sandboxes/{id}/" + name, Tags: tags,
			Summary: "Let a paused sandbox run again",
		}, unbounded: true}, s.wakeSandbox)
	}
	register(s, route{Operation: huma.Operation{
		OperationID: "forkSandbox", Method: http.MethodPost, Path: "/v1/sandboxes/{id}/fork", Tags: tags,
		Summary: "Make running copies of a sandbox, each with an identity of its own", DefaultStatus: http.StatusCreated,
	}, unbounded: true}, s.forkSandbox)
}

func (s *Server) keepalive(ctx context.Context, in *lifecycleInput) (*sandboxOutput, error) {
	var seconds *int64
	if in.Body != nil {
		seconds = in.Body.TTLSeconds
	}
	ttl, err := s.ttl(seconds)
	if err != nil {
		return nil, err
	}
	if seconds == nil || *seconds == 0 {
		// A sandbox that was given an hour must not lose most of it by being kept alive.
		sb, err := s.opts.Sandboxes.Get(ctx, orgOf(ctx), in.ID)
		if err != nil {
			return nil, err
		}
		ttl = cmp.Or(sb.TTL, ttl)
	}
	return sandboxResult(s.opts.Sandboxes.ChangeLifecycle(ctx, orgOf(ctx), in.ID, kiln.LifecycleChange{TTL: &ttl}))
}

func sandboxResult(sb *kiln.Sandbox, err error) (*sandboxOutput, error) {
	if err != nil {
		return nil, err
	}
	return &sandboxOutput{Body: sandboxOf(sb)}, nil
}

func (s *Server) getLifecycle(ctx context.Context, in *SandboxID) (*lifecycleOutput, error) {
	sb, err := s.opts.Sandboxes.Get(ctx, orgOf(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &lifecycleOutput{Body: lifecycleOf(sb)}, nil
}

func (s *Server) changeLifecycle(ctx context.Context, in *lifecycleInput) (*lifecycleOutput, error) {
	if in.Body == nil {
		changed(ctx, false)
		return s.getLifecycle(ctx, &in.SandboxID)
	}
	noteIf(ctx, "ttl_seconds", in.Body.TTLSeconds)
	noteIf(ctx, "persistent", in.Body.Persistent)
	noteIf(ctx, "idle_seconds", in.Body.IdleSeconds)
	change := kiln.LifecycleChange{Persistent: in.Body.Persistent}
	if in.Body.TTLSeconds != nil {
		ttl, err := s.ttl(in.Body.TTLSeconds)
		if err != nil {
			return nil, err
		}
		change.TTL = &ttl
	}
	if in.Body.IdleSeconds != nil {
		idle := time.Duration(*in.Body.IdleSeconds) * time.Second
		change.IdleTimeout = &idle
	}
	sb, err := s.opts.Sandboxes.ChangeLifecycle(ctx, orgOf(ctx), in.ID, change)
	if err != nil {
		return nil, err
	}
	return &lifecycleOutput{Body: lifecycleOf(sb)}, nil
}

func lifecycleOf(s *kiln.Sandbox) Lifecycle {
	left := time.Until(s.ExpiresAt).Round(time.Second)
	if s.ExpiresAt.IsZero() {
		left = s.TTL
	}
	return Lifecycle{
		TTLSeconds: max(0, int64(left/time.Second)), Persistent: s.Persistent, IdleSeconds: int64(s.IdleTimeout / time.Second),
	}
}

func (s *Server) pauseSandbox(ctx context.Context, in *SandboxID) (*sandboxOutput, error) {
	return sandboxResult(s.opts.Sandboxes.Pause(ctx, orgOf(ctx), in.ID))
}

func (s *Server) wakeSandbox(ctx context.Context, in *SandboxID) (*sandboxOutput, error) {
	return sandboxResult(s.opts.Sandboxes.Wake(ctx, orgOf(ctx), in.ID))
}

func (s *Server) forkSandbox(ctx context.Context, in *forkInput) (*forkOutput, error) {
	req := ForkSandbox{Count: 1}
	if in.Body != nil {
		req.Count, req.Metadata = max(1, in.Body.Count), in.Body.Metadata
		if in.Body.TTLSeconds != nil {
			var err error
			if req.TTL, err = s.ttl(in.Body.TTLSeconds); err != nil {
				return nil, err
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	forked, err := s.opts.Sandboxes.Fork(ctx, orgOf(ctx), in.ID, req)
	if err != nil {
		return nil, err
	}
	out := &forkOutput{Body: ForkResult{ParentID: in.ID, Children: []Sandbox{}, At: time.Now().UTC()}}
	var children []string
	for _, f := range forked {
		if f.Err != nil {
			out.Body.Errors = append(out.Body.Errors, *errorFor(ctx, s.log, "fork", f.Err))
			continue
		}
		out.Body.Children = append(out.Body.Children, sandboxOf(f.Sandbox))
		children = append(children, f.Sandbox.ID)
	}
	note(ctx, "children", join(children))
	changed(ctx, len(children) > 0)
	return out, nil
}
