package sandboxd_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnvm/kiln/internal/sandboxd/sandboxdtest"
)

// TestPorts asks a service on loopback through a daemon that wants a token for itself.
func TestPorts(t *testing.T) {
	d := sandboxdtest.Start(t)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s port=%s", r.URL.Path, r.Header.Get("E2b-Sandbox-Port"))
	}))
	t.Cleanup(service.Close)
	_, open, err := net.SplitHostPort(service.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if status, _, text := send(t, request(t, http.MethodPost, d.URL+"/init", `{"accessToken":"secret"}`)); status != http.StatusNoContent {
		t.Fatalf("%d %s", status, text)
	}
	for _, c := range []struct {
		port   string
		status int
		want   string
	}{
		{open, 200, "/envs port="},
		{"49983", 401, "token"}, // the daemon itself
		{"1", 502, "nothing listens"},
		{"0", 400, "no such port"},
		{"65536", 400, "no such port"},
		{"x", 400, "no such port"},
	} {
		r := request(t, http.MethodGet, d.URL+"/envs", "")
		r.Header.Set("E2b-Sandbox-Port", c.port)
		if status, _, text := send(t, r); status != c.status || !strings.Contains(text, c.want) {
			t.Errorf("port %s: %d %s", c.port, status, text)
		}
	}
}

// TestEnvironmentForServices looks for what a service that ran before the snapshot reads.
func TestEnvironmentForServices(t *testing.T) {
	d := sandboxdtest.Start(t)
	file := filepath.Join(d.Root, "run/kiln/environment")
	for _, c := range []struct{ body, want string }{
		{`{"hostname":"a"}`, ""},
		{`{"hostname":"a","envVars":{}}`, ""},
		{`{"hostname":"a","envVars":{"B":"2 lines\nof text","A":"1"}}`, "A=1\x00B=2 lines\nof text\x00"},
	} {
		if status, _, text := send(t, request(t, http.MethodPost, d.URL+"/init", c.body)); status != http.StatusNoContent {
			t.Fatalf("%d %s", status, text)
		}
		got, err := os.ReadFile(file)
		if c.want == "" && !os.IsNotExist(err) || c.want != "" && string(got) != c.want {
			t.Errorf("%s: %q, %v", c.body, got, err)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}
