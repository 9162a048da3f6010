package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// Access keeps organisations, tokens and the audit log, as the API needs it.
type Access interface {
	CreateOrg(ctx context.Context, o kiln.Org) error
	Orgs(ctx context.Context) ([]kiln.Org, error)
	// Org returns the organisation with that name or ID.
	Org(ctx context.Context, nameOrID string) (kiln.Org, error)
	// DeleteOrg is a conflict while the organisation has templates or living sandboxes.
	DeleteOrg(ctx context.Context, nameOrID string) (kiln.Org, error)
	// CreateToken returns the secret, which cannot be had again.
	CreateToken(ctx context.Context, t kiln.Token) (secret string, err error)
	Tokens(ctx context.Context, orgID string) ([]kiln.Token, error)
	RevokeToken(ctx context.Context, orgID, idOrName string) (id string, err error)
	RecordAudit(ctx context.Context, e kiln.AuditEvent) error
	// Audit returns events, newest first, that are older than the one with the ID before.
	// orgID "" means every organisation.
	Audit(ctx context.Context, orgID, before string, limit int) ([]kiln.AuditEvent, error)
}

// Garbage removes what is unused.
type Garbage interface {
	Run(ctx context.Context, dryRun bool) (kiln.GarbageReport, error)
}

// NewToken is a token together with its secret.
type NewToken struct {
	kiln.Token
	Secret string `json:"secret" doc:"Shown this once only"`
}

// Whoami is what the token of a request is.
type Whoami struct {
	OrgID     string       `json:"org_id"`
	Org       string       `json:"org" doc:"The organisation's name"`
	TokenID   string       `json:"token_id"`
	TokenName string       `json:"token_name"`
	Scopes    []kiln.Scope `json:"scopes"`
	ExpiresAt time.Time    `json:"expires_at,omitzero" doc:"Not there: never"`
}

// CreateTokenRequest asks for a token.
type CreateTokenRequest struct {
	Name       string       `json:"name" example:"ci"`
	Scopes     []kiln.Scope `json:"scopes" doc:"templates:read, templates:write, sandboxes:read, sandboxes:write, admin; writing includes reading"`
	TTLSeconds int64        `json:"ttl_seconds,omitempty" minimum:"0" maximum:"315360000" doc:"Life in seconds, up to ten years; 0: for ever"`
	Org        string       `json:"org,omitempty" doc:"Name or ID; default the caller's own. Only the server's operator names another one"`
}

// OrgQuery is the query parameter of what an operator may do for any organisation. It is
// exported so that huma looks into it.
type OrgQuery struct {
	Org string `query:"org" doc:"Name or ID; default the caller's own. Only the server's operator names another one"`
}

type (
	createOrgInput struct {
		Body struct {
			Name string `json:"name" example:"acme"`
		}
	}
	orgOutput  struct{ Body kiln.Org }
	orgsOutput struct{ Body []kiln.Org }
	orgPath    struct {
		Org string `path:"org" doc:"Name or ID"`
	}
	createTokenInput struct{ Body CreateTokenRequest }
	newTokenOutput   struct{ Body NewToken }
	tokensOutput     struct{ Body []kiln.Token }
	whoamiOutput     struct{ Body Whoami }
	tokenPath        struct {
		OrgQuery
		Token string `path:"token" doc:"Name or ID"`
	}
	auditInput struct {
		OrgQuery
		All    bool   `query:"all" doc:"Of every organisation; for the server's operator only"`
		Before string `query:"before" doc:"Only events older than the one with this ID"`
		Limit  int    `query:"limit" minimum:"1" maximum:"500" default:"100"`
	}
	auditOutput struct{ Body []kiln.AuditEvent }
	gcInput     struct {
		DryRun bool `query:"dry_run" doc:"Only say what would be removed"`
	}
	gcOutput struct{ Body kiln.GarbageReport }
)

func (s *Server) registerAccess() {
	orgs, tokens, server := []string{"organisations"}, []string{"tokens"}, []string{"server"}
	register(s, route{Operation: huma.Operation{
		OperationID: "createOrg", Method: http.MethodPost, Path: "/v1/orgs", Tags: orgs,
		Summary: "Create an organisation", DefaultStatus: http.StatusCreated,
	}}, s.createOrg)
	register(s, route{Operation: huma.Operation{
		OperationID: "listOrgs", Method: http.MethodGet, Path: "/v1/orgs", Tags: orgs,
		Summary: "List organisations: the operator all of them, others their own",
	}}, s.listOrgs)
	register(s, route{Operation: huma.Operation{
		OperationID: "deleteOrg", Method: http.MethodDelete, Path: "/v1/orgs/{org}", Tags: orgs,
		Summary: "Delete an organisation that has no templates and sandboxes, and its tokens", DefaultStatus: http.StatusNoContent,
	}}, s.deleteOrg)
	register(s, route{Operation: huma.Operation{
		OperationID: "createToken", Method: http.MethodPost, Path: "/v1/tokens", Tags: tokens,
		Summary: "Create a token; its secret is shown this once", DefaultStatus: http.StatusCreated,
	}}, s.createToken)
	register(s, route{Operation: huma.Operation{
		OperationID: "listTokens", Method: http.MethodGet, Path: "/v1/tokens", Tags: tokens,
		Summary: "List the tokens of an organisation, without their secrets",
	}}, s.listTokens)
	register(s, route{Operation: huma.Operation{
		OperationID: "revokeToken", Method: http.MethodDelete, Path: "/v1/tokens/{token}", Tags: tokens,
		Summary: "Make a token void at once", DefaultStatus: http.StatusNoContent,
	}}, s.revokeToken)
	register(s, route{Operation: huma.Operation{
		OperationID: "whoami", Method: http.MethodGet, Path: "/v1/whoami", Tags: tokens,
		Summary: "Say whose the token of the request is, what it allows and when it expires",
	}}, s.whoami)
	register(s, route{Operation: huma.Operation{
		OperationID: "listAudit", Method: http.MethodGet, Path: "/v1/audit", Tags: server,
		Summary: "List who changed what, newest first",
	}}, s.listAudit)
	register(s, route{Operation: huma.Operation{
		OperationID: "collectGarbage", Method: http.MethodPost, Path: "/v1/gc", Tags: server,
		Summary: "Remove versions, snapshots and files that nothing refers to",
	}, unbounded: true}, s.collectGarbage)
}

// operatorOnly refuses everybody but whoever runs the server.
func operatorOnly(ctx context.Context) error {
	if !callerOf(ctx).Operator() {
		return kiln.Errorf(kiln.CodeForbidden, "only the server's operator may do this").
			WithHint("use a token of the organisation %q with the scope admin", kiln.LocalOrgID)
	}
	return nil
}

// orgFor returns the organisation that a request is about: the caller's own unless the
// operator names another one. To everybody else no other exists.
func (s *Server) orgFor(ctx context.Context, named string) (string, error) {
	own := orgOf(ctx)
	if named == "" || named == own {
		return own, nil
	}
	o, err := s.opts.Access.Org(ctx, named)
	if err != nil {
		return "", err
	}
	if o.ID != own && !callerOf(ctx).Operator() {
		return "", kiln.Errorf(kiln.CodeNotFound, "organisation %q does not exist", named)
	}
	return o.ID, nil
}

func (s *Server) createOrg(ctx context.Context, in *createOrgInput) (*orgOutput, error) {
	if err := operatorOnly(ctx); err != nil {
		return nil, err
	}
	if err := kiln.CheckOrgName(in.Body.Name); err != nil {
		return nil, err
	}
	o := kiln.Org{ID: kiln.NewOrgID(), Name: in.Body.Name, CreatedAt: time.Now().UTC()}
	note(ctx, "org", o.Name)
	return &orgOutput{Body: o}, s.opts.Access.CreateOrg(ctx, o)
}

func (s *Server) listOrgs(ctx context.Context, _ *struct{}) (*orgsOutput, error) {
	if callerOf(ctx).Operator() {
		list, err := s.opts.Access.Orgs(ctx)
		return &orgsOutput{Body: list}, err
	}
	own, err := s.opts.Access.Org(ctx, orgOf(ctx))
	return &orgsOutput{Body: []kiln.Org{own}}, err
}

func (s *Server) deleteOrg(ctx context.Context, in *orgPath) (*struct{}, error) {
	if err := operatorOnly(ctx); err != nil {
		return nil, err
	}
	o, err := s.opts.Access.DeleteOrg(ctx, in.Org)
	note(ctx, "org", o.Name)
	return nil, err
}

func (s *Server) createToken(ctx context.Context, in *createTokenInput) (*newTokenOutput, error) {
	org, err := s.orgFor(ctx, in.Body.Org)
	if err != nil {
		return nil, err
	}
	if err := kiln.CheckTokenName(in.Body.Name); err != nil {
		return nil, err
	}
	if err := kiln.CheckScopes(in.Body.Scopes); err != nil {
		return nil, err
	}
	t := kiln.Token{ID: kiln.NewID(kiln.TokenIDPrefix), OrgID: org, Name: in.Body.Name, Scopes: in.Body.Scopes, CreatedAt: time.Now().UTC()}
	if in.Body.TTLSeconds > 0 {
		t.ExpiresAt = t.CreatedAt.Add(time.Duration(in.Body.TTLSeconds) * time.Second)
	}
	secret, err := s.opts.Access.CreateToken(ctx, t)
	if err != nil {
		return nil, err
	}
	concerns(ctx, org)
	note(ctx, "token", t.Name)
	note(ctx, "scopes", join(t.Scopes))
	if !t.ExpiresAt.IsZero() {
		note(ctx, "expires", t.ExpiresAt.Format(time.RFC3339))
	}
	return &newTokenOutput{Body: NewToken{Token: t, Secret: secret}}, nil
}

func (s *Server) whoami(ctx context.Context, _ *struct{}) (*whoamiOutput, error) {
	who := callerOf(ctx)
	o, err := s.opts.Access.Org(ctx, who.OrgID)
	if err != nil {
		return nil, err
	}
	return &whoamiOutput{Body: Whoami{
		OrgID: o.ID, Org: o.Name, TokenID: who.TokenID, TokenName: who.TokenName, Scopes: who.Scopes, ExpiresAt: who.ExpiresAt,
	}}, nil
}

func (s *Server) listTokens(ctx context.Context, in *OrgQuery) (*tokensOutput, error) {
	org, err := s.orgFor(ctx, in.Org)
	if err != nil {
		return nil, err
	}
	list, err := s.opts.Access.Tokens(ctx, org)
	return &tokensOutput{Body: append([]kiln.Token{}, list...)}, err
}

func (s *Server) revokeToken(ctx context.Context, in *tokenPath) (*struct{}, error) {
	org, err := s.orgFor(ctx, in.Org)
	if err != nil {
		return nil, err
	}
	id, err := s.opts.Access.RevokeToken(ctx, org, in.Token)
	concerns(ctx, org)
	note(ctx, "token_id", id)
	return nil, err
}

func (s *Server) listAudit(ctx context.Context, in *auditInput) (*auditOutput, error) {
	org := ""
	var err error
	if in.All {
		err = operatorOnly(ctx)
	} else {
		org, err = s.orgFor(ctx, in.Org)
	}
	if err != nil {
		return nil, err
	}
	list, err := s.opts.Access.Audit(ctx, org, in.Before, in.Limit)
	return &auditOutput{Body: append([]kiln.AuditEvent{}, list...)}, err
}

func (s *Server) collectGarbage(ctx context.Context, in *gcInput) (*gcOutput, error) {
	if err := operatorOnly(ctx); err != nil {
		return nil, err
	}
	report, err := s.opts.Garbage.Run(ctx, in.DryRun)
	changed(ctx, !in.DryRun && len(report.Items) > 0)
	return &gcOutput{Body: report}, err
}
