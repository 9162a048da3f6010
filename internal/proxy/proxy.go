// Package proxy passes requests for sandboxes on to the daemons inside them. A request
// names its sandbox in one of two ways that E2B's clients use: by the headers
// [HeaderSandboxID] and [HeaderSandboxPort], or by a host name "<port>-<id>.<domain>"; or
// by a path below [PathPrefix], for clients that can choose nothing else.
//
// Whoever shows a token of the sandbox's owner is let in with the sandbox's own access
// token; everybody else must bring that token, or a signature, for the daemon to check.
// Endpoints that the daemon keeps for its host are never reached through here.
//
// Services behind other ports are open to whoever knows the sandbox's ID, but by path: there
// they share an origin with the API and with each other, so that only the owner's token
// opens them, and what they answer is confined to its own path.
package proxy

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"path"
	"slices"
	"strings"
	"unicode"

	"go.opentelemetry.io/otel/trace"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/span"
)

// Headers that name a sandbox, and the one that carries a Kiln token beside an
// Authorization header that names a user inside the sandbox.
const (
	HeaderSandboxID   = "E2b-Sandbox-Id"
	HeaderSandboxPort = "E2b-Sandbox-Port"
	HeaderToken       = "X-Api-Key"
)

// DaemonPort is the port under which clients know the daemon.
const DaemonPort = "49983"

// Sandboxes finds daemons.
type Sandboxes interface {
	// Lookup returns the daemon of a running sandbox and the organisation it belongs to.
	// A sandbox that does not run is a *kiln.Error with code not_found.
	Lookup(ctx context.Context, id string) (orgID string, daemon *guest.Client, err error)
}

// Authenticator tells whose token it is given.
type Authenticator interface {
	Authenticate(ctx context.Context, token string) (kiln.Principal, error)
}

// Options is what a proxy is made of.
type Options struct {
	Sandboxes Sandboxes
	Auth      Authenticator
	Domain    string       // parent of sandbox host names; "" means that only headers count
	Next      http.Handler // answers requests that name no sandbox
	Log       *slog.Logger // nil discards
	// Traces takes the traces of requests for sandboxes; nil records none.
	Traces trace.TracerProvider
}

// Handler returns the proxy.
func Handler(o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &handler{o}
}

type handler struct{ Options }

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	to, named := h.targetOf(r)
	if !named {
		h.Next.ServeHTTP(w, r)
		return
	}
	// Else the server would read and close the rest of the request when the answer begins,
	// under the hands of the transport that passes it on, which then gives up the answer.
	_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 needs none
	r = to.strip(r)
	id := to.id
	switch {
	case id == "" || to.port == "":
		refuse(w, http.StatusBadRequest, id, "headers "+HeaderSandboxID+" and "+HeaderSandboxPort+" go together")
		return
	case !isPort(to.port):
		refuse(w, http.StatusBadRequest, id, "the port is not between 1 and 65535")
		return
	case to.port == DaemonPort && hostOnly(r.URL.Path):
		refuse(w, http.StatusForbidden, id, r.URL.Path+" is reserved for the host")
		return
	}
	who, known, err := h.caller(r)
	if err != nil { // whose token it is cannot be told, and it is not taken for nobody's
		h.Log.ErrorContext(r.Context(), "authentication", "sandbox", id, "err", err)
		w.Header().Set("Retry-After", "5")
		refuse(w, http.StatusServiceUnavailable, id, "the token cannot be checked at the moment")
		return
	}
	h.traced(w, r, to, known, func(w http.ResponseWriter, r *http.Request) { h.pass(w, r, to, who, known) })
}

// pass passes a request of somebody, who is known or not, on to the sandbox that it names.
func (h *handler) pass(w http.ResponseWriter, r *http.Request, to target, who kiln.Principal, known bool) {
	id := to.id
	if to.prefix != "" && !known { // before anything is said about the sandbox
		w.Header().Set("WWW-Authenticate", "Bearer")
		refuse(w, http.StatusUnauthorized, id, "services are reached by path with a token: send 'Authorization: Bearer TOKEN', or use the host name")
		return
	}
	org, daemon, err := h.Sandboxes.Lookup(r.Context(), id)
	if err != nil {
		if kiln.CodeOf(err) != kiln.CodeNotFound {
			h.Log.ErrorContext(r.Context(), "sandbox lookup", "sandbox", id, "err", err)
		}
		refuse(w, http.StatusBadGateway, id, "the sandbox was not found or has ended")
		return
	}
	switch public := to.prefix == "" && (to.port != DaemonPort || !known); {
	case public && to.port == DaemonPort: // with what they bring themselves
		h.forward(w, r, id, daemon.Anonymous())
	case public:
		h.forwardPort(w, r, to, daemon)
	case who.OrgID != org: // to whom it does not exist
		refuse(w, http.StatusBadGateway, id, "the sandbox was not found or has ended")
	case !who.Allows(scopeOf(r)):
		refuse(w, http.StatusForbidden, id, "the token lacks the scope "+string(scopeOf(r)))
	case to.port == DaemonPort: // the owner, with the sandbox's access token
		h.forward(w, r, id, daemon.Transport())
	default:
		h.forwardPort(w, r, to, daemon)
	}
}

// caller returns whose Kiln token r carries, if it carries one. Beside a token in one header
// the other may hold a credential of the service's: each is tried.
func (h *handler) caller(r *http.Request) (who kiln.Principal, known bool, err error) {
	for _, token := range tokensOf(r.Header) {
		who, err := h.Auth.Authenticate(r.Context(), token)
		if err == nil {
			return who, true, nil
		}
		if kiln.CodeOf(err) != kiln.CodeUnauthorized {
			return kiln.Principal{}, false, err
		}
	}
	return kiln.Principal{}, false, nil
}

func scopeOf(r *http.Request) kiln.Scope {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if reads && r.Header.Get("Upgrade") == "" {
		return kiln.ScopeSandboxesRead
	}
	return kiln.ScopeSandboxesWrite
}

func (h *handler) forward(w http.ResponseWriter, r *http.Request, id string, transport http.RoundTripper) {
	proxy := h.reverse(id, transport)
	proxy.Rewrite = func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host = "http", "sandbox"
		stripTokens(p.Out.Header)
		for _, name := range []string{HeaderSandboxID, HeaderSandboxPort, HeaderToken} {
			p.Out.Header.Del(name)
		}
		if isBearer(p.Out.Header.Get("Authorization")) {
			p.Out.Header.Del("Authorization")
		}
	}
	proxy.ServeHTTP(w, r)
}

// reverse returns a proxy that lacks only how requests are rewritten.
func (h *handler) reverse(id string, transport http.RoundTripper) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1, // what a command prints is wanted now
		ErrorLog:      slog.NewLogLogger(h.Log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				h.Log.DebugContext(r.Context(), "sandbox request", "sandbox", id, "err", err)
			}
			switch kiln.CodeOf(err) {
			case kiln.CodeExhausted, kiln.CodeLimit, kiln.CodeUnavailable, kiln.CodeTimeout:
				w.Header().Set("Retry-After", "5")
				refuse(w, http.StatusServiceUnavailable, id, "the sandbox is paused and cannot be woken at the moment")
			default:
				refuse(w, http.StatusBadGateway, id, "the sandbox no longer answers")
			}
		},
	}
}

// forwardPort passes a request on to a service in the sandbox, which the daemon reaches. It
// checks for itself what it is shown; a Kiln token is for Kiln and is not shown to it.
func (h *handler) forwardPort(w http.ResponseWriter, r *http.Request, to target, daemon *guest.Client) {
	proxy := h.reverse(to.id, daemon.Anonymous())
	proxy.Rewrite = func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host = "http", "sandbox"
		p.Out.Host = p.In.Host
		p.Out.Header.Del(HeaderSandboxID)
		p.Out.Header.Set(HeaderSandboxPort, to.port)
		if parent := span.Parent(r.Context()); parent != "" {
			p.Out.Header.Set(span.Header, parent)
		}
		to.forwarded(p)
		stripTokens(p.Out.Header)
	}
	proxy.ModifyResponse = func(resp *http.Response) error {
		to.confine(resp, r.Host)
		return nil
	}
	proxy.ServeHTTP(w, r)
}

// hostOnly reports whether the daemon answers a path to its host only.
func hostOnly(p string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(path.Clean("/"+p), "/"), "/")
	switch first {
	case "init", "quiesce", "root", "shutdown", "freeze", "unfreeze", "fsfreeze", "fsthaw", "collapse", "upgrade":
		return true
	}
	return false
}

// tokensOf returns the Kiln tokens that a request shows.
func tokensOf(header http.Header) []string {
	var tokens []string
	if value := header.Get("Authorization"); isBearer(value) {
		_, token, _ := strings.Cut(value, " ")
		tokens = append(tokens, strings.TrimSpace(token))
	}
	tokens = append(tokens, header.Get(HeaderToken))
	return slices.DeleteFunc(tokens, func(s string) bool { return !strings.HasPrefix(s, kiln.TokenPrefix) })
}

// stripTokens takes whatever looks like a Kiln token out of the headers that carry them, be
// it valid or not.
func stripTokens(header http.Header) {
	for _, name := range []string{"Authorization", HeaderToken} {
		header[name] = slices.DeleteFunc(header[name], holdsToken)
		if len(header[name]) == 0 {
			delete(header, name)
		}
	}
}

func holdsToken(value string) bool {
	words := strings.FieldsFunc(value, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune(`,;:="`, r) })
	return slices.ContainsFunc(words, func(word string) bool { return strings.HasPrefix(word, kiln.TokenPrefix) })
}

func isBearer(authorization string) bool {
	scheme, _, _ := strings.Cut(authorization, " ")
	return strings.EqualFold(scheme, "Bearer")
}

// refuse answers in the form that E2B's clients understand: a 502 with such a body means
// that the sandbox is gone.
func refuse(w http.ResponseWriter, status int, id, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"sandboxId": id, "message": message, "code": status}) // the client has gone when this fails
}
