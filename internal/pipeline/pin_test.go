package pipeline

import (
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

// A pin is obeyed or refused, and never left out of account.
func TestPins(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	r.ready(t, r.create(t, "a", files{"f": "1"}))
	if _, err := r.SetTag(t.Context(), org, "a", 1, "v1"); err != nil {
		t.Fatal(err)
	}
	r.ready(t, r.create(t, "a", files{"f": "2"}))
	ctx := t.Context()
	for name, do := range map[string]func(ref string) error{
		"templates delete":  func(ref string) error { return r.Delete(ctx, org, ref) },
		"templates rebuild": func(ref string) error { _, err := r.Rebuild(ctx, org, Rebuild{Template: ref}); return err },
		"templates update-quota": func(ref string) error {
			_, err := r.UpdateQuota(ctx, org, ref, func(q *kiln.Quota) { q.DiskMB = 7 })
			return err
		},
		"templates untag":           func(ref string) error { return r.RemoveTag(ctx, org, ref, "v1") },
		"templates tags":            func(ref string) error { _, err := r.Tags(ctx, org, ref); return err },
		"templates versions":        func(ref string) error { _, _, err := r.Versions(ctx, org, ref, 0, 10); return err },
		"templates build --builtin": func(ref string) error { _, err := r.BuildBuiltIn(ctx, Rebuild{Template: ref}); return err },
	} {
		for _, pin := range []string{"@1", ":v1"} {
			err := do("a" + pin)
			if kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), pin) || !strings.Contains(hintOf(err), "kiln "+name+" a") {
				t.Errorf("%s a%s: %v, hint %q", name, pin, err, hintOf(err))
			}
		}
	}
	for ref, want := range map[string][]int{"a": {2, 1}, "a@1": {1}, "a:v1": {1}, "a@2": {2}, "a:latest": {2}} {
		_, versions, err := r.Get(ctx, org, ref)
		var got []int
		for _, v := range versions {
			got = append(got, v.Number)
		}
		if err != nil || len(got) != len(want) || got[0] != want[0] {
			t.Errorf("get %s: versions %v, %v, want %v", ref, got, err, want)
		}
	}
	for _, ref := range []string{"a@3", "a:v2"} {
		if _, _, err := r.Get(ctx, org, ref); kiln.CodeOf(err) != kiln.CodeNotFound {
			t.Errorf("get %s: %v", ref, err)
		}
	}
	if _, _, err := r.Rollback(ctx, org, "a@2", 1); kiln.CodeOf(err) != kiln.CodeInvalid {
		t.Errorf("rollback to two versions: %v", err)
	}
	r.ready(t, r.create(t, "a", files{"f": "3"}))
	if tmpl, was, err := r.Rollback(ctx, org, "a:v1", 0); err != nil || tmpl.Current != 1 || was != 3 {
		t.Errorf("rollback to a tag: %+v, was %d, %v", tmpl, was, err)
	}
}

func hintOf(err error) string {
	if e, ok := err.(*kiln.Error); ok {
		return e.Hint
	}
	return ""
}
