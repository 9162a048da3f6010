package client

import (
	"context"
	"net/http"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

// CaptureTemplate makes a template of a running sandbox's file system.
func (c *Client) CaptureTemplate(ctx context.Context, req api.CaptureRequest) (*api.Build, error) {
	out := &api.Build{}
	return out, c.call(ctx, http.MethodPost, "/v1/templates/capture", req, out)
}

// UpdateQuota changes what new sandboxes of a template get.
func (c *Client) UpdateQuota(ctx context.Context, ref string, req api.QuotaRequest) (*kiln.Quota, error) {
	out := &kiln.Quota{}
	return out, c.call(ctx, http.MethodPatch, "/v1/templates/"+segment(ref)+"/quota", req, out)
}
