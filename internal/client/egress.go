package client

import (
	"context"
	"net/http"
	"strconv"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

// Egress returns what a sandbox may reach.
func (c *Client) Egress(ctx context.Context, id string) (*api.Egress, error) {
	out := &api.Egress{}
	return out, c.call(ctx, http.MethodGet, "/v1/sandboxes/"+segment(id)+"/egress", nil, out)
}

// SetEgress changes what a running sandbox may reach and returns what is in force then.
func (c *Client) SetEgress(ctx context.Context, id string, change api.EgressChange) (*api.Egress, error) {
	out := &api.Egress{}
	return out, c.call(ctx, http.MethodPut, "/v1/sandboxes/"+segment(id)+"/egress", change, out)
}

// NetworkUse returns what a running sandbox has sent and received.
func (c *Client) NetworkUse(ctx context.Context, id string) (*kiln.NetworkUse, error) {
	out := &kiln.NetworkUse{}
	return out, c.call(ctx, http.MethodGet, "/v1/sandboxes/"+segment(id)+"/network", nil, out)
}

// Denials returns what a running sandbox was not allowed to reach, the latest first.
func (c *Client) Denials(ctx context.Context, id string) ([]kiln.Denial, error) {
	var out []kiln.Denial
	return out, c.call(ctx, http.MethodGet, "/v1/sandboxes/"+segment(id)+"/denials", nil, &out)
}

// Port returns how a service on a port of a running sandbox is reached.
func (c *Client) Port(ctx context.Context, id string, port int) (*api.Port, error) {
	out := &api.Port{}
	return out, c.call(ctx, http.MethodGet, "/v1/sandboxes/"+segment(id)+"/ports/"+strconv.Itoa(port), nil, out)
}
