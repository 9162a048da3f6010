package store_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/store"
	"github.com/kilnvm/kiln/internal/store/storetest"
	"github.com/kilnvm/kiln/internal/testkit"
)

func open(t testing.TB, path string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestSQLite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *store.Store { return open(t, filepath.Join(t.TempDir(), "kiln.db")) })
}

func TestPostgres(t *testing.T) {
	server := testkit.StartPostgres(t)
	storetest.Run(t, func(t *testing.T) *store.Store { return openPostgres(t, server.Database(t)) })
	t.Run("OpenedByManyAtOnce", func(t *testing.T) { testOpenedByManyAtOnce(t, server.Database(t)) })
}

func openPostgres(t testing.TB, url string) *store.Store {
	t.Helper()
	s, err := store.OpenPostgres(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// testOpenedByManyAtOnce starts several servers on one empty database.
func testOpenedByManyAtOnce(t *testing.T, url string) {
	t.Helper()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			s, err := store.OpenPostgres(t.Context(), url)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestPostgresErrors(t *testing.T) {
	for url, code := range map[string]kiln.ErrorCode{
		"postgres:///x?host=" + t.TempDir():        kiln.CodeUnavailable,
		"postgres://u:hush@host:port/x?sslmode=no": kiln.CodeInvalid,
	} {
		_, err := store.OpenPostgres(t.Context(), url)
		if kiln.CodeOf(err) != code || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v, want code %s", url, err, code)
		}
	}
}

func TestOpenIsPrivateAndRepeatable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "strange ?#%41 name.db")
	first, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := first.CreateToken(t.Context(), kiln.Token{ID: "t", OrgID: kiln.LocalOrgID, Name: "n", Scopes: []kiln.Scope{kiln.ScopeAdmin}, CreatedAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", f.Name(), info.Mode())
		}
		content, err := os.ReadFile(filepath.Join(filepath.Dir(path), f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(content), secret) {
			t.Errorf("%s holds the secret of a token", f.Name())
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err := open(t, path).Authenticate(t.Context(), secret); err != nil || !p.Operator() {
		t.Errorf("after reopening: %+v, %v", p, err)
	}
}

func TestOpenErrors(t *testing.T) {
	_, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "missing", "kiln.db"))
	if kiln.CodeOf(err) != kiln.CodeUnavailable {
		t.Errorf("no directory: %v", err)
	}
	garbage := filepath.Join(t.TempDir(), "kiln.db")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("not a database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), garbage); err == nil {
		t.Error("garbage was opened")
	}
}
