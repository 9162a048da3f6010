package sandbox

import (
	"context"
	"maps"
	"time"

	"github.com/kilnvm/kiln"
)

// CreateRequest asks for a sandbox.
type CreateRequest struct {
	OrgID    string
	Template string            // ID or name, with an optional "@version" or ":tag"
	Size     string            // "" means the template's default
	TTL      time.Duration     // 0 means the default
	Env      map[string]string // over the template's
	Metadata map[string]string // the user's own words, returned as they are
	// Persistent sandboxes are paused, not ended, when they expire or are idle.
	Persistent  bool
	IdleTimeout time.Duration // 0 means that it may be idle for ever
	// BootMode is the only start path that will do; "" means the fastest there is.
	BootMode kiln.BootMode
	// Egress is what the sandbox may reach, where its template does not say it.
	Egress kiln.EgressPolicy
}

// plan is a valid request with everything it refers to.
type plan struct {
	template *kiln.Template
	version  *kiln.Version
	size     kiln.Size
	spec     kiln.VMSpec
	ttl      time.Duration
	bootMode kiln.BootMode // "" means the fastest there is
}

// plan resolves and checks req.
func (m *Manager) plan(ctx context.Context, req CreateRequest) (*plan, error) {
	ttl, err := m.checkTTL(req.TTL)
	if err != nil {
		return nil, err
	}
	if err := m.checkIdleTimeout(req.IdleTimeout); err != nil {
		return nil, err
	}
	if err := kiln.CheckEnv(req.Env); err != nil {
		return nil, err
	}
	if err := kiln.CheckPairs("metadata", req.Metadata); err != nil {
		return nil, err
	}
	if err := m.checkEgress(req.Egress); err != nil {
		return nil, err
	}
	ref, err := kiln.ParseTemplateRef(req.Template)
	if err != nil {
		return nil, err
	}
	t, v, err := m.opts.Store.ResolveTemplate(ctx, req.OrgID, ref)
	if err != nil {
		return nil, err
	}
	if err := checkReady(ref, t, v); err != nil {
		return nil, err
	}
	size, err := chooseSize(m.opts.Sizes, req.Size, t, v)
	if err != nil {
		return nil, err
	}
	return &plan{template: t, version: v, size: size, spec: v.VMSpec(size), ttl: ttl, bootMode: req.BootMode}, nil
}

// sandbox returns the new sandbox that req and p describe.
func (p *plan) sandbox(req CreateRequest, now time.Time) kiln.Sandbox {
	return kiln.Sandbox{
		ID: kiln.NewSandboxID(), OrgID: req.OrgID,
		TemplateID: p.template.ID, Template: p.template.Name, Version: p.version.Number,
		Size: p.size.Name, VCPUs: p.size.VCPUs, MemoryMiB: p.size.MemoryMiB, DiskMB: p.spec.ScratchMB,
		Status:   kiln.SandboxCreating,
		Metadata: maps.Clone(req.Metadata), Env: maps.Clone(req.Env),
		CreatedAt: now, ExpiresAt: now.Add(p.ttl), TTL: p.ttl, Persistent: req.Persistent, IdleTimeout: req.IdleTimeout,
		AccessToken: kiln.NewID("") + kiln.NewID(""),
		Egress:      req.Egress.Over(p.version.Metadata.Egress),
	}
}

func checkReady(ref kiln.TemplateRef, t *kiln.Template, v *kiln.Version) error {
	if v != nil && v.Status == kiln.VersionReady {
		return nil
	}
	latest := t.Latest
	if v != nil {
		latest = v
	}
	switch {
	case latest != nil && latest.Status == kiln.VersionFailed:
		return kiln.Errorf(kiln.CodeConflict, "template %q: its build failed", ref).
			WithHint("`kiln templates show %s` tells why", ref.NameOrID)
	default:
		return kiln.Errorf(kiln.CodeConflict, "template %q is not built yet", ref).
			WithHint("`kiln templates logs -f %s` follows the build", ref.NameOrID)
	}
}

func chooseSize(sizes kiln.SizeTable, name string, t *kiln.Template, v *kiln.Version) (kiln.Size, error) {
	if name == "" {
		name = v.DefaultSize()
	}
	size, err := sizes.ByName(name)
	if err != nil {
		return kiln.Size{}, err
	}
	if v.Metadata.MinSize == "" {
		return size, nil
	}
	smallest, err := kiln.SizeByName(v.Metadata.MinSize)
	if err != nil {
		return kiln.Size{}, err
	}
	if !size.Holds(smallest) {
		return kiln.Size{}, kiln.Errorf(kiln.CodeInvalid, "size %s is too small for template %q", size.Name, t.Name).
			WithHint("it needs at least %s", smallest.Name)
	}
	return size, nil
}

func (m *Manager) checkTTL(ttl time.Duration) (time.Duration, error) {
	limits := m.opts.Limits
	switch {
	case ttl == 0:
		return limits.DefaultTTL, nil
	case ttl < time.Second || ttl > limits.MaxTTL:
		return 0, kiln.Errorf(kiln.CodeInvalid, "time to live of %s", ttl).
			WithHint("it is between 1s and %s", limits.MaxTTL)
	}
	return ttl, nil
}
