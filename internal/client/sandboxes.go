package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

// CreateSandbox starts a sandbox and returns when it can run commands.
func (c *Client) CreateSandbox(ctx context.Context, req api.CreateSandboxRequest) (*api.Sandbox, error) {
	out := &api.Sandbox{}
	return out, c.call(ctx, http.MethodPost, "/v1/sandboxes", req, out)
}

// ListSandboxes returns the sandboxes that f chooses, oldest first, at most f.Limit of
// them. It asks for as many pages as that takes.
func (c *Client) ListSandboxes(ctx context.Context, f kiln.SandboxFilter) ([]api.Sandbox, error) {
	list := []api.Sandbox{}
	for after := f.After.String(); ; {
		page, next, err := c.sandboxPage(ctx, f, after, f.Limit-len(list))
		if err != nil {
			return nil, err
		}
		list = append(list, page...)
		if after = next; after == "" || f.Limit > 0 && len(list) >= f.Limit {
			return list, nil
		}
	}
}

func (c *Client) sandboxPage(ctx context.Context, f kiln.SandboxFilter, after string, limit int) (page []api.Sandbox, next string, err error) {
	query := url.Values{}
	for i, status := range f.Statuses {
		if i > 0 {
			query.Set("status", query.Get("status")+",")
		}
		query.Set("status", query.Get("status")+string(status))
	}
	for name, value := range f.Metadata {
		query.Add("metadata", name+"="+value)
	}
	for name, value := range map[string]string{"template": f.Template, "next_token": after} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if limit > 0 {
		query.Set("limit", strconv.Itoa(min(limit, 1000)))
	}
	resp, err := c.send(ctx, http.MethodGet, "/v1/sandboxes?"+query.Encode(), "", nil)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&page); err != nil {
		return nil, "", fmt.Errorf("list of sandboxes: %w", err)
	}
	return page, resp.Header.Get("X-Next-Token"), nil
}

// PauseSandbox saves a running sandbox and gives back its CPU and memory.
func (c *Client) PauseSandbox(ctx context.Context, id string) (*api.Sandbox, error) {
	out := &api.Sandbox{}
	return out, c.call(ctx, http.MethodPost, "/v1/sandboxes/"+segment(id)+"/pause", nil, out)
}

// WakeSandbox lets a paused sandbox run again.
func (c *Client) WakeSandbox(ctx context.Context, id string) (*api.Sandbox, error) {
	out := &api.Sandbox{}
	return out, c.call(ctx, http.MethodPost, "/v1/sandboxes/"+segment(id)+"/wake", nil, out)
}

// ForkSandbox makes running copies of a sandbox.
func (c *Client) ForkSandbox(ctx context.Context, id string, req api.ForkRequest) (*api.ForkResult, error) {
	out := &api.ForkResult{}
	return out, c.call(ctx, http.MethodPost, "/v1/sandboxes/"+segment(id)+"/fork", req, out)
}

// ChangeLifecycle changes how long a sandbox lives and what happens then.
func (c *Client) ChangeLifecycle(ctx context.Context, id string, change api.LifecycleChange) (*api.Lifecycle, error) {
	out := &api.Lifecycle{}
	return out, c.call(ctx, http.MethodPatch, "/v1/sandboxes/"+segment(id)+"/lifecycle", change, out)
}

// GetSandbox returns one sandbox.
func (c *Client) GetSandbox(ctx context.Context, id string) (*api.Sandbox, error) {
	out := &api.Sandbox{}
	return out, c.call(ctx, http.MethodGet, "/v1/sandboxes/"+segment(id), nil, out)
}

// Keepalive lets a sandbox live ttl from now; 0 means as long as was asked for last.
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
