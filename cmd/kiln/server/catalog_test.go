package server

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/catalog"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/config"
	"github.com/kilnvm/kiln/internal/pipeline"
)

// recipe is the smallest build context.
func recipe(t *testing.T) []byte {
	t.Helper()
	const dockerfile = "FROM scratch\n"
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Name: "Dockerfile", Mode: 0o644, Size: int64(len(dockerfile))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(dockerfile)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestCatalogIsBuiltAtStart: a server with the default configuration begins with the cheapest
// of four templates, one after the other, and leaves the rest for their first use.
func TestCatalogIsBuiltAtStart(t *testing.T) {
	w := newTenantsWhere(t, kiln.Errorf(kiln.CodeUnavailable, "no base image")) // which ends a build at once
	if err := w.node.registerCatalog(t.Context(), config.Default().Catalog); err != nil {
		t.Fatal(err)
	}
	eager := []string{"blank", "python", "node", "go"} // as the catalogue orders them
	var last time.Time
	for _, name := range catalog.Names() {
		tmpl, _, err := w.node.pipeline.Get(t.Context(), kiln.LocalOrgID, name)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(eager, name) {
			if tmpl.Latest.Status != kiln.VersionPending {
				t.Errorf("%s is %s", name, tmpl.Latest.Status)
			}
			continue
		}
		if name != eager[0] {
			t.Errorf("the next one is %s, want %s", name, eager[0])
		}
		eager = eager[1:]
		v, err := w.node.pipeline.Wait(t.Context(), tmpl.Latest.BuildID)
		if err != nil || v.StartedAt.IsZero() || v.StartedAt.Before(last) {
			t.Errorf("%s was begun at %v, the one before it ended at %v, %v", name, v.StartedAt, last, err)
		}
		last = v.EndedAt
	}
	if len(eager) > 0 {
		t.Errorf("not in the catalogue: %q", eager)
	}
}

// TestBuiltInsAreTheOperators: whoever runs the server builds them again and stops their
// builds, and nobody else does.
func TestBuiltInsAreTheOperators(t *testing.T) {
	w := newTenants(t)
	if err := w.node.pipeline.RegisterBuiltIns(t.Context(), []pipeline.BuiltIn{{Name: "plain", Context: recipe(t)}}, nil); err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{`{"no_cache":true}`, `{"pull":true}`} {
		if status, text := w.do(t, "org_theirs", "POST", "/v1/catalog/plain/build", body, nil); status != 403 {
			t.Errorf("%s by a tenant: %d %s", body, status, text)
		}
	}
	status, text := w.do(t, kiln.LocalOrgID, "POST", "/v1/catalog/plain/build", `{"pull":true}`, nil)
	var b api.Build
	if err := json.Unmarshal([]byte(text), &b); status != 202 || err != nil || b.Version != 2 {
		t.Fatalf("%d %s, %v", status, text, err)
	}
	cancel := "/v1/templates/builds/" + b.ID + "/cancel"
	if status, text := w.do(t, "org_theirs", "POST", cancel, "", nil); status != 403 {
		t.Errorf("cancelled by a tenant: %d %s", status, text)
	}
	// Nothing is built here, so that the build waits for its next attempt.
	if status, text := w.do(t, kiln.LocalOrgID, "POST", cancel, "", nil); status != 204 {
		t.Errorf("cancel: %d %s", status, text)
	}
	if v, err := w.node.pipeline.Wait(t.Context(), b.ID); err != nil || v.BuildError == nil || v.BuildError.Message != "the build was cancelled" {
		t.Errorf("%+v, %v", v, err)
	}
}
