package client

import (
	"context"
	"net/http"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

// WarmSlots lists the warm slots.
func (c *Client) WarmSlots(ctx context.Context) ([]kiln.WarmShelf, error) {
	var out []kiln.WarmShelf
	err := c.call(ctx, http.MethodGet, "/v1/pool", nil, &out)
	return out, err
}

// SetWarmSlots says how many slots are kept of a template at a size; "" is its default.
func (c *Client) SetWarmSlots(ctx context.Context, template, size string, slots int) (kiln.WarmTarget, error) {
	var out kiln.WarmTarget
	err := c.call(ctx, http.MethodPut, "/v1/pool/"+segment(template), api.WarmTargetChange{Size: size, Slots: slots}, &out)
	return out, err
}
