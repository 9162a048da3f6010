// Package storetest is the conformance suite of the store: what every database behind it
// must do, in the order of a template's life.
package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/store"
)

// Run runs the suite. open returns an empty store that lives as long as its test.
func Run(t *testing.T, open func(t *testing.T) *store.Store) {
	for name, test := range map[string]func(*testing.T, fixture){
		"network slots":        networkSlots,
		"CreateAndFind":        testCreateAndFind,
		"NamesAreUnique":       testNamesAreUnique,
		"Visibility":           testVisibility,
		"ResolutionOrder":      testResolutionOrder,
		"Pinning":              testPinning,
		"Listing":              testListing,
		"VersionsRoundTrip":    testVersionsRoundTrip,
		"StateMachine":         testStateMachine,
		"OneClaimWins":         testOneClaimWins,
		"Requeue":              testRequeue,
		"Cancel":               testCancel,
		"NewestReadyWins":      testNewestReadyWins,
		"FailureKeepsTheOld":   testFailureKeepsTheOld,
		"Delete":               testDelete,
		"Deleted is said":      testDeletedIsSaid,
		"Aliases":              testAliases,
		"Deferred":             testDeferred,
		"Unfinished":           testUnfinished,
		"AlsoIsOneTransaction": testAlsoIsOneTransaction,
		"StageCache":           testStageCache,
		"Snapshots":            testSnapshots,
		"Sandboxes":            testSandboxes,
		"List of sandboxes":    testListSandboxes,
		"Tokens":               testTokens,
		"Orgs":                 testOrgs,
		"Audit":                testAudit,
		"Tags":                 testTags,
		"Rollback":             testRollback,
		"AskAgain":             testAskAgain,
		"Serving":              testServing,
		"Collectable":          testCollectable,
		"Filters":              testFilters,
		"Warm targets":         testWarmTargets,
		"CancelledContext":     testCancelledContext,
	} {
		t.Run(name, func(t *testing.T) { test(t, fixture{Store: open(t), ctx: t.Context()}) })
	}
}

type fixture struct {
	*store.Store
	ctx context.Context
}

const org = "org_a"

// at returns distinct, stable times.
func at(n int) time.Time { return time.Date(2026, 11, 24, 0, 0, n, 123, time.UTC) }

func version(templateID string) *kiln.Version {
	return &kiln.Version{TemplateID: templateID, BuildID: kiln.NewID("b_"), CreatedAt: at(1), SourceBlob: kiln.DigestOf([]byte("tar")), SourceDigest: kiln.DigestOf([]byte("src"))}
}

// create makes a template with one pending version.
func (f fixture) create(t *testing.T, orgID, name string) (*kiln.Template, *kiln.Version) {
	t.Helper()
	tmpl := &kiln.Template{ID: kiln.NewTemplateID(), OrgID: orgID, Name: name, CreatedAt: at(0), UpdatedAt: at(0)}
	v := version(tmpl.ID)
	if err := f.CreateTemplate(f.ctx, tmpl, v, store.Build{Node: "n1"}, nil); err != nil {
		t.Fatalf("create %q: %v", name, err)
	}
	return tmpl, v
}

func (f fixture) next(t *testing.T, templateID string) *kiln.Version {
	t.Helper()
	v := version(templateID)
	if err := f.CreateVersion(f.ctx, v, store.Build{Node: "n1"}, nil); err != nil {
		t.Fatal(err)
	}
	return v
}

// promote takes a pending version to ready.
func (f fixture) promote(t *testing.T, v *kiln.Version) {
	t.Helper()
	if _, _, err := f.ClaimBuild(f.ctx, v.BuildID); err != nil {
		t.Fatal(err)
	}
	v.EndedAt = at(9)
	if err := f.Promote(f.ctx, v); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, what string, err error, code kiln.ErrorCode) {
	t.Helper()
	if kiln.CodeOf(err) != code {
		t.Errorf("%s: got error %v, want code %q", what, err, code)
	}
}

func testCreateAndFind(t *testing.T, f fixture) {
	tmpl := &kiln.Template{
		ID: kiln.NewTemplateID(), OrgID: org, Name: "my-ml", Description: "d", Author: "a", Icon: "i", Tags: []string{"x", "y"}, CreatedAt: at(0), UpdatedAt: at(1),
	}
	v := version(tmpl.ID)
	if err := f.CreateTemplate(f.ctx, tmpl, v, store.Build{Node: "n1"}, nil); err != nil {
		t.Fatal(err)
	}
	if v.Number != 1 || v.Status != kiln.VersionPending {
		t.Errorf("version %d is %s", v.Number, v.Status)
	}
	for _, ref := range []string{"my-ml", tmpl.ID} {
		got, err := f.FindTemplate(f.ctx, org, ref)
		if err != nil {
			t.Fatal(err)
		}
		want := *tmpl
		want.Latest = v
		if !reflect.DeepEqual(got, &want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", ref, got, &want)
		}
	}
	if _, err := f.FindTemplate(f.ctx, org, "other"); kiln.CodeOf(err) != kiln.CodeNotFound {
		t.Errorf("unknown name: %v", err)
	}
}

func testNamesAreUnique(t *testing.T, f fixture) {
	f.create(t, org, "a")
	tmpl := &kiln.Template{ID: kiln.NewTemplateID(), OrgID: org, Name: "a", CreatedAt: at(0)}
	wantCode(t, "same name", f.CreateTemplate(f.ctx, tmpl, version(tmpl.ID), store.Build{}, nil), kiln.CodeConflict)
	f.create(t, "org_b", "a")
	f.create(t, "", "a")
	if _, err := f.DeleteTemplate(f.ctx, org, "a"); err != nil {
		t.Fatal(err)
	}
	f.create(t, org, "a")
}

// testDeletedIsSaid: what there was is not called unknown, but to its owner only.
func testDeletedIsSaid(t *testing.T, f fixture) {
	tmpl, v := f.create(t, org, "a")
	f.promote(t, v)
	if _, err := f.DeleteTemplate(f.ctx, org, "a"); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"a", tmpl.ID} {
		for asking, deleted := range map[string]bool{org: true, "org_b": false} {
			_, _, err := f.ResolveTemplate(f.ctx, asking, kiln.TemplateRef{NameOrID: ref})
			wantCode(t, "resolve "+ref, err, kiln.CodeNotFound)
			if strings.Contains(err.Error(), "was deleted") != deleted {
				t.Errorf("%s is told of %s: %v", asking, ref, err)
			}
		}
	}
	// A request that resolved it just before the deletion runs as long as the files are kept.
	box := func() *kiln.Sandbox {
		return &kiln.Sandbox{ID: kiln.NewSandboxID(), OrgID: org, TemplateID: tmpl.ID, Template: "a", Version: 1, Status: kiln.SandboxCreating}
	}
	early := box()
	if err := f.CreateSandbox(f.ctx, early); err != nil {
		t.Fatal(err)
	}
	ref := store.VersionRef{TemplateID: tmpl.ID, Number: 1}
	if done, err := f.CollectVersion(f.ctx, ref, 3); done || err != nil {
		t.Errorf("given up under a sandbox: %v, %v", done, err)
	}
	early.Status = kiln.SandboxFailed
	if err := f.UpdateSandbox(f.ctx, early); err != nil {
		t.Fatal(err)
	}
	if done, err := f.CollectVersion(f.ctx, ref, 3); !done || err != nil {
		t.Errorf("kept: %v, %v", done, err)
	}
	err := f.CreateSandbox(f.ctx, box())
	wantCode(t, "too late", err, kiln.CodeNotFound)
	if !strings.Contains(err.Error(), `template "a" was deleted`) {
		t.Error(err)
	}
	f.create(t, org, "a")
	if _, err := f.FindTemplate(f.ctx, org, "a"); err != nil {
		t.Errorf("another of the same name: %v", err)
	}
}

func testVisibility(t *testing.T, f fixture) {
	theirs, v := f.create(t, "org_b", "secret")
	f.promote(t, v)
	for _, ref := range []string{"secret", theirs.ID} {
		_, err := f.FindTemplate(f.ctx, org, ref)
		wantCode(t, "find "+ref, err, kiln.CodeNotFound)
		_, _, err = f.ResolveTemplate(f.ctx, org, kiln.TemplateRef{NameOrID: ref})
		wantCode(t, "resolve "+ref, err, kiln.CodeNotFound)
		_, err = f.DeleteTemplate(f.ctx, org, ref)
		wantCode(t, "delete "+ref, err, kiln.CodeNotFound)
	}
	list, _, err := f.ListTemplates(f.ctx, org, store.Filter{}, nil, 10)
	if err != nil || len(list) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
}

func testResolutionOrder(t *testing.T, f fixture) {
	builtIn, _ := f.create(t, "", "python")
	resolve := func(ref string) string {
		t.Helper()
		got, v, err := f.ResolveTemplate(f.ctx, org, kiln.TemplateRef{NameOrID: ref})
		if err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
		if v != nil {
			t.Errorf("%s: version %d without any promoted", ref, v.Number)
		}
		return got.ID
	}
	if got := resolve("python"); got != builtIn.ID {
		t.Errorf("built-in name: got %s", got)
	}
	own, _ := f.create(t, org, "python")
	if got := resolve("python"); got != own.ID {
		t.Errorf("own name must shadow the built-in: got %s", got)
	}
	if got := resolve(builtIn.ID); got != builtIn.ID {
		t.Errorf("ID: got %s", got)
	}
	other, _, err := f.ResolveTemplate(f.ctx, "org_b", kiln.TemplateRef{NameOrID: "python"})
	if err != nil || other.ID != builtIn.ID || !other.BuiltIn {
		t.Errorf("another organisation: %+v, %v", other, err)
	}
}

func testPinning(t *testing.T, f fixture) {
	tmpl, v1 := f.create(t, org, "a")
	f.promote(t, v1)
	v2 := f.next(t, tmpl.ID)
	f.promote(t, v2)
	f.next(t, tmpl.ID) // 3 stays pending
	for ref, want := range map[string]int{"a": 2, "a@1": 1, "a@2": 2, "a:latest": 2, tmpl.ID: 2, tmpl.ID + "@1": 1} {
		r, err := kiln.ParseTemplateRef(ref)
		if err != nil {
			t.Fatal(err)
		}
		_, v, err := f.ResolveTemplate(f.ctx, org, r)
		if err != nil || v.Number != want {
			t.Errorf("%s: %+v, %v, want version %d", ref, v, err, want)
		}
	}
	for ref, code := range map[string]kiln.ErrorCode{"a@3": kiln.CodeConflict, "a@4": kiln.CodeNotFound, "a:nope": kiln.CodeNotFound, "b@1": kiln.CodeNotFound} {
		r, err := kiln.ParseTemplateRef(ref)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = f.ResolveTemplate(f.ctx, org, r)
		wantCode(t, ref, err, code)
	}
}

func testListing(t *testing.T, f fixture) {
	var want []string
	for i := range 7 {
		name := fmt.Sprintf("t%d", i)
		want = append(want, name)
		f.create(t, []string{org, ""}[i%2], name)
		f.create(t, "org_b", "x"+name)
	}
	f.create(t, "", "t0") // shadowed by the own one, listed all the same
	want = append(want, "t0")
	slices.Sort(want)
	for limit := 1; limit <= 9; limit++ {
		var got []string
		var cursor *store.Cursor
		for {
			page, next, err := f.ListTemplates(f.ctx, org, store.Filter{}, cursor, limit)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) > limit {
				t.Fatalf("page of %d, limit %d", len(page), limit)
			}
			for _, tmpl := range page {
				got = append(got, tmpl.Name)
				if tmpl.Latest == nil || tmpl.Latest.Number != 1 {
					t.Errorf("%s: latest %+v", tmpl.Name, tmpl.Latest)
				}
			}
			if next == nil {
				break
			}
			cursor = next
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: got %q, want %q", limit, got, want)
		}
	}
}

func testVersionsRoundTrip(t *testing.T, f fixture) {
	tmpl, _ := f.create(t, org, "a")
	v := version(tmpl.ID)
	v.Options = kiln.BuildOptions{Dockerfile: "x", Target: "t", Args: map[string]string{"A": "1"}, NoCache: true, Secrets: map[string][]byte{"s": []byte("secret")}}
	v.Metadata = kiln.Metadata{Description: "new", Env: map[string]string{"E": "1"}, DiskMB: 5, Tags: []string{"t"}}
	if err := f.CreateVersion(f.ctx, v, store.Build{Node: "n2", NeedsSecrets: true, Traceparent: "00-1-2-01"}, nil); err != nil {
		t.Fatal(err)
	}
	claimed, b, err := f.ClaimBuild(f.ctx, v.BuildID)
	if err != nil {
		t.Fatal(err)
	}
	if *b != (store.Build{ID: v.BuildID, Node: "n2", Attempts: 1, NeedsSecrets: true, Traceparent: "00-1-2-01"}) {
		t.Errorf("build %+v", b)
	}
	if claimed.StartedAt.IsZero() || claimed.Options.Secrets != nil {
		t.Errorf("claimed %+v", claimed)
	}
	v = claimed
	v.Config = kiln.ImageConfig{Env: []string{"PATH=/bin"}, User: "u"}
	v.BaseImages = []kiln.BaseImage{{Name: "debian", Digest: kiln.DigestOf(nil), Origin: "bootstrap"}}
	v.Rootfs = kiln.Blob{Digest: kiln.DigestOf([]byte("r")), Size: 1, Role: kiln.RoleRootfs}
	v.Stages = []kiln.StageResult{{Stage: kiln.StageSource, Cached: true, Duration: time.Second}}
	if err := f.SaveBuild(f.ctx, v); err != nil {
		t.Fatal(err)
	}
	if got, err := f.VersionByBuild(f.ctx, v.BuildID); err != nil || !reflect.DeepEqual(got, v) {
		t.Errorf("saved: %v\ngot  %+v\nwant %+v", err, got, v)
	}
	v.EndedAt = at(5)
	if err := f.Promote(f.ctx, v); err != nil {
		t.Fatal(err)
	}
	v.Status = kiln.VersionReady
	if got, err := f.Version(f.ctx, tmpl.ID, 2); err != nil || !reflect.DeepEqual(got, v) {
		t.Errorf("promoted: %v\ngot  %+v\nwant %+v", err, got, v)
	}
	got, err := f.FindTemplate(f.ctx, org, "a")
	if err != nil || got.Description != "new" || !slices.Equal(got.Tags, []string{"t"}) || got.Current != 2 {
		t.Errorf("template %+v, %v", got, err)
	}
	list, err := f.ListVersions(f.ctx, tmpl.ID, 0, 10)
	if err != nil || len(list) != 2 || list[0].Number != 2 {
		t.Errorf("versions %+v, %v", list, err)
	}
	if list, err = f.ListVersions(f.ctx, tmpl.ID, 2, 10); err != nil || len(list) != 1 || list[0].Number != 1 {
		t.Errorf("older versions %+v, %v", list, err)
	}
	for blob, want := range map[kiln.Digest]bool{v.SourceBlob: true, kiln.DigestOf([]byte("no")): false} {
		if used, err := f.SourceInUse(f.ctx, blob); err != nil || used != want {
			t.Errorf("source in use: %v, %v, want %v", used, err, want)
		}
	}
}

// testStateMachine tries every operation in every state.
func testStateMachine(t *testing.T, f fixture) {
	why := &kiln.BuildError{Stage: kiln.StageImage, Message: "m", Line: 3}
	ops := map[string]func(v *kiln.Version) error{
		"claim":   func(v *kiln.Version) error { _, _, err := f.ClaimBuild(f.ctx, v.BuildID); return err },
		"save":    func(v *kiln.Version) error { return f.SaveBuild(f.ctx, v) },
		"promote": func(v *kiln.Version) error { v.EndedAt = at(3); return f.Promote(f.ctx, v) },
		"fail":    func(v *kiln.Version) error { return f.FailBuild(f.ctx, v.BuildID, why) },
		"requeue": func(v *kiln.Version) error {
			return f.RequeueBuild(f.ctx, v.BuildID, false, func(context.Context, *sql.Tx) error { return nil })
		},
		"cancel": func(v *kiln.Version) error { _, err := f.CancelBuild(f.ctx, v.BuildID, why); return err },
	}
	states := map[kiln.VersionStatus][]string{kiln.VersionPending: nil, kiln.VersionBuilding: {"claim"}, kiln.VersionReady: {"claim", "promote"}, kiln.VersionFailed: {"fail"}}
	allowed := map[kiln.VersionStatus]map[string]kiln.VersionStatus{
		kiln.VersionPending: {"claim": kiln.VersionBuilding, "fail": kiln.VersionFailed, "requeue": kiln.VersionPending, "cancel": kiln.VersionFailed},
		kiln.VersionBuilding: {
			"save": kiln.VersionBuilding, "promote": kiln.VersionReady, "fail": kiln.VersionFailed, "requeue": kiln.VersionPending, "cancel": kiln.VersionBuilding,
		},
	}
	tmpl, _ := f.create(t, org, "a")
	for state, path := range states {
		for name, op := range ops {
			v := f.next(t, tmpl.ID)
			for _, step := range path {
				if err := ops[step](v); err != nil {
					t.Fatal(err)
				}
			}
			err := op(v)
			want, ok := allowed[state][name]
			if !ok {
				wantCode(t, fmt.Sprintf("%s when %s", name, state), err, kiln.CodeConflict)
				want = state
			} else if err != nil {
				t.Errorf("%s when %s: %v", name, state, err)
			}
			got, err := f.VersionByBuild(f.ctx, v.BuildID)
			if err != nil || got.Status != want {
				t.Errorf("%s when %s: now %s, %v, want %s", name, state, got.Status, err, want)
			}
			if failed := got.Status == kiln.VersionFailed; failed != (got.BuildError != nil) || failed && (got.BuildError.Line != 3 || got.EndedAt.IsZero()) {
				t.Errorf("%s when %s: build error %+v", name, state, got.BuildError)
			}
		}
	}
	for name, op := range ops {
		wantCode(t, name+" of an unknown build", ignoreSave(name, op(&kiln.Version{BuildID: "b_none"})), kiln.CodeNotFound)
	}
}

// ignoreSave: saving into nothing is the same conflict as saving into what has ended.
func ignoreSave(name string, err error) error {
	if name == "save" && kiln.CodeOf(err) == kiln.CodeConflict {
		return kiln.Errorf(kiln.CodeNotFound, "%v", err)
	}
	return err
}

func testOneClaimWins(t *testing.T, f fixture) {
	_, v := f.create(t, org, "a")
	var wg sync.WaitGroup
	results := make(chan error, 10)
	for range cap(results) {
		wg.Go(func() {
			_, _, err := f.ClaimBuild(f.ctx, v.BuildID)
			results <- err
		})
	}
	wg.Wait()
	close(results)
	won := 0
	for err := range results {
		if err == nil {
			won++
		} else {
			wantCode(t, "lost claim", err, kiln.CodeConflict)
		}
	}
	if won != 1 {
		t.Errorf("%d claims won", won)
	}
}

func testRequeue(t *testing.T, f fixture) {
	_, v := f.create(t, org, "a")
	nothing := func(context.Context, *sql.Tx) error { return nil }
	attempts := func(refund bool) int {
		t.Helper()
		_, b, err := f.ClaimBuild(f.ctx, v.BuildID)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.RequeueBuild(f.ctx, v.BuildID, refund, nothing); err != nil {
			t.Fatal(err)
		}
		return b.Attempts
	}
	if a, b, c := attempts(true), attempts(false), attempts(false); a != 1 || b != 1 || c != 2 {
		t.Errorf("attempts %d, %d, %d", a, b, c)
	}
}

func testCancel(t *testing.T, f fixture) {
	why := &kiln.BuildError{Stage: kiln.StageSource, Message: "cancelled"}
	tmpl, v := f.create(t, org, "a")
	if stopped, err := f.CancelBuild(f.ctx, v.BuildID, why); err != nil || !stopped {
		t.Errorf("pending: %v, %v", stopped, err)
	}
	v = f.next(t, tmpl.ID)
	if _, _, err := f.ClaimBuild(f.ctx, v.BuildID); err != nil {
		t.Fatal(err)
	}
	if stopped, err := f.CancelBuild(f.ctx, v.BuildID, why); err != nil || stopped {
		t.Errorf("building: %v, %v", stopped, err)
	}
	if b, err := f.Build(f.ctx, v.BuildID); err != nil || !b.Cancel {
		t.Errorf("not remembered: %+v, %v", b, err)
	}
}

func testNewestReadyWins(t *testing.T, f fixture) {
	tmpl, v1 := f.create(t, org, "a")
	v2 := f.next(t, tmpl.ID)
	f.promote(t, v2)
	f.promote(t, v1) // overtaken
	got, v, err := f.ResolveTemplate(f.ctx, org, kiln.TemplateRef{NameOrID: "a"})
	if err != nil || got.Current != 2 || v.Number != 2 {
		t.Errorf("current %d, version %+v, %v", got.Current, v, err)
	}
	old, err := f.Version(f.ctx, tmpl.ID, 1)
	if err != nil || old.Status != kiln.VersionReady {
		t.Errorf("version 1: %+v, %v", old, err)
	}
}

func testFailureKeepsTheOld(t *testing.T, f fixture) {
	tmpl, v1 := f.create(t, org, "a")
	f.promote(t, v1)
	v2 := f.next(t, tmpl.ID)
	if err := f.FailBuild(f.ctx, v2.BuildID, &kiln.BuildError{Message: "no"}); err != nil {
		t.Fatal(err)
	}
	got, v, err := f.ResolveTemplate(f.ctx, org, kiln.TemplateRef{NameOrID: "a"})
	if err != nil || v.Number != 1 || got.Status() != kiln.VersionReady || got.Latest.BuildError == nil {
		t.Errorf("template %+v, version %+v, %v", got, v, err)
	}
}

func testDelete(t *testing.T, f fixture) {
	tmpl, v1 := f.create(t, org, "a")
	f.promote(t, v1)
	v2, v3 := f.next(t, tmpl.ID), f.next(t, tmpl.ID)
	if _, _, err := f.ClaimBuild(f.ctx, v3.BuildID); err != nil {
		t.Fatal(err)
	}
	builds, err := f.DeleteTemplate(f.ctx, org, "a")
	slices.Sort(builds)
	want := []string{v2.BuildID, v3.BuildID}
	slices.Sort(want)
	if err != nil || !slices.Equal(builds, want) {
		t.Errorf("builds %q, %v, want %q", builds, err, want)
	}
	wantCode(t, "promote after delete", f.Promote(f.ctx, v3), kiln.CodeConflict)
	_, err = f.FindTemplate(f.ctx, org, tmpl.ID)
	wantCode(t, "find", err, kiln.CodeNotFound)
	wantCode(t, "rebuild", f.CreateVersion(f.ctx, version(tmpl.ID), store.Build{}, nil), kiln.CodeNotFound)
	_, err = f.DeleteTemplate(f.ctx, org, "a")
	wantCode(t, "delete again", err, kiln.CodeNotFound)
	if v, err := f.Version(f.ctx, tmpl.ID, 1); err != nil || v.Status != kiln.VersionReady {
		t.Errorf("old version: %+v, %v", v, err)
	}
	f.create(t, "", "b")
	_, err = f.DeleteTemplate(f.ctx, org, "b")
	wantCode(t, "delete built-in", err, kiln.CodeForbidden)
}

func testUnfinished(t *testing.T, f fixture) {
	tmpl, v1 := f.create(t, org, "a")
	v2, v3, v4 := f.next(t, tmpl.ID), f.next(t, tmpl.ID), f.next(t, tmpl.ID)
	f.promote(t, v1)
	if err := f.FailBuild(f.ctx, v2.BuildID, &kiln.BuildError{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.ClaimBuild(f.ctx, v3.BuildID); err != nil {
		t.Fatal(err)
	}
	got, err := f.UnfinishedBuilds(f.ctx, "n1")
	slices.Sort(got)
	want := []string{v3.BuildID, v4.BuildID}
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if got, err := f.UnfinishedBuilds(f.ctx, "n2"); err != nil || len(got) != 0 {
		t.Errorf("another node: %q, %v", got, err)
	}
}

func testAlsoIsOneTransaction(t *testing.T, f fixture) {
	boom := errors.New("boom")
	tmpl := &kiln.Template{ID: kiln.NewTemplateID(), OrgID: org, Name: "a", CreatedAt: at(0)}
	err := f.CreateTemplate(f.ctx, tmpl, version(tmpl.ID), store.Build{}, func(context.Context, *sql.Tx) error { return boom })
	if !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	_, err = f.FindTemplate(f.ctx, org, "a")
	wantCode(t, "after rollback", err, kiln.CodeNotFound)
}

func testStageCache(t *testing.T, f fixture) {
	key := kiln.DigestOf([]byte("k"))
	var got kiln.Blob
	if ok, err := f.CachedStage(f.ctx, kiln.StageRootfs, key, &got); ok || err != nil {
		t.Errorf("empty: %v, %v", ok, err)
	}
	for size := range int64(2) {
		if err := f.CacheStage(f.ctx, kiln.StageRootfs, key, kiln.Blob{Size: size}); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := f.CachedStage(f.ctx, kiln.StageRootfs, key, &got); !ok || err != nil || got.Size != 1 {
		t.Errorf("%v, %v, %+v", ok, err, got)
	}
	if ok, err := f.CachedStage(f.ctx, kiln.StageImage, key, &got); ok || err != nil {
		t.Errorf("another stage: %v, %v", ok, err)
	}
}

func testSnapshots(t *testing.T, f fixture) {
	tmpl, _ := f.create(t, org, "a")
	f.next(t, tmpl.ID)
	snap := kiln.Snapshot{Key: kiln.DigestOf([]byte("s")), SizeName: "shared-cpu-1x", Memory: kiln.Blob{Size: 1}, CreatedAt: at(2)}
	_, err := f.Snapshot(f.ctx, snap.Key)
	wantCode(t, "absent", err, kiln.CodeNotFound)
	for _, number := range []int{1, 1, 2} {
		if err := f.PutSnapshot(f.ctx, tmpl.ID, number, snap); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := f.Snapshot(f.ctx, snap.Key); err != nil || !reflect.DeepEqual(got, &snap) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := f.PutSnapshot(f.ctx, tmpl.ID, 3, snap); err == nil {
		t.Error("a snapshot of no version was stored")
	}
	for number, want := range map[int]int{1: 1, 2: 1, 3: 0} {
		if list, err := f.VersionSnapshots(f.ctx, tmpl.ID, number); err != nil || len(list) != want {
			t.Errorf("version %d: %+v, %v", number, list, err)
		}
	}
}

func testSandboxes(t *testing.T, f fixture) {
	sb := &kiln.Sandbox{
		ID: kiln.NewSandboxID(), OrgID: org, TemplateID: "tmpl_x", Template: "x", Version: 2, Size: "shared-cpu-1x", VCPUs: 1, MemoryMiB: 512, DiskMB: 1024,
		Status: kiln.SandboxCreating, Metadata: map[string]string{"m": "1"}, Env: map[string]string{"E": "2"}, CreatedAt: at(1), ExpiresAt: at(300),
		AccessToken: "tok", Process: kiln.Process{PID: 7, StartTime: 8}, BootTime: time.Millisecond, BootMode: kiln.BootSnapshot,
	}
	if err := f.CreateSandbox(f.ctx, sb); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "same ID", f.CreateSandbox(f.ctx, sb), kiln.CodeConflict)
	older := *sb
	older.ID, older.CreatedAt = kiln.NewSandboxID(), at(0)
	if err := f.CreateSandbox(f.ctx, &older); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Sandbox(f.ctx, sb.ID); err != nil || !reflect.DeepEqual(got, sb) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, got, sb)
	}
	living, err := f.LivingSandboxes(f.ctx)
	if err != nil || len(living) != 2 || living[0].ID != older.ID {
		t.Errorf("living %+v, %v", living, err)
	}
	for _, status := range []kiln.SandboxStatus{kiln.SandboxRunning, kiln.SandboxRunning, kiln.SandboxStopping, kiln.SandboxDeleted} {
		sb.Status, sb.Reason = status, string(status)
		if err := f.UpdateSandbox(f.ctx, sb); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := f.Sandbox(f.ctx, sb.ID); err != nil || !reflect.DeepEqual(got, sb) {
		t.Errorf("ended: %+v, %v", got, err)
	}
	if living, err = f.LivingSandboxes(f.ctx); err != nil || len(living) != 1 {
		t.Errorf("living %+v, %v", living, err)
	}
	sb.Status = kiln.SandboxRunning
	wantCode(t, "back to life", f.UpdateSandbox(f.ctx, sb), kiln.CodeConflict)
	_, err = f.Sandbox(f.ctx, "inone")
	wantCode(t, "unknown", err, kiln.CodeNotFound)
	wantCode(t, "update unknown", f.UpdateSandbox(f.ctx, &kiln.Sandbox{ID: "inone"}), kiln.CodeNotFound)
}

func testCancelledContext(t *testing.T, f fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if err := f.CacheStage(ctx, kiln.StageImage, "k", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("write: %v", err)
	}
	if _, err := f.FindTemplate(ctx, org, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	f.create(t, org, "a") // the connection is still good
}
