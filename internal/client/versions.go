package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

// ListTemplatesPage returns the templates that match, by name, and where the next page
// begins; "" at the end.
func (c *Client) ListTemplatesPage(ctx context.Context, q api.TemplateQuery) (list []api.Template, next string, err error) {
	v := url.Values{}
	set := func(key, value string) {
		if value != "" {
			v.Set(key, value)
		}
	}
	set("status", string(q.Status))
	set("prefix", q.Prefix)
	set("tag", q.Tag)
	set("next_token", q.After)
	if q.BuiltIn != nil {
		set("built_in", strconv.FormatBool(*q.BuiltIn))
	}
	if q.Limit > 0 {
		set("limit", strconv.Itoa(q.Limit))
	}
	resp, err := c.send(ctx, http.MethodGet, "/v1/templates?"+v.Encode(), "", nil)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return nil, "", fmt.Errorf("list templates: answer: %w", err)
	}
	return list, resp.Header.Get(api.HeaderNextToken), nil
}

// ListVersions returns up to limit versions of a template, newest first, that are older
// than the number before; 0 means from the newest.
func (c *Client) ListVersions(ctx context.Context, ref string, before, limit int) ([]api.TemplateVersion, error) {
	var out []api.TemplateVersion
	return out, c.call(ctx, http.MethodGet, fmt.Sprintf("/v1/versions/%s?before=%d&limit=%d", segment(ref), before, limit), nil, &out)
}

// Rollback makes another ready version the current one; to 0 means the one before.
func (c *Client) Rollback(ctx context.Context, ref string, to int) (*api.RollbackResult, error) {
	out := &api.RollbackResult{}
	return out, c.call(ctx, http.MethodPost, "/v1/templates/"+segment(ref)+"/rollback", api.RollbackRequest{To: to}, out)
}

// ListTags returns the tags of a template.
func (c *Client) ListTags(ctx context.Context, ref string) ([]kiln.Tag, error) {
	var out []kiln.Tag
	return out, c.call(ctx, http.MethodGet, "/v1/tags/"+segment(ref), nil, &out)
}

// SetTag names a version; 0 means the one that ref pins, else the current one.
func (c *Client) SetTag(ctx context.Context, ref, tag string, version int) (*kiln.Tag, error) {
	out := &kiln.Tag{}
	return out, c.call(ctx, http.MethodPut, "/v1/tags/"+segment(ref)+"/"+segment(tag), api.SetTagRequest{Version: version}, out)
}

// RemoveTag removes a tag.
func (c *Client) RemoveTag(ctx context.Context, ref, tag string) error {
	return c.call(ctx, http.MethodDelete, "/v1/tags/"+segment(ref)+"/"+segment(tag), nil, nil)
}
