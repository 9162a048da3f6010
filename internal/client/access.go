package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

// CreateOrg creates an organisation.
func (c *Client) CreateOrg(ctx context.Context, name string) (*kiln.Org, error) {
	out := &kiln.Org{}
	return out, c.call(ctx, http.MethodPost, "/v1/orgs", map[string]string{"name": name}, out)
}

// ListOrgs returns all organisations to the operator and their own to others.
func (c *Client) ListOrgs(ctx context.Context) ([]kiln.Org, error) {
	var out []kiln.Org
	return out, c.call(ctx, http.MethodGet, "/v1/orgs", nil, &out)
}

// DeleteOrg deletes an organisation, by name or ID, and its tokens.
func (c *Client) DeleteOrg(ctx context.Context, org string) error {
	return c.call(ctx, http.MethodDelete, "/v1/orgs/"+segment(org), nil, nil)
}

// CreateToken creates a token and returns it with its secret.
func (c *Client) CreateToken(ctx context.Context, req api.CreateTokenRequest) (*api.NewToken, error) {
	out := &api.NewToken{}
	return out, c.call(ctx, http.MethodPost, "/v1/tokens", req, out)
}

// Whoami returns whose the client's token is and what it allows.
func (c *Client) Whoami(ctx context.Context) (*api.Whoami, error) {
	out := &api.Whoami{}
	return out, c.call(ctx, http.MethodGet, "/v1/whoami", nil, out)
}

// ListTokens returns the tokens of an organisation; "" means the caller's own.
func (c *Client) ListTokens(ctx context.Context, org string) ([]kiln.Token, error) {
	var out []kiln.Token
	return out, c.call(ctx, http.MethodGet, "/v1/tokens?"+url.Values{"org": {org}}.Encode(), nil, &out)
}

// RevokeToken makes a token void, by name or ID.
func (c *Client) RevokeToken(ctx context.Context, org, token string) error {
	return c.call(ctx, http.MethodDelete, "/v1/tokens/"+segment(token)+"?"+url.Values{"org": {org}}.Encode(), nil, nil)
}

// AuditQuery says which events are listed.
type AuditQuery struct {
	Org    string // "" means the caller's own
	All    bool   // of every organisation
	Before string // ID of an event; "" means from the newest
	Limit  int
}

// Audit returns who changed what, newest first.
func (c *Client) Audit(ctx context.Context, q AuditQuery) ([]kiln.AuditEvent, error) {
	v := url.Values{"org": {q.Org}, "before": {q.Before}, "all": {strconv.FormatBool(q.All)}}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	var out []kiln.AuditEvent
	return out, c.call(ctx, http.MethodGet, "/v1/audit?"+v.Encode(), nil, &out)
}

// CollectGarbage removes what nothing refers to, or with dryRun only says what that is.
func (c *Client) CollectGarbage(ctx context.Context, dryRun bool) (*kiln.GarbageReport, error) {
	out := &kiln.GarbageReport{}
	return out, c.call(ctx, http.MethodPost, "/v1/gc?dry_run="+strconv.FormatBool(dryRun), nil, out)
}
