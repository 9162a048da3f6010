package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// Networks is what sandboxes reach and are refused, as the API needs it. Every method sees
// only the organisation's own sandboxes.
type Networks interface {
	// SetEgress changes what a running sandbox may reach and returns it as it is then.
	SetEgress(ctx context.Context, orgID, id string, policy kiln.EgressPolicy) (*kiln.Sandbox, error)
	// NetworkUse returns what passed and was refused until now, or until the sandbox ended.
	NetworkUse(ctx context.Context, orgID, id string) (kiln.NetworkUse, error)
	// Denials returns what was refused, the latest first.
	Denials(ctx context.Context, orgID, id string) ([]kiln.Denial, error)
}

// Egress is a policy with its mode filled in.
type Egress struct {
	Mode         kiln.EgressMode `json:"mode" enum:"allow_all,deny_all"`
	AllowCIDRs   []string        `json:"allow_cidrs"`
	DenyCIDRs    []string        `json:"deny_cidrs"`
	AllowPorts   []int           `json:"allow_ports"`
	AllowDomains []string        `json:"allow_domains"`
}

// EgressChange asks for another policy. What it leaves out stays as the template and the
// server have it.
type EgressChange struct {
	_            struct{}        `additionalProperties:"true"`
	Mode         kiln.EgressMode `json:"mode,omitempty" doc:"allow_all or deny_all; allowing a CIDR or a domain implies deny_all"`
	AllowCIDRs   []string        `json:"allow_cidrs,omitempty" doc:"IPv4 ranges or addresses"`
	DenyCIDRs    []string        `json:"deny_cidrs,omitempty" doc:"IPv4 ranges or addresses; they win over what is allowed"`
	AllowPorts   []int           `json:"allow_ports,omitempty" doc:"TCP ports to which allow_cidrs are restricted"`
	AllowDomains []string        `json:"allow_domains,omitempty" doc:"Names, or *.name for all below it"`
}

// Policy returns the change as a policy.
func (c EgressChange) Policy() kiln.EgressPolicy {
	return kiln.EgressPolicy{
		Mode: c.Mode, AllowCIDRs: c.AllowCIDRs, DenyCIDRs: c.DenyCIDRs, AllowPorts: c.AllowPorts, AllowDomains: c.AllowDomains,
	}
}

func egressOf(p kiln.EgressPolicy) Egress {
	return Egress{
		Mode: p.EffectiveMode(), AllowCIDRs: list(p.AllowCIDRs), DenyCIDRs: list(p.DenyCIDRs),
		AllowPorts: list(p.AllowPorts), AllowDomains: list(p.AllowDomains),
	}
}

// list is never null in JSON.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

type (
	egressInput struct {
		SandboxID
		Body EgressChange
	}
	egressOutput  struct{ Body Egress }
	useOutput     struct{ Body kiln.NetworkUse }
	denialsOutput struct{ Body []kiln.Denial }
)

func (s *Server) registerEgress() {
	tags := []string{"network"}
	register(s, route{Operation: huma.Operation{
		OperationID: "getEgress", Method: http.MethodGet, Path: "/v1/sandboxes/{id}/egress", Tags: tags,
		Summary: "Show what a sandbox may reach",
	}}, s.getEgress)
	register(s, route{Operation: huma.Operation{
		OperationID: "setEgress", Method: http.MethodPut, Path: "/v1/sandboxes/{id}/egress", Tags: tags,
		Summary: "Change what a running sandbox may reach; connections that stay allowed go on, others are cut",
	}}, s.setEgress)
	register(s, route{Operation: huma.Operation{
		OperationID: "getNetworkUse", Method: http.MethodGet, Path: "/v1/sandboxes/{id}/network", Tags: tags,
		Summary: "Show what a sandbox has sent and received, and how much was refused",
	}}, s.getNetworkUse)
	register(s, route{Operation: huma.Operation{
		OperationID: "listDenials", Method: http.MethodGet, Path: "/v1/sandboxes/{id}/denials", Tags: tags,
		Summary: "List what a living sandbox was not allowed to reach, the latest first",
	}}, s.listDenials)
}

func (s *Server) getEgress(ctx context.Context, in *SandboxID) (*egressOutput, error) {
	sb, err := s.opts.Sandboxes.Get(ctx, orgOf(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &egressOutput{Body: egressOf(sb.Egress)}, nil
}

func (s *Server) setEgress(ctx context.Context, in *egressInput) (*egressOutput, error) {
	policy := in.Body.Policy()
	if err := policy.Validate(); err != nil {
		return nil, err
	}
	sb, err := s.opts.Networks.SetEgress(ctx, orgOf(ctx), in.ID, policy)
	if err != nil {
		return nil, err
	}
	now := egressOf(sb.Egress)
	note(ctx, "mode", string(now.Mode))
	note(ctx, "allow_cidrs", join(now.AllowCIDRs))
	note(ctx, "deny_cidrs", join(now.DenyCIDRs))
	note(ctx, "allow_ports", join(now.AllowPorts))
	note(ctx, "allow_domains", join(now.AllowDomains))
	return &egressOutput{Body: now}, nil
}

func (s *Server) getNetworkUse(ctx context.Context, in *SandboxID) (*useOutput, error) {
	use, err := s.opts.Networks.NetworkUse(ctx, orgOf(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &useOutput{Body: use}, nil
}

func (s *Server) listDenials(ctx context.Context, in *SandboxID) (*denialsOutput, error) {
	denials, err := s.opts.Networks.Denials(ctx, orgOf(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &denialsOutput{Body: list(denials)}, nil
}
