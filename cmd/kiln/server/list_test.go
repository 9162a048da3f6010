package server

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/pipeline"
	"github.com/kilnvm/kiln/internal/store"
)

// TestListIsFilteredAndPaged asks the API over a real store, page by page.
func TestListIsFilteredAndPaged(t *testing.T) {
	w := newTenants(t)
	if err := w.node.pipeline.RegisterBuiltIns(t.Context(), []pipeline.BuiltIn{{Name: "plain", Context: recipe(t)}}, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"own-a", "own-b"} {
		tmpl := &kiln.Template{ID: kiln.NewTemplateID(), OrgID: "org_ours", Name: name, Tags: []string{"tag of " + name}}
		v := &kiln.Version{TemplateID: tmpl.ID, BuildID: kiln.NewID("build_")}
		if err := w.node.store.CreateTemplate(t.Context(), tmpl, v, store.Build{Node: "elsewhere"}, nil); err != nil {
			t.Fatal(err)
		}
		if name == "own-b" {
			if err := w.node.store.FailBuild(t.Context(), v.BuildID, &kiln.BuildError{Message: "no"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for query, want := range map[string][]string{
		"":                            {"ourtemplate", "own-a", "own-b", "plain"},
		"built_in=true":               {"plain"},
		"built_in=false":              {"ourtemplate", "own-a", "own-b"},
		"prefix=own":                  {"own-a", "own-b"},
		"tag=tag+of+own-a":            {"own-a"},
		"tag=tag":                     {},
		"status=ready":                {"ourtemplate"},
		"status=failed":               {"own-b"},
		"status=pending&prefix=own":   {"own-a"},
		"status=ready&built_in=true":  {},
		"prefix=%27%20OR%201%3D1--":   {},
		"prefix=own&built_in=true":    {},
		"prefix=o&tag=tag+of+own-b":   {"own-b"},
		"prefix=o&status=building":    {},
		"prefix=o&built_in=false":     {"ourtemplate", "own-a", "own-b"},
		"status=pending&limit=500":    {"own-a", "plain"},
		"prefix=plain&built_in=false": {},
	} {
		for _, limit := range []string{"", "&limit=1", "&limit=2"} {
			if got := w.list(t, query+limit); !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", query+limit, got, want)
			}
		}
	}
	place := func(text string) string { return "next_token=" + base64.RawURLEncoding.EncodeToString([]byte(text)) }
	for _, query := range []string{
		"next_token=x", "next_token=%00", place("x"), place(`["a"]`), place(`["a","b","c"]`), place(`{}`), place(`["a\u0000","b"]`), place(`["a","\u0000"]`),
		"prefix=a%00", "prefix=a%ff", "status=odd", "built_in=perhaps", "limit=0", "limit=501", "limit=x",
	} {
		if status, body := w.do(t, "org_ours", "GET", "/v1/templates?"+query, "", nil); status != 400 {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
	for _, path := range []string{"/v1/templates/a%00", "/v1/templates/a%ff", "/v1/templates/builds/b%00", "/v1/versions/a%00", "/v1/sandboxes/i%00"} {
		if status, body := w.do(t, "org_ours", "GET", path, "", nil); status != 400 && status != 404 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

// list returns the names that match a query, from all pages.
func (w *tenants) list(t *testing.T, query string) []string {
	t.Helper()
	names := []string{}
	for next, more := "", true; more; {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.URL+"/v1/templates?"+query+next, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+w.tokens["org_ours"])
		resp, err := w.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var page []api.Template
		err = json.NewDecoder(resp.Body).Decode(&page)
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", query+next, resp.Status, err)
		}
		for _, tmpl := range page {
			names = append(names, tmpl.Name)
		}
		token := resp.Header.Get(api.HeaderNextToken)
		next, more = "&next_token="+url.QueryEscape(token), token != ""
	}
	return names
}

// TestClientReadsPages: the client sends every filter and finds the next page.
func TestClientReadsPages(t *testing.T) {
	w := newTenants(t)
	if err := w.node.pipeline.RegisterBuiltIns(t.Context(), []pipeline.BuiltIn{{Name: "plain", Context: recipe(t)}}, nil); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Options{Server: w.URL, Token: w.tokens["org_ours"]})
	if err != nil {
		t.Fatal(err)
	}
	builtIn := true
	for _, q := range []struct {
		api.TemplateQuery
		want string
		more bool
	}{
		{api.TemplateQuery{Limit: 1}, "ourtemplate", true},
		{api.TemplateQuery{BuiltIn: &builtIn, Prefix: "pl", Status: kiln.VersionPending}, "plain", false},
	} {
		list, next, err := c.ListTemplatesPage(t.Context(), q.TemplateQuery)
		if err != nil || len(list) != 1 || list[0].Name != q.want || (next != "") != q.more {
			t.Errorf("%+v: %+v, next %q, %v", q, list, next, err)
		}
		if next == "" {
			continue
		}
		if list, next, err = c.ListTemplatesPage(t.Context(), api.TemplateQuery{Limit: 1, After: next}); err != nil || len(list) != 1 || list[0].Name != "plain" || next != "" {
			t.Errorf("second page: %+v, next %q, %v", list, next, err)
		}
	}
}
