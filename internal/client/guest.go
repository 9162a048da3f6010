package client

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/proxy"
)

// Guest returns a client of the daemon in a sandbox, reached through the server, for
// commands and files. Whether the sandbox is there shows with the first call.
func (c *Client) Guest(id string) *guest.Client {
	return guest.NewHTTP(c.base.String(), &throughProxy{c: c, id: id, port: proxy.DaemonPort})
}

// throughProxy adds what the server's proxy needs: which sandbox, and who asks. The token
// goes as X-API-Key, because Authorization names the user inside the sandbox.
type throughProxy struct {
	c        *Client
	id, port string
}

// RoundTrip implements [http.RoundTripper].
func (t *throughProxy) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(proxy.HeaderSandboxID, t.id)
	r.Header.Set(proxy.HeaderSandboxPort, t.port)
	if t.c.token != "" {
		r.Header.Set("X-API-Key", t.c.token)
	}
	resp, err := t.c.http.Transport.RoundTrip(r)
	if err != nil {
		return nil, t.c.unreachable(r.Context(), err)
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	if err := t.refusal(resp); err != nil {
		return nil, err
	}
	return resp, nil
}

// maxRefusal bounds the body of an answer that may be the proxy's.
const maxRefusal = 64 << 10

// refusal returns the error that resp is if the proxy made it, and nil with the body
// untouched if the guest did.
func (t *throughProxy) refusal(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	if err != nil {
		_ = resp.Body.Close()
		return err
	}
	var answer struct {
		SandboxID string `json:"sandboxId"`
		Message   string `json:"message"`
	}
	isProxys := json.Unmarshal(body, &answer) == nil && answer.SandboxID != ""
	if !isProxys {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(body), resp.Body), resp.Body}
		return nil
	}
	_ = resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusBadGateway:
		return kiln.Errorf(kiln.CodeNotFound, "sandbox %q does not run: %w", t.id, guest.ErrGone).WithHint("'kiln sandbox list' shows those that live")
	case http.StatusUnauthorized:
		return kiln.Errorf(kiln.CodeUnauthorized, "%s", answer.Message)
	}
	return kiln.Errorf(kiln.CodeInvalid, "sandbox %q: %s", t.id, answer.Message)
}
