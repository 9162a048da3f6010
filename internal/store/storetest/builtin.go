package storetest

import (
	"context"
	"database/sql"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/store"
)

func testAliases(t *testing.T, f fixture) {
	node, _ := f.create(t, "", "node")
	other, _ := f.create(t, "", "other")
	if err := f.SetAliases(f.ctx, node.ID, []string{"node-js", "nodejs", "other"}); err != nil {
		t.Fatal(err)
	}
	find := func(name, want string) {
		t.Helper()
		got, err := f.FindTemplate(f.ctx, org, name)
		switch {
		case want == "":
			wantCode(t, name, err, kiln.CodeNotFound)
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case got.ID != want:
			t.Errorf("%s is %s", name, got.Name)
		}
	}
	find("node-js", node.ID)
	find("other", other.ID) // a name wins over an alias
	own, _ := f.create(t, org, "nodejs")
	find("nodejs", own.ID)
	if err := f.SetAliases(f.ctx, node.ID, []string{"nodejs"}); err != nil {
		t.Fatal(err)
	}
	find("node-js", "")
	if _, err := f.DeleteTemplate(f.ctx, org, "nodejs"); err != nil {
		t.Fatal(err)
	}
	find("nodejs", node.ID)
	_, err := f.DeleteTemplate(f.ctx, org, "nodejs")
	wantCode(t, "delete by alias", err, kiln.CodeForbidden)
}

func testDeferred(t *testing.T, f fixture) {
	tmpl := &kiln.Template{ID: kiln.NewTemplateID(), Name: "rust", CreatedAt: at(0), UpdatedAt: at(0)}
	v := version(tmpl.ID)
	never := func(context.Context, *sql.Tx) error { t.Error("put on the queue"); return nil }
	if err := f.CreateTemplate(f.ctx, tmpl, v, store.Build{Node: "n1", Deferred: true}, never); err != nil {
		t.Fatal(err)
	}
	if ids, err := f.UnfinishedBuilds(f.ctx, "n1"); err != nil || len(ids) != 0 {
		t.Errorf("a deferred build is unfinished: %v, %v", ids, err)
	}
	queued := 0
	for try := range 2 {
		started, err := f.StartBuild(f.ctx, v.BuildID, "n2", func(context.Context, *sql.Tx) error { queued++; return nil })
		if err != nil || started != (try == 0) {
			t.Errorf("try %d: started %t, %v", try, started, err)
		}
	}
	if queued != 1 {
		t.Errorf("put on the queue %d times", queued)
	}
	if ids, err := f.UnfinishedBuilds(f.ctx, "n2"); err != nil || len(ids) != 1 {
		t.Errorf("unfinished of the node that started it: %v, %v", ids, err)
	}
	f.promote(t, v)
	if started, err := f.StartBuild(f.ctx, v.BuildID, "n1", nil); started || err != nil {
		t.Errorf("an ended build started again: %t, %v", started, err)
	}
}
