package sandbox

import (
	"context"
	"maps"
	"regexp"
	"strings"
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

// Limits on what a request may carry, so that a row and the guest's identity stay small.
const (
	maxPairs     = 256
	maxKeyBytes  = 256
	maxPairBytes = 128 << 10 // all keys and values together
)

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
	if err := checkEnv(req.Env); err != nil {
		return nil, err
	}
	if err := checkPairs("metadata", req.Metadata); err != nil {
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

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func checkEnv(env map[string]string) error {
	for name := range env {
		if !envName.MatchString(name) {
			return kiln.Errorf(kiln.CodeInvalid, "environment variable %.40q is not a name", name).
				WithHint("use letters, digits and '_', not beginning with a digit")
		}
	}
	return checkPairs("environment", env)
}

func checkPairs(what string, pairs map[string]string) error {
	if len(pairs) > maxPairs {
		return kiln.Errorf(kiln.CodeInvalid, "%s has %d entries; %d is the limit", what, len(pairs), maxPairs)
	}
	total := 0
	for k, v := range pairs {
		switch {
		case k == "":
			return kiln.Errorf(kiln.CodeInvalid, "%s has an entry without a name", what)
		case len(k) > maxKeyBytes:
			return kiln.Errorf(kiln.CodeInvalid, "%s: name %.40q… is longer than %d bytes", what, k, maxKeyBytes)
		case strings.ContainsRune(k+v, 0):
			return kiln.Errorf(kiln.CodeInvalid, "%s: %q holds a NUL byte", what, k)
		}
		total += len(k) + len(v)
	}
	if total > maxPairBytes {
		return kiln.Errorf(kiln.CodeInvalid, "%s has %d bytes; %d is the limit", what, total, maxPairBytes)
	}
	return nil
}
