package storetest

import (
	"reflect"
	"testing"

	"github.com/kilnvm/kiln"
)

func testListSandboxes(t *testing.T, f fixture) {
	make := func(second int, orgID, template string, status kiln.SandboxStatus, metadata map[string]string) string {
		sb := &kiln.Sandbox{
			ID: kiln.NewSandboxID(), OrgID: orgID, TemplateID: "tmpl_" + template, Template: template, Status: status,
			Metadata: metadata, CreatedAt: at(second), IdleTimeout: 5, TTL: 6, Persistent: true,
		}
		if err := f.CreateSandbox(f.ctx, sb); err != nil {
			t.Fatal(err)
		}
		return sb.ID
	}
	a := make(1, org, "x", kiln.SandboxRunning, map[string]string{"team": "red", "n": "1"})
	b := make(2, org, "y", kiln.SandboxPaused, map[string]string{"team": "red", "n": "2"})
	c := make(2, org, "x", kiln.SandboxRunning, map[string]string{"team": "blue", "odd 'name": "odd \" value%_"})
	d := make(3, org, "x", kiln.SandboxFailed, nil)
	e := make(4, "other", "x", kiln.SandboxRunning, map[string]string{"team": "red"})
	if c < b {
		b, c = c, b // created in one moment: ordered by ID
	}
	ids := func(filter kiln.SandboxFilter) []string {
		t.Helper()
		list, err := f.ListSandboxes(f.ctx, filter)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, s := range list {
			ids = append(ids, s.ID)
			if s.IdleTimeout != 5 || s.TTL != 6 || !s.Persistent {
				t.Errorf("fields are lost: %+v", s)
			}
		}
		return ids
	}
	both := func(x, y string) []string { return []string{x, y} }
	if got := ids(kiln.SandboxFilter{}); !reflect.DeepEqual(got, []string{a, b, c, e}) {
		t.Errorf("living: %v", got)
	}
	for name, c := range map[string]struct {
		filter kiln.SandboxFilter
		want   int
		first  string
	}{
		"organisation": {kiln.SandboxFilter{OrgID: "other"}, 1, e},
		"status":       {kiln.SandboxFilter{Statuses: []kiln.SandboxStatus{kiln.SandboxFailed, kiln.SandboxDeleted}}, 1, d},
		"name":         {kiln.SandboxFilter{OrgID: org, Template: "x"}, 2, a},
		"template ID":  {kiln.SandboxFilter{OrgID: org, Template: "tmpl_x"}, 2, a},
		"metadata":     {kiln.SandboxFilter{OrgID: org, Metadata: map[string]string{"team": "red"}}, 2, a},
		"all metadata": {kiln.SandboxFilter{Metadata: map[string]string{"team": "red", "n": "1"}}, 1, a},
		"odd metadata": {kiln.SandboxFilter{Metadata: map[string]string{"odd 'name": "odd \" value%_"}}, 1, ""},
		"no match":     {kiln.SandboxFilter{Metadata: map[string]string{"team": "re_"}}, 0, ""},
	} {
		got := ids(c.filter)
		if len(got) != c.want || c.first != "" && got[0] != c.first {
			t.Errorf("%s: %v, want %d beginning with %s", name, got, c.want, c.first)
		}
	}

	// In pages, while the last one seen ends and another one is made.
	page := kiln.SandboxFilter{OrgID: org, Limit: 2}
	if got := ids(page); !reflect.DeepEqual(got, both(a, b)) {
		t.Fatalf("first page: %v", got)
	}
	last, err := f.Sandbox(f.ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	if page.After, err = kiln.ParseSandboxCursor(last.Cursor().String()); err != nil {
		t.Fatal(err)
	}
	last.Status = kiln.SandboxStopping
	if err := f.UpdateSandbox(f.ctx, last); err != nil {
		t.Fatal(err)
	}
	g := make(5, org, "x", kiln.SandboxCreating, nil)
	if got := ids(page); !reflect.DeepEqual(got, both(c, g)) {
		t.Errorf("second page: %v, want %v", got, both(c, g))
	}
}
