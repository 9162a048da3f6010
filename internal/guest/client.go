// Package guest is the host's side of the daemon in a sandbox. A [Client] waits for the
// daemon, gives it its identity, runs commands with streamed input and output, and moves
// files. It speaks the same protocol as the published E2B clients, plus the endpoints that
// the daemon keeps for its host.
//
// Errors are *kiln.Error. When the VM is no longer there they wrap [ErrGone].
package guest

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/kilnvm/kiln/internal/guestapi/filesystem/filesystemconnect"
	"github.com/kilnvm/kiln/internal/guestapi/process/processconnect"
)

// Client talks to one daemon. It is safe for concurrent use.
type Client struct {
	base       string // URL without a trailing slash
	http       *http.Client
	process    processconnect.ProcessClient
	filesystem filesystemconnect.FilesystemClient

	call func(ctx context.Context, request []byte) (reply []byte, err error) // nil: there is no such way

	mu    sync.RWMutex
	token string
}

// BaseURL is where a daemon is when its transport knows the way by itself.
const BaseURL = "http://guest"

// New returns a client whose connections are made by dial. Close it when the VM ends.
func New(dial func(context.Context) (net.Conn, error)) *Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		// The way is short; what compression saves is less than what it costs in the guest.
		DisableCompression:  true,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     time.Minute,
	}
	return NewHTTP(BaseURL, transport)
}

// Machine is a VM whose daemon can be reached.
type Machine interface {
	Dial(ctx context.Context) (net.Conn, error)
}

// Of returns a client of the daemon in m. If m also has a method Call, which sends the
// daemon one request and returns its reply, that shorter way is used for the first words to
// a clone; it may return [errors.ErrUnsupported].
func Of(m Machine) *Client {
	c := New(m.Dial)
	if caller, ok := m.(interface {
		Call(ctx context.Context, request []byte) (reply []byte, err error)
	}); ok {
		c.call = caller.Call
	}
	return c
}

// NewHTTP returns a client for a daemon that is reached at a URL, by way of a proxy for
// instance; transport may add what the proxy asks for.
func NewHTTP(base string, transport http.RoundTripper) *Client {
	c := &Client{base: strings.TrimSuffix(base, "/")}
	c.http = &http.Client{Transport: &withToken{c, transport}}
	plain := connect.WithAcceptCompression("gzip", nil, nil)
	c.process = processconnect.NewProcessClient(c.http, c.base, plain)
	c.filesystem = filesystemconnect.NewFilesystemClient(c.http, c.base, plain)
	return c
}

// Transport sends requests to the daemon whatever host their URL names. The access token is
// added to requests that bring none.
func (c *Client) Transport() http.RoundTripper { return c.http.Transport }

// Anonymous is like Transport but adds nothing: the daemon lets a request in only with the
// token or signature that it brings itself.
func (c *Client) Anonymous() http.RoundTripper { return c.http.Transport.(*withToken).next }

// Close closes idle connections. Commands that run lose their stream, not their life, when
// the VM ends; the client can be used again.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// UseToken sets the access token that later requests carry. [Client.SetIdentity] does it
// for the token that it sets.
func (c *Client) UseToken(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token = token
}

// withToken adds the access token to requests.
type withToken struct {
	client *Client
	next   http.RoundTripper
}

const tokenHeader = "X-Access-Token"

// RoundTrip implements [http.RoundTripper].
func (t *withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	t.client.mu.RLock()
	token := t.client.token
	t.client.mu.RUnlock()
	if token != "" && r.Header.Get(tokenHeader) == "" {
		r = r.Clone(r.Context())
		r.Header.Set(tokenHeader, token)
	}
	return t.next.RoundTrip(r)
}

// CloseIdleConnections makes [http.Client.CloseIdleConnections] reach the transport.
func (t *withToken) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
