package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// Sandboxes is the sandbox manager as the API needs it. Every method sees only the
// organisation's own sandboxes; others do not exist.
type Sandboxes interface {
	// Create returns when the sandbox's daemon has answered.
	Create(ctx context.Context, req NewSandbox) (*kiln.Sandbox, error)
	// List returns the sandboxes that f chooses, oldest first.
	List(ctx context.Context, f kiln.SandboxFilter) ([]*kiln.Sandbox, error)
	Get(ctx context.Context, orgID, id string) (*kiln.Sandbox, error)
	// ChangeLifecycle changes how long a sandbox lives.
	ChangeLifecycle(ctx context.Context, orgID, id string, c kiln.LifecycleChange) (*kiln.Sandbox, error)
	// Pause saves a running sandbox and gives back what it uses of the host. One that is
	// paused already is a conflict.
	Pause(ctx context.Context, orgID, id string) (*kiln.Sandbox, error)
	// Wake lets a paused sandbox run again. One that runs stays as it is.
	Wake(ctx context.Context, orgID, id string) (*kiln.Sandbox, error)
	// Fork makes running copies of a sandbox; the result has one element per copy.
	Fork(ctx context.Context, orgID, id string, req ForkSandbox) ([]Forked, error)
	// Destroy ends a sandbox and releases what it holds. It is idempotent for a sandbox
	// that has existed.
	Destroy(ctx context.Context, orgID, id string) error
	// Guest returns the daemon of a sandbox, whose requests wake it if it is paused. One
	// that has ended is not found.
	Guest(ctx context.Context, orgID, id string) (Guest, error)
}

// NewSandbox asks for a sandbox.
type NewSandbox struct {
	OrgID    string
	Template string // reference
	Size     string // "" means the template's default
	Env      map[string]string
	Metadata map[string]string
	TTL      time.Duration
	// Persistent sandboxes are paused, not ended, when they expire or have been idle.
	Persistent  bool
	IdleTimeout time.Duration // 0 means for ever
	BootMode    kiln.BootMode // the only start path that will do; "" means the fastest there is
	Egress      kiln.EgressPolicy
}

// DefaultTemplate is what a request without a template gets, as with PandaStack.
const DefaultTemplate = "ubuntu-24.04"

// createTimeout bounds the start of a sandbox, cold boots on slow machines included.
const createTimeout = 3 * time.Minute

// Sandbox is a sandbox as its owner sees it.
type Sandbox struct {
	kiln.Sandbox
	// Network shadows the stored field: nothing passed is an answer, too.
	Network *kiln.NetworkUse `json:"network,omitempty" doc:"What passed; where several are listed, of those that run only what passed before they were paused last"`
	BootMS  int64            `json:"boot_ms" doc:"Milliseconds from the request to the daemon's first answer"`
	BootUS  int64            `json:"boot_us" doc:"The same in microseconds"`
}

func sandboxOf(s *kiln.Sandbox) Sandbox {
	out := Sandbox{Sandbox: *s, BootMS: s.BootTime.Milliseconds(), BootUS: s.BootTime.Microseconds()}
	if s.Network != (kiln.NetworkUse{}) {
		out.Network = &s.Network
	}
	return out
}

// CreateSandboxRequest is the body of a create request.
type CreateSandboxRequest struct {
	_            struct{}          `additionalProperties:"true"`
	Template     string            `json:"template,omitempty" doc:"Reference: ID, name, name:tag or name@version; default ubuntu-24.04"`
	Size         string            `json:"size,omitempty" doc:"VM size; default the template's"`
	TTLSeconds   *int64            `json:"ttl_seconds,omitempty" doc:"Life in seconds, 1 to 86400"`
	Env          map[string]string `json:"env,omitempty" doc:"Variables of every command"`
	Metadata     map[string]string `json:"metadata,omitempty"`
	BootMode     string            `json:"boot_mode,omitempty" doc:"For tests and measurements: warm, spawned (snapshot, by a VMM that was started ahead), snapshot (by one started now) or cold, and an error where that is impossible; default the fastest path there is"`
	Egress       *EgressChange     `json:"egress,omitempty" doc:"What the sandbox may reach; default the template's"`
	Persistent   bool              `json:"persistent,omitempty" doc:"Pause it, instead of ending it, when it expires or is idle"`
	IdleSeconds  int64             `json:"idle_seconds,omitempty" minimum:"0" maximum:"86400" doc:"Pause or end it when nobody has used it for so long; 0: never"`
	FromSnapshot string            `json:"from_snapshot,omitempty" doc:"Not supported: must be empty"`
	Volumes      []any             `json:"volumes,omitempty" doc:"Not supported: must be empty"`
}

// FirstUse refuses a sandbox and says that the build of its built-in template has begun.
type FirstUse struct {
	Template string
	Refusal  error
}

func (e *FirstUse) Error() string { return e.Refusal.Error() }

// Unwrap returns the refusal.
func (e *FirstUse) Unwrap() error { return e.Refusal }

// SandboxID is the path parameter of everything about one sandbox.
type SandboxID struct {
	ID string `path:"id" example:"iabcdefghijklmnopqrst"`
}

type (
	createSandboxInput struct{ Body *CreateSandboxRequest }
	sandboxOutput      struct{ Body Sandbox }
)

func (s *Server) registerSandboxes() {
	tags := []string{"sandboxes"}
	register(s, route{Operation: huma.Operation{
		OperationID: "createSandbox", Method: http.MethodPost, Path: "/v1/sandboxes", Tags: tags,
		Summary: "Start a sandbox; answers when it can run commands", DefaultStatus: http.StatusCreated,
	}, unbounded: true}, s.createSandbox)
	register(s, route{Operation: huma.Operation{
		OperationID: "getSandbox", Method: http.MethodGet, Path: "/v1/sandboxes/{id}", Tags: tags,
		Summary: "Show one sandbox",
	}}, s.getSandbox)
	register(s, route{Operation: huma.Operation{
		OperationID: "deleteSandbox", Method: http.MethodDelete, Path: "/v1/sandboxes/{id}", Tags: tags,
		Summary: "End a sandbox at once", DefaultStatus: http.StatusNoContent,
	}}, s.deleteSandbox)
	s.registerSandboxList()
	s.registerLifecycle()
}

func (s *Server) createSandbox(ctx context.Context, in *createSandboxInput) (*sandboxOutput, error) {
	body := in.Body
	if body == nil {
		body = &CreateSandboxRequest{}
	}
	req, err := s.newSandbox(ctx, body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	sb, err := s.opts.Sandboxes.Create(ctx, req)
	var first *FirstUse
	if errors.As(err, &first) {
		note(ctx, "build_of", first.Template)
		changed(ctx, true)
	}
	if err != nil {
		return nil, err
	}
	note(ctx, "sandbox", sb.ID)
	note(ctx, "template", req.Template)
	return &sandboxOutput{Body: sandboxOf(sb)}, nil
}

func (s *Server) newSandbox(ctx context.Context, body *CreateSandboxRequest) (NewSandbox, error) {
	switch {
	case body.FromSnapshot != "":
		return NewSandbox{}, notSupported("sandboxes from a snapshot (from_snapshot)")
	case len(body.Volumes) > 0:
		return NewSandbox{}, notSupported("volumes")
	}
	req := NewSandbox{OrgID: orgOf(ctx), Template: body.Template, Size: body.Size, Env: body.Env, Metadata: body.Metadata,
		Persistent: body.Persistent, IdleTimeout: time.Duration(body.IdleSeconds) * time.Second}
	if body.Egress != nil {
		req.Egress = body.Egress.Policy()
		if err := req.Egress.Validate(); err != nil {
			return NewSandbox{}, err
		}
	}
	var err error
	if req.BootMode, err = kiln.ParseBootMode(body.BootMode); err != nil {
		return NewSandbox{}, err
	}
	if req.Template == "" {
		req.Template = DefaultTemplate
	}
	if _, err := kiln.ParseTemplateRef(req.Template); err != nil {
		return NewSandbox{}, err
	}
	if req.Size != "" {
		if _, err := kiln.SizeByName(req.Size); err != nil {
			return NewSandbox{}, err
		}
	}
	if err := checkEnv(req.Env); err != nil {
		return NewSandbox{}, err
	}
	req.TTL, err = s.ttl(body.TTLSeconds)
	return req, err
}

func notSupported(what string) error {
	return kiln.Errorf(kiln.CodeInvalid, "%s are not supported", what)
}

// checkEnv refuses names that no process can have in its environment.
func checkEnv(env map[string]string) error {
	for name, value := range env {
		if !validEnv(name, value) {
			return kiln.Errorf(kiln.CodeInvalid, "environment variable %q: the name must be without '=' and neither may hold NUL", name)
		}
	}
	return nil
}

// ttl checks a requested life; nil asks for the default.
func (s *Server) ttl(seconds *int64) (time.Duration, error) {
	if seconds == nil || *seconds == 0 { // PandaStack's client sends 0 for "not given"
		return s.opts.DefaultTTL, nil
	}
	if *seconds < 1 || *seconds > int64(kiln.MaxTTL/time.Second) {
		return 0, kiln.Errorf(kiln.CodeInvalid, "ttl_seconds %d is not between 1 and %d", *seconds, int64(kiln.MaxTTL/time.Second))
	}
	return time.Duration(*seconds) * time.Second, nil
}

func (s *Server) getSandbox(ctx context.Context, in *SandboxID) (*sandboxOutput, error) {
	sb, err := s.opts.Sandboxes.Get(ctx, orgOf(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	out := sandboxOf(sb)
	// What cannot be counted does not keep anybody from looking at the rest.
	if use, err := s.opts.Networks.NetworkUse(ctx, orgOf(ctx), in.ID); err == nil {
		out.Network = &use
	}
	return &sandboxOutput{Body: out}, nil
}

func (s *Server) deleteSandbox(ctx context.Context, in *SandboxID) (*struct{}, error) {
	return nil, s.opts.Sandboxes.Destroy(ctx, orgOf(ctx), in.ID)
}
