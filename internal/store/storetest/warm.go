package storetest

import (
	"slices"
	"testing"

	"github.com/kilnvm/kiln"
)

// testWarmTargets: a target is set, set anew and forgotten with its template; one of a
// built-in template is each organisation's own.
func testWarmTargets(t *testing.T, f fixture) {
	a, _ := f.create(t, org, "a")
	b, _ := f.create(t, org, "b")
	builtIn, _ := f.create(t, "", "c")
	set := func(owner, template, size string, slots int) kiln.WarmTarget {
		t.Helper()
		target := kiln.WarmTarget{OrgID: owner, TemplateID: template, Size: size, Slots: slots}
		if err := f.SetWarmTarget(f.ctx, target); err != nil {
			t.Fatal(err)
		}
		return target
	}
	check := func(when string, want ...kiln.WarmTarget) {
		t.Helper()
		got, err := f.WarmTargets(f.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("%s: %+v, want %+v", when, got, want)
		}
		for _, w := range want {
			if !slices.Contains(got, w) {
				t.Errorf("%s: %+v is not among %+v", when, w, got)
			}
		}
	}
	check("at first")
	set(org, a.ID, "s", 1)
	large := set(org, a.ID, "l", 2)
	other := set(org, b.ID, "s", 3)
	servers := set("", builtIn.ID, "s", 4)
	again := set(org, a.ID, "s", 7)
	check("after a change", again, large, other, servers)
	none := set(org, a.ID, "s", 0)
	check("with none wanted", none, large, other, servers)
	if _, err := f.DeleteTemplate(f.ctx, org, "a"); err != nil {
		t.Fatal(err)
	}
	check("after a deletion", other, servers)
}
