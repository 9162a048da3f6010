package client

import (
	"net/http"

	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/proxy"
)

// Guest returns a client of the daemon in a sandbox, reached through the server, for
// commands and files. Whether the sandbox is there shows with the first call.
func (c *Client) Guest(id string) *guest.Client {
	return guest.NewHTTP(c.base.String(), &throughProxy{c: c, id: id})
}

// throughProxy adds what the server's proxy needs: which sandbox, and who asks. The token
// goes as X-API-Key, because Authorization names the user inside the sandbox.
type throughProxy struct {
	c  *Client
	id string
}

// RoundTrip implements [http.RoundTripper].
func (t *throughProxy) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(proxy.HeaderSandboxID, t.id)
	r.Header.Set(proxy.HeaderSandboxPort, proxy.DaemonPort)
	if t.c.token != "" {
		r.Header.Set("X-API-Key", t.c.token)
	}
	return t.c.http.Transport.RoundTrip(r)
}
