package main

import (
	"context"
	"encoding/json"
	"iter"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

// pinned is a template whose version 3 has failed while version 2 is still built.
type pinned struct {
	api.Templates
	cancelled string
}

func (*pinned) Get(_ context.Context, _, ref string) (*kiln.Template, []*kiln.Version, error) {
	list := []*kiln.Version{
		{Number: 3, BuildID: "b3", Status: kiln.VersionFailed, BuildError: &kiln.BuildError{Message: "three broke"}},
		{Number: 2, BuildID: "b2", Status: kiln.VersionBuilding, Metadata: kiln.Metadata{Smoke: "two"}},
		{Number: 1, BuildID: "b1", Status: kiln.VersionReady, Metadata: kiln.Metadata{Smoke: "one", ReadyCmd: "ready one"}},
	}
	t := &kiln.Template{ID: "tmpl_a", Name: "a", Current: 1, Latest: list[0]}
	r, err := kiln.ParseTemplateRef(ref)
	switch {
	case err == nil && r.NameOrID != "a":
		return nil, nil, kiln.Errorf(kiln.CodeNotFound, "no template %s", ref)
	case err != nil || r.Version > 0:
		return t, list[3-r.Version:][:1], err
	}
	return t, list, nil
}

func (p *pinned) Build(ctx context.Context, org, id string) (*kiln.Template, *kiln.Version, error) {
	t, list, err := p.Get(ctx, org, "a")
	for _, v := range list {
		if v.BuildID == id {
			return t, v, err
		}
	}
	return nil, nil, kiln.Errorf(kiln.CodeNotFound, "no build %s", id)
}

func (p *pinned) Cancel(_ context.Context, _, id string) error { p.cancelled = id; return nil }

func (p *pinned) Logs(_ context.Context, _, id string, _ int64, _ bool) iter.Seq2[api.LogLine, error] {
	return func(yield func(api.LogLine, error) bool) { yield(api.LogLine{Next: 1, Line: "log of " + id}, nil) }
}

func TestPinsAreObeyed(t *testing.T) {
	templates := &pinned{}
	server := httptest.NewServer(api.New(api.Options{Version: "1", Auth: anybody{}, SpoolDir: t.TempDir(), Templates: templates}).Handler())
	defer server.Close()
	env := map[string]string{"KILN_SERVER": server.URL, "KILN_TOKEN": "x"}
	for _, c := range []struct{ command, ref, want string }{
		{"logs", "a@1", "log of b1"}, {"logs", "a", "log of b3"}, {"logs", "b2", "log of b2"},
		{"cancel", "a@3", "version 3"}, {"cancel", "a", "version 2"}, {"cancel", "a@2", "version 2"},
		{"show", "a@1", "ready one"}, {"show", "a@3", "three broke"},
	} {
		r := runKiln(env, "templates", c.command, c.ref)
		if r.code != 0 || !strings.Contains(r.stdout+r.stderr, c.want) {
			t.Errorf("%s %s: exit code %d\n%s%s", c.command, c.ref, r.code, r.stdout, r.stderr)
		}
		if c.command == "cancel" && templates.cancelled != "b"+c.want[len(c.want)-1:] {
			t.Errorf("cancel %s: cancelled %s", c.ref, templates.cancelled)
		}
		if c.command == "show" && c.ref == "a@1" && strings.Contains(r.stdout, "three broke") {
			t.Errorf("show a@1 shows the failure of another version:\n%s", r.stdout)
		}
	}
	r := runKiln(env, "templates", "show", "a@2", "-o", "json")
	var detail api.TemplateDetail
	if err := json.Unmarshal([]byte(r.stdout), &detail); err != nil || smokeOf(&detail) != "two" {
		t.Errorf("smoke of a@2: %v\n%s", err, r.stdout)
	}
}
