package client

import (
	"context"
	"io"
	"net/http"

	"github.com/kilnvm/kiln/internal/api"
)

// Usage returns what living sandboxes take from the host.
func (c *Client) Usage(ctx context.Context) ([]api.SandboxUsage, error) {
	var list []api.SandboxUsage
	return list, c.call(ctx, http.MethodGet, "/v1/usage", nil, &list)
}

// SandboxLogs returns what the guest printed on its console: plain text, or server-sent
// events that go on until the sandbox ends. Close it.
func (c *Client) SandboxLogs(ctx context.Context, id string, follow bool) (io.ReadCloser, error) {
	path := "/v1/sandboxes/" + segment(id) + "/logs"
	if follow {
		path += "?follow=true"
	}
	resp, err := c.send(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
