package server

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/store"
)

func TestDataDirHasOneServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	first, err := openDataDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.writeInfo(Info{URL: "http://127.0.0.1:7070", PID: 42}); err != nil {
		t.Fatal(err)
	}
	_, err = openDataDir(path)
	if kiln.CodeOf(err) != kiln.CodeConflict || !strings.Contains(err.Error(), "process 42, http://127.0.0.1:7070") {
		t.Errorf("a second server: %v", err)
	}
	if info, err := ReadInfo(path); err != nil || info.PID != 42 {
		t.Errorf("info %+v, %v", info, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadInfo(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the stop: %v", err)
	}
	again, err := openDataDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDataDirThatCannotBeUsed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "below"), "/proc/nowhere"} {
		var e *kiln.Error
		if _, err := openDataDir(path); !errors.As(err, &e) || e.Code != kiln.CodeUnavailable || !strings.Contains(e.Hint, "--data-dir") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestLocalToken(t *testing.T) {
	dir := t.TempDir()
	st, err := store.Open(t.Context(), filepath.Join(dir, "kiln.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	path := TokenPath(dir)
	ensure := func() string {
		t.Helper()
		if err := ensureToken(t.Context(), st, path); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v, %v", info.Mode(), err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		token := strings.TrimSpace(string(b))
		if p, err := st.Authenticate(t.Context(), token); err != nil || !p.Operator() {
			t.Fatalf("token belongs to %+v, %v", p, err)
		}
		return token
	}
	first := ensure()
	if ensure() != first {
		t.Error("a valid token was replaced")
	}
	if err := os.Chmod(path, 0o644); err != nil { //nolint:gosec // the fault that is tested
		t.Fatal(err)
	}
	ensure()
	if err := os.WriteFile(path, []byte("damaged\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ensure() == first {
		t.Error("the secret of a damaged file came back")
	}
	if _, err := st.Authenticate(t.Context(), first); kiln.CodeOf(err) != kiln.CodeUnauthorized {
		t.Errorf("the token of a lost file still opens the door: %v", err)
	}
}

func TestGateTellsWhatItWaitsFor(t *testing.T) {
	g := &gate{version: "7"}
	get := func(path string) (int, map[string]string) {
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		var body map[string]string
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return w.Code, body
	}
	if code, body := get("/healthz"); code != 200 || body["version"] != "7" {
		t.Errorf("healthz: %d %v", code, body)
	}
	g.say("preparing the guest kernel")
	for _, path := range []string{"/readyz", "/v1/templates"} {
		if code, body := get(path); code != 503 || !strings.Contains(body["error"], "preparing the guest kernel") || body["code"] != "unavailable" {
			t.Errorf("%s: %d %v", path, code, body)
		}
	}
	g.open(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusTeapot, map[string]string{}) }))
	if code, _ := get("/readyz"); code != http.StatusTeapot {
		t.Errorf("after opening: %d", code)
	}
}

func TestReachableAddress(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1:80": "127.0.0.1:80", "0.0.0.0:80": "127.0.0.1:80", "[::]:80": "127.0.0.1:80", "[::1]:80": "[::1]:80",
	} {
		if got := reachable(address); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}

func TestWriteFileReplacesInOneStep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"one", "two"} {
		if err := writeFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("%q, %v", got, err)
		}
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}
