package api

import (
	"context"
	"net"
	"net/http"
	"strings"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/span"
)

// Authenticator tells whose token a request carries.
type Authenticator interface {
	// Authenticate returns for whom the token acts, or a *kiln.Error with code
	// unauthorized. It takes equally long however much of a wrong token is right.
	Authenticate(ctx context.Context, token string) (kiln.Principal, error)
}

type callerKey struct{}

// caller is who sent a request, and from where.
type caller struct {
	kiln.Principal
	address string
	path    string // of the request
	// traceparent names the span that the request is part of, if any, as the W3C has it.
	traceparent string
}

// require refuses a caller whose token does not cover a scope, if there is one.
func (c caller) require(need kiln.Scope) error {
	if need == "" || c.Allows(need) {
		return nil
	}
	return kiln.Errorf(kiln.CodeForbidden, "token %q lacks the scope %s", c.TokenName, need).
		WithHint("an administrator of the organisation makes tokens with `kiln tokens create`")
}

// callerOf returns the caller that authenticated put into ctx.
func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// orgOf returns the organisation of the caller.
func orgOf(ctx context.Context) string { return callerOf(ctx).OrgID }

// openPaths need no token.
func openPath(path string) bool {
	switch path {
	case "/healthz", "/readyz", "/openapi.json", "/openapi.yaml":
		return true
	}
	return false
}

func (s *Server) authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if openPath(r.URL.Path) {
			next.ServeHTTP(w, r)
			return
		}
		token := TokenOf(r)
		if token == "" {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeError(w, newError(kiln.CodeUnauthorized, "no token given", tokenHint))
			return
		}
		who, err := s.opts.Auth.Authenticate(r.Context(), token)
		if err != nil {
			e := errorFor(r.Context(), s.log, "authentication", err)
			if e.Code == kiln.CodeUnauthorized {
				w.Header().Set("WWW-Authenticate", "Bearer")
				e = newError(kiln.CodeUnauthorized, "wrong token", tokenHint)
			}
			writeError(w, e)
			return
		}
		c := caller{who, addressOf(r), r.URL.Path, r.Header.Get(span.Header)}
		if err := c.require(scopeOf(r)); err != nil {
			writeError(w, errorFor(r.Context(), s.log, "authentication", err))
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

const tokenHint = "send 'Authorization: Bearer TOKEN'; the local token is in <data dir>/token, or set KILN_TOKEN"

// TokenOf returns the token that r carries as "Authorization: Bearer" or, where that
// header names a user of the sandbox, as X-API-Key. It returns "" when there is none.
func TokenOf(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") && token != "" {
		return strings.TrimSpace(token)
	}
	return r.Header.Get("X-API-Key")
}

// addressOf returns where a request came from, without the port.
func addressOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
