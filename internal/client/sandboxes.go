package client

import (
	"context"
	"net/http"
	"time"

	"github.com/kilnvm/kiln/internal/api"
)

// CreateSandbox starts a sandbox and returns when it can run commands.
func (c *Client) CreateSandbox(ctx context.Context, req api.CreateSandboxRequest) (*api.Sandbox, error) {
	out := &api.Sandbox{}
	return out, c.call(ctx, http.MethodPost, "/v1/sandboxes", req, out)
}

// ListSandboxes returns the living sandboxes.
func (c *Client) ListSandboxes(ctx context.Context) ([]api.Sandbox, error) {
	var out []api.Sandbox
	return out, c.call(ctx, http.MethodGet, "/v1/sandboxes", nil, &out)
}

// GetSandbox returns one sandbox.
func (c *Client) GetSandbox(ctx context.Context, id string) (*api.Sandbox, error) {
	out := &api.Sandbox{}
	return out, c.call(ctx, http.MethodGet, "/v1/sandboxes/"+segment(id), nil, out)
}

// Keepalive lets a sandbox live ttl from now; 0 means as long as a new one.
func (c *Client) Keepalive(ctx context.Context, id string, ttl time.Duration) (*api.Sandbox, error) {
	var req api.LifecycleChange
	if ttl > 0 {
		seconds := int64((ttl + time.Second - 1) / time.Second)
		req.TTLSeconds = &seconds
	}
	out := &api.Sandbox{}
	return out, c.call(ctx, http.MethodPost, "/v1/sandboxes/"+segment(id)+"/keepalive", req, out)
}

// DestroySandbox ends a sandbox.
func (c *Client) DestroySandbox(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/v1/sandboxes/"+segment(id), nil, nil)
}
