package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"unicode"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

// Options says which server to talk to.
type Options struct {
	Server string // base URL
	Token  string // "" sends none
	// Transport is what requests go through; nil means a transport of its own.
	Transport http.RoundTripper
}

// Client is a client of one server. It is safe for concurrent use.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client
}

// New returns a client. It does not connect.
func New(opts Options) (*Client, error) {
	base, err := url.Parse(opts.Server)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, kiln.Errorf(kiln.CodeInvalid, "server %q is not a URL such as http://127.0.0.1:7070", opts.Server)
	}
	if strings.ContainsFunc(opts.Token, unicode.IsControl) {
		return nil, kiln.Errorf(kiln.CodeInvalid, "the token holds a line break or another control character").
			WithHint("a file with a token has it in one line")
	}
	base.Path = strings.TrimSuffix(base.Path, "/")
	if opts.Transport == nil {
		opts.Transport = http.DefaultTransport.(*http.Transport).Clone()
	}
	return &Client{base: base, token: opts.Token, http: &http.Client{Transport: opts.Transport}}, nil
}

// Server returns the base URL.
func (c *Client) Server() string { return c.base.String() }

// Ready asks whether the server can build and start; its error says why not.
func (c *Client) Ready(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, "/readyz", nil, nil)
}

// call sends in as JSON, if it is not nil, and decodes the answer into out, if it is not
// nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	contentType := ""
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body, contentType = bytes.NewReader(b), "application/json"
	}
	resp, err := c.send(ctx, method, path, contentType, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection is used again
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: answer: %w", method, path, err)
	}
	return nil
}

// send returns a successful response, whose body the caller closes.
func (c *Client) send(ctx context.Context, method, path, contentType string, body io.Reader) (*http.Response, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base.String()+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, decodeError(resp)
}

// unreachable tells a server that is not there from a request that was given up.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var dial *url.Error
	if errors.As(err, &dial) {
		err = dial.Err
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return kiln.Errorf(kiln.CodeUnavailable, "no server answers at %s: %w", c.base, err).
			WithHint("start one with 'kiln serve', or name another with --server URL or KILN_SERVER")
	}
	return kiln.Errorf(kiln.CodeUnavailable, "server %s: %w", c.base, err).
		WithHint("check the address, --server URL or KILN_SERVER")
}

// decodeError turns an error response into the error it was on the server.
func decodeError(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("%s: %w", resp.Status, err)
	}
	var e api.Error
	if json.Unmarshal(body, &e) != nil || e.Message == "" {
		return kiln.Errorf(kiln.CodeInternal, "the server answered %s", resp.Status).WithHint("is it a Kiln server?")
	}
	return asError(e)
}

func asError(e api.Error) error {
	if e.Build != nil {
		return e.Build
	}
	return &kiln.Error{Code: e.Code, Message: e.Message, Hint: e.Hint}
}

// checkPath refuses names that cannot be a segment of a path and would lead to another route.
func checkPath(path string) error {
	path, _, _ = strings.Cut(path, "?")
	for s := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if s == "" || s == "." || s == ".." {
			return kiln.Errorf(kiln.CodeInvalid, "%q is no name and no ID", s)
		}
	}
	return nil
}

// segment escapes s as one segment of a path.
func segment(s string) string { return url.PathEscape(s) }
