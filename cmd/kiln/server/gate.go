package server

import (
	"encoding/json"
	"net/http"
	"sync/atomic"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

// gate answers for a server that has not started yet: it lives, and says what it is
// waiting for. When the API is there it takes over.
type gate struct {
	version string
	doing   atomic.Pointer[string]
	handler atomic.Pointer[http.Handler]
}

func (g *gate) say(what string)     { g.doing.Store(&what) }
func (g *gate) open(h http.Handler) { g.handler.Store(&h) }

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := g.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	if r.URL.Path == "/healthz" {
		writeJSON(w, http.StatusOK, api.Health{Status: "ok", Version: g.version})
		return
	}
	message := "the server is starting"
	if doing := g.doing.Load(); doing != nil {
		message += ": " + *doing
	}
	w.Header().Set("Retry-After", "1")
	writeJSON(w, http.StatusServiceUnavailable, api.Error{Message: message, Code: kiln.CodeUnavailable, Hint: "kiln wait"})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client has gone when this fails
}
