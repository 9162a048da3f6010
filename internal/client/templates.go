package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

// CreateTemplate asks for a template.
type CreateTemplate struct {
	Name           string
	Context        io.Reader // a tar archive; nil with one of the next two
	Image          string    // an existing image
	Git            *kiln.GitSource
	GitCredentials kiln.GitCredentials
	Options        api.BuildOptions
	Metadata       kiln.Metadata
	Replace        bool // build the next version if the name exists
	Keep           bool // build the next version, with what the last request said
	// Warnings were found while the context was packed; they are handed through.
	Warnings []string
}

// ListTemplates returns built-in and own templates.
func (c *Client) ListTemplates(ctx context.Context) ([]api.Template, error) {
	var out []api.Template
	return out, c.call(ctx, http.MethodGet, "/v1/templates", nil, &out)
}

// GetTemplate returns a template with its versions.
func (c *Client) GetTemplate(ctx context.Context, ref string) (*api.TemplateDetail, error) {
	out := &api.TemplateDetail{}
	return out, c.call(ctx, http.MethodGet, "/v1/templates/"+segment(ref), nil, out)
}

// DiffTemplates compares the root filesystems of two templates or versions.
func (c *Client) DiffTemplates(ctx context.Context, a, b string) (*api.RootfsDiff, error) {
	out := &api.RootfsDiff{}
	path := "/v1/rootfs/diff?" + url.Values{"a": {a}, "b": {b}}.Encode()
	return out, c.call(ctx, http.MethodGet, path, nil, out)
}

// DeleteTemplate deletes a custom template.
func (c *Client) DeleteTemplate(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, "/v1/templates/"+segment(ref), nil, nil)
}

// RebuildTemplate queues the next version from the same source, unless that would change
// nothing.
func (c *Client) RebuildTemplate(ctx context.Context, ref string, req api.RebuildRequest) (*api.Build, error) {
	out := &api.Build{}
	return out, c.call(ctx, http.MethodPost, "/v1/templates/"+segment(ref)+"/rebuild", req, out)
}

// BuildBuiltIn builds a built-in template now if its newest version is not ready, or if the
// request says so.
func (c *Client) BuildBuiltIn(ctx context.Context, name string, req api.BuiltInRequest) (*api.Build, error) {
	out := &api.Build{}
	return out, c.call(ctx, http.MethodPost, "/v1/catalog/"+segment(name)+"/build", req, out)
}

// CreateTemplate sends a build context and queues its build.
func (c *Client) CreateTemplate(ctx context.Context, req CreateTemplate) (*api.Build, error) {
	body, w := io.Pipe()
	defer body.Close() // ends writeForm when the server answers before it has read everything
	form := multipart.NewWriter(w)
	go func() { w.CloseWithError(writeForm(form, req)) }()
	path := "/v1/templates/build"
	switch {
	case req.Keep:
		path += "?keep=true"
	case req.Replace:
		path += "?replace=true"
	}
	resp, err := c.send(ctx, http.MethodPost, path, form.FormDataContentType(), body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out := &api.Build{}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return nil, fmt.Errorf("create template: answer: %w", err)
	}
	out.Warnings = append(append([]string(nil), req.Warnings...), out.Warnings...)
	return out, nil
}

func writeForm(form *multipart.Writer, req CreateTemplate) error {
	if err := form.WriteField("name", req.Name); err != nil {
		return err
	}
	fields := map[string]any{"options": req.Options, "metadata": req.Metadata}
	if req.Git != nil {
		fields["git"], fields["git_credentials"] = req.Git, req.GitCredentials
	}
	for name, value := range fields {
		text, err := json.Marshal(value)
		if err != nil {
			return err
		}
		if err := form.WriteField(name, string(text)); err != nil {
			return err
		}
	}
	if req.Git != nil {
		return form.Close()
	}
	if req.Image != "" {
		if err := form.WriteField("image_ref", req.Image); err != nil {
			return err
		}
		return form.Close()
	}
	part, err := form.CreatePart(textproto.MIMEHeader{
		"Content-Disposition": {`form-data; name="context"; filename="context.tar"`},
		"Content-Type":        {"application/x-tar"},
	})
	if err != nil {
		return err
	}
	if _, err := io.Copy(part, req.Context); err != nil {
		return err
	}
	return form.Close()
}
