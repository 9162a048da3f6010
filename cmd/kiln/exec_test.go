package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/guest"
)

func TestWhySandboxesAreGone(t *testing.T) {
	gone := kiln.Errorf(kiln.CodeUnavailable, "no longer answers: %w", guest.ErrGone)
	other := kiln.Errorf(kiln.CodeInvalid, "no such folder")
	for name, c := range map[string]struct {
		err    error
		status int
		body   string
		want   string
	}{
		"destroyed":   {gone, http.StatusOK, `{"id":"i1","status":"deleted","reason":"destroyed by request"}`, `sandbox "i1" has ended: destroyed by request`},
		"crashed":     {gone, http.StatusOK, `{"id":"i1","status":"failed","reason":"its VM died"}`, `sandbox "i1" has failed: its VM died`},
		"running":     {gone, http.StatusOK, `{"id":"i1","status":"running"}`, "no longer answers"},
		"never was":   {gone, http.StatusNotFound, `{"error":"sandbox \"i1\" does not exist","code":"not_found"}`, `sandbox "i1" does not exist`},
		"not told":    {gone, http.StatusInternalServerError, `{"error":"internal error","code":"internal"}`, "no longer answers"},
		"other error": {other, http.StatusOK, `{"id":"i1","status":"deleted","reason":"destroyed by request"}`, "no such folder"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
			}))
			defer server.Close()
			api, err := client.New(client.Options{Server: server.URL})
			if err != nil {
				t.Fatal(err)
			}
			if got := whyGone(t.Context(), api, "i1", c.err); !strings.HasPrefix(got.Error(), c.want) {
				t.Errorf("got %v, want %s", got, c.want)
			}
		})
	}
}
