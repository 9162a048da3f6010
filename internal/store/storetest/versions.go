package storetest

import (
	"reflect"
	"slices"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/store"
)

// ready makes a template with n ready versions.
func (f fixture) ready(t *testing.T, orgID, name string, n int) (*kiln.Template, []*kiln.Version) {
	t.Helper()
	tmpl, v := f.create(t, orgID, name)
	f.promote(t, v)
	list := []*kiln.Version{v}
	for range n - 1 {
		v := f.next(t, tmpl.ID)
		f.promote(t, v)
		list = append(list, v)
	}
	return tmpl, list
}

func (f fixture) current(t *testing.T, ref string) int {
	t.Helper()
	r, err := kiln.ParseTemplateRef(ref)
	if err != nil {
		t.Fatal(err)
	}
	_, v, err := f.ResolveTemplate(f.ctx, org, r)
	if err != nil {
		t.Fatalf("%s: %v", ref, err)
	}
	return v.Number
}

func testTags(t *testing.T, f fixture) {
	tmpl, versions := f.ready(t, org, "a", 3)
	f.next(t, tmpl.ID) // 4 stays pending
	if n, err := f.SetTag(f.ctx, org, "a", 1, "v1"); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	if n, err := f.SetTag(f.ctx, org, tmpl.ID, 0, "stable"); err != nil || n != 3 {
		t.Fatal(n, err)
	}
	if got := []int{f.current(t, "a:v1"), f.current(t, "a:stable"), f.current(t, "a:latest")}; !slices.Equal(got, []int{1, 3, 3}) {
		t.Errorf("tags mean %v", got)
	}
	if _, err := f.SetTag(f.ctx, org, "a", 2, "stable"); err != nil { // moved
		t.Fatal(err)
	}
	tags, err := f.Tags(f.ctx, tmpl.ID)
	var got []kiln.Tag
	for _, tag := range tags {
		if tag.CreatedAt.IsZero() {
			t.Errorf("tag %s has no time", tag.Name)
		}
		got = append(got, kiln.Tag{Name: tag.Name, Version: tag.Version, BuildID: tag.BuildID})
	}
	want := []kiln.Tag{{Name: "latest", Version: 3, BuildID: versions[2].BuildID}, {Name: "stable", Version: 2, BuildID: versions[1].BuildID}, {Name: "v1", Version: 1, BuildID: versions[0].BuildID}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("tags %+v, %v", got, err)
	}
	for number, code := range map[int]kiln.ErrorCode{4: kiln.CodeConflict, 5: kiln.CodeNotFound} {
		_, err := f.SetTag(f.ctx, org, "a", number, "x")
		wantCode(t, "tag a version that is not ready", err, code)
	}
	_, err = f.SetTag(f.ctx, "org_b", tmpl.ID, 1, "x")
	wantCode(t, "tag another organisation's", err, kiln.CodeNotFound)
	wantCode(t, "untag another organisation's", f.RemoveTag(f.ctx, "org_b", tmpl.ID, "v1"), kiln.CodeNotFound)
	wantCode(t, "unknown tag", f.RemoveTag(f.ctx, org, "a", "none"), kiln.CodeNotFound)
	if err := f.RemoveTag(f.ctx, org, "a", "v1"); err != nil {
		t.Fatal(err)
	}
	_, _, err = f.ResolveTemplate(f.ctx, org, kiln.TemplateRef{NameOrID: "a", Tag: "v1"})
	wantCode(t, "removed tag", err, kiln.CodeNotFound)
	f.ready(t, "", "built-in", 1)
	_, err = f.SetTag(f.ctx, org, "built-in", 1, "x")
	wantCode(t, "tag a built-in", err, kiln.CodeForbidden)
}

func testRollback(t *testing.T, f fixture) {
	tmpl := &kiln.Template{ID: kiln.NewTemplateID(), OrgID: org, Name: "a", CreatedAt: at(0)}
	v := version(tmpl.ID)
	v.Metadata.Description = "one"
	if err := f.CreateTemplate(f.ctx, tmpl, v, store.Build{Node: "n1"}, nil); err != nil {
		t.Fatal(err)
	}
	_, _, err := f.Rollback(f.ctx, org, "a", 0)
	wantCode(t, "nothing ready", err, kiln.CodeConflict)
	f.promote(t, v)
	_, _, err = f.Rollback(f.ctx, org, "a", 0)
	wantCode(t, "nothing older", err, kiln.CodeConflict)
	slow := f.next(t, tmpl.ID) // 2, overtaken
	failed := f.next(t, tmpl.ID)
	if err := f.FailBuild(f.ctx, failed.BuildID, &kiln.BuildError{}); err != nil {
		t.Fatal(err)
	}
	v4 := f.next(t, tmpl.ID)
	f.promote(t, v4)

	got, from, err := f.Rollback(f.ctx, org, "a", 0)
	if err != nil || from != 4 || got.Current != 1 || got.Description != "one" {
		t.Fatalf("%+v from %d, %v", got, from, err)
	}
	if f.current(t, "a") != 1 || f.current(t, "a:latest") != 1 {
		t.Error("sandboxes do not start from version 1")
	}
	f.promote(t, slow)
	if n := f.current(t, "a"); n != 1 {
		t.Errorf("a build that was begun before undid the rollback: current is %d", n)
	}
	if _, from, err = f.Rollback(f.ctx, org, tmpl.ID, 4); err != nil || from != 1 || f.current(t, "a") != 4 {
		t.Errorf("forward again: from %d, %v", from, err)
	}
	if _, _, err = f.Rollback(f.ctx, org, "a", 0); err != nil || f.current(t, "a") != 2 {
		t.Errorf("back: %v", err)
	}
	for to, code := range map[int]kiln.ErrorCode{2: kiln.CodeConflict, 3: kiln.CodeConflict, 9: kiln.CodeNotFound} {
		_, _, err := f.Rollback(f.ctx, org, "a", to)
		wantCode(t, "to the current, a failed, an unknown one", err, code)
	}
	v5 := f.next(t, tmpl.ID)
	f.promote(t, v5)
	if n := f.current(t, "a"); n != 5 {
		t.Errorf("after the next build current is %d", n)
	}
	_, _, err = f.Rollback(f.ctx, "org_b", tmpl.ID, 1)
	wantCode(t, "another organisation's", err, kiln.CodeNotFound)
	f.ready(t, "", "built-in", 2)
	_, _, err = f.Rollback(f.ctx, org, "built-in", 1)
	wantCode(t, "built-in", err, kiln.CodeForbidden)
}

func testAskAgain(t *testing.T, f fixture) {
	tmpl, v1 := f.create(t, org, "a")
	early := f.next(t, tmpl.ID) // 2
	recipe := func() int {
		t.Helper()
		got, err := f.FindTemplate(f.ctx, org, "a")
		if err != nil {
			t.Fatal(err)
		}
		return got.Recipe
	}
	ask := func(v *kiln.Version, target string, want bool) {
		t.Helper()
		was, err := f.Version(f.ctx, tmpl.ID, v.Number)
		if err != nil {
			t.Fatal(err)
		}
		v.Options.Target = target
		if done, err := f.AskAgain(f.ctx, v); done != want || err != nil {
			t.Errorf("done %v, %v", done, err)
		}
		now, err := f.Version(f.ctx, tmpl.ID, v.Number)
		if err != nil || now.Options.Target == target != want || !want && now.Options.Target != was.Options.Target {
			t.Errorf("options %+v, %v", now.Options, err)
		}
	}
	ask(v1, "none is current", false)
	f.promote(t, v1)
	if n := recipe(); n != 2 {
		t.Errorf("the newest version is 2, and rebuilds start from %d", n)
	}
	ask(v1, "version 2 will take its place", false)
	f.promote(t, early)
	ask(v1, "not the current one any more", false)
	if _, _, err := f.Rollback(f.ctx, org, "a", 1); err != nil {
		t.Fatal(err)
	}
	ask(v1, "t", true)
	if n := recipe(); n != 1 {
		t.Errorf("version 1 was asked for, and rebuilds start from %d", n)
	}
	if _, _, err := f.Rollback(f.ctx, org, "a", 2); err != nil {
		t.Fatal(err)
	}
	if done, err := f.CollectVersion(f.ctx, store.VersionRef{TemplateID: tmpl.ID, Number: 1}, 1); done || err != nil {
		t.Errorf("what rebuilds start from was given up: %v, %v", done, err)
	}
	f.next(t, tmpl.ID)
	if n := recipe(); n != 3 {
		t.Errorf("version 3 was asked for, and rebuilds start from %d", n)
	}
	if done, err := f.CollectVersion(f.ctx, store.VersionRef{TemplateID: tmpl.ID, Number: 1}, 1); !done || err != nil {
		t.Errorf("kept: %v, %v", done, err)
	}
	if _, err := f.DeleteTemplate(f.ctx, org, "a"); err != nil {
		t.Fatal(err)
	}
	ask(early, "deleted", false)
}

// testServing looks at a template as it is found and listed: with its newest version and with
// the one that sandboxes get.
func testServing(t *testing.T, f fixture) {
	tmpl, _ := f.create(t, org, "a")
	check := func(what string, latest, serving int) {
		t.Helper()
		found, err := f.FindTemplate(f.ctx, org, "a")
		if err != nil {
			t.Fatal(err)
		}
		list, _, err := f.ListTemplates(f.ctx, org, store.Filter{}, nil, 10)
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		for _, got := range append(list, found) {
			newest, err := f.Version(f.ctx, tmpl.ID, latest)
			if err != nil || !reflect.DeepEqual(got.Latest, newest) {
				t.Errorf("%s: latest %+v, %v", what, got.Latest, err)
			}
			if serving == 0 {
				if got.Serving != nil {
					t.Errorf("%s: serving %+v", what, got.Serving)
				}
				continue
			}
			current, err := f.Version(f.ctx, tmpl.ID, serving)
			if err != nil || !reflect.DeepEqual(got.Serving, current) {
				t.Errorf("%s: serving %+v, %v", what, got.Serving, err)
			}
		}
	}
	promote := func(v *kiln.Version, size string) {
		t.Helper()
		v.Rootfs, v.BaseImages = kiln.Blob{Digest: kiln.DigestOf([]byte(size)), Size: 7}, []kiln.BaseImage{{Name: size}}
		f.promote(t, v)
	}
	check("nothing is ready", 1, 0)
	v2 := f.next(t, tmpl.ID)
	promote(v2, "x")
	check("one is ready", 2, 2)
	v3 := f.next(t, tmpl.ID)
	check("a rebuild is under way", 3, 2)
	if err := f.FailBuild(f.ctx, v3.BuildID, &kiln.BuildError{Message: "no"}); err != nil {
		t.Fatal(err)
	}
	check("the rebuild failed", 3, 2)
	promote(f.next(t, tmpl.ID), "y")
	check("the next one did not", 4, 4)
	if _, _, err := f.Rollback(f.ctx, org, "a", 2); err != nil {
		t.Fatal(err)
	}
	check("rolled back", 4, 2)
}

// testCollectable has fewer ready versions than are kept: those that failed go all the same.
func testCollectable(t *testing.T, f fixture) {
	tmpl, v1 := f.create(t, org, "a")
	f.promote(t, v1)
	for range 3 { // 2 to 4
		if err := f.FailBuild(f.ctx, f.next(t, tmpl.ID).BuildID, &kiln.BuildError{Message: "no"}); err != nil {
			t.Fatal(err)
		}
	}
	const keep = 3
	var got []int
	list, err := f.Collectable(f.ctx, keep)
	for _, c := range list {
		got = append(got, c.Number)
	}
	if err != nil || !slices.Equal(got, []int{2, 3}) {
		t.Errorf("collectable are %v, %v", got, err)
	}
	for number, want := range map[int]bool{1: false, 2: true, 3: true, 4: false} {
		if done, err := f.CollectVersion(f.ctx, store.VersionRef{TemplateID: tmpl.ID, Number: number}, keep); done != want || err != nil {
			t.Errorf("version %d: %v, %v", number, done, err)
		}
	}
}

func testFilters(t *testing.T, f fixture) {
	tagged := func(tmpl *kiln.Template, v *kiln.Version, tags ...string) {
		v.Metadata.Tags = tags
		f.promote(t, v)
	}
	a, av := f.create(t, org, "a-ml")
	tagged(a, av, "ml", "gpu")
	b, bv := f.create(t, "", "a-py")
	tagged(b, bv, "ml-2")
	f.create(t, org, "b-pending")
	_, failed := f.create(t, org, "a_failed")
	if err := f.FailBuild(f.ctx, failed.BuildID, &kiln.BuildError{}); err != nil {
		t.Fatal(err)
	}
	yes, no := true, false
	for name, c := range map[string]struct {
		filter store.Filter
		want   []string
	}{
		"all":      {store.Filter{}, []string{"a-ml", "a-py", "a_failed", "b-pending"}},
		"built-in": {store.Filter{BuiltIn: &yes}, []string{"a-py"}},
		"own":      {store.Filter{BuiltIn: &no}, []string{"a-ml", "a_failed", "b-pending"}},
		"prefix":   {store.Filter{Prefix: "a-"}, []string{"a-ml", "a-py"}},
		"ready":    {store.Filter{Status: kiln.VersionReady}, []string{"a-ml", "a-py"}},
		"failed":   {store.Filter{Status: kiln.VersionFailed}, []string{"a_failed"}},
		"tag":      {store.Filter{Tag: "ml"}, []string{"a-ml"}},
		"both":     {store.Filter{Status: kiln.VersionReady, Prefix: "a-p"}, []string{"a-py"}},
		"none":     {store.Filter{Tag: "m_"}, nil},
	} {
		var got []string
		var place *store.Cursor
		for {
			page, next, err := f.ListTemplates(f.ctx, org, c.filter, place, 1)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, tmpl := range page {
				got = append(got, tmpl.Name)
			}
			if place = next; next == nil {
				break
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
	for _, text := range []string{"a\x00", "a\xff"} {
		_, _, err := f.ListTemplates(f.ctx, org, store.Filter{Prefix: text}, nil, 1)
		wantCode(t, "prefix that is no text", err, kiln.CodeInvalid)
		_, _, err = f.ListTemplates(f.ctx, org, store.Filter{}, &store.Cursor{Name: text}, 1)
		wantCode(t, "place that is no text", err, kiln.CodeInvalid)
		_, err = f.FindTemplate(f.ctx, org, text)
		wantCode(t, "name that is no text", err, kiln.CodeInvalid)
		_, err = f.DeleteTemplate(f.ctx, org, text)
		wantCode(t, "deleted name that is no text", err, kiln.CodeInvalid)
	}
}
