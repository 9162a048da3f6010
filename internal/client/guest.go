package client

import (
	"net/http"

	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/proxy"
)

// Guest returns a client of the daemon in a sandbox, through the server's proxy. The
// caller closes it.
func (c *Client) Guest(sandboxID string) *guest.Client {
	return guest.NewHTTP(c.base.String(), &sandboxTransport{client: c, id: sandboxID})
}

// sandboxTransport names the sandbox and its owner in every request.
type sandboxTransport struct {
	client *Client
	id     string
}

func (t *sandboxTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(proxy.HeaderSandboxID, t.id)
	r.Header.Set(proxy.HeaderSandboxPort, proxy.DaemonPort)
	if t.client.token != "" {
		r.Header.Set(proxy.HeaderToken, t.client.token)
	}
	resp, err := t.client.http.Transport.RoundTrip(r)
	if err != nil {
		return nil, t.client.unreachable(r.Context(), err)
	}
	return resp, nil
}
