package pipeline

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
)

// builtIns returns a catalogue whose recipes change with text.
func builtIns(t *testing.T, text string, names ...string) []BuiltIn {
	t.Helper()
	var list []BuiltIn
	for _, name := range names {
		content, err := files{"recipe": text}.tar()
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, BuiltIn{Name: name, Aliases: []string{name + "-alias"}, Context: content})
	}
	return list
}

func (r *rig) builtIn(t *testing.T, name string) *kiln.Template {
	t.Helper()
	tmpl, err := r.store.FindTemplate(t.Context(), org, name)
	if err != nil {
		t.Fatal(err)
	}
	return tmpl
}

// settled registers a catalogue and returns when what is due is built.
func (r *rig) settled(t *testing.T, list []BuiltIn, eager ...string) {
	t.Helper()
	if err := r.RegisterBuiltIns(t.Context(), list, eager); err != nil {
		t.Fatal(err)
	}
	r.background.Wait()
}

func TestBuiltInsAreBuiltWhenDue(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	r.settled(t, builtIns(t, "1", "a", "b", "c"), "a")
	if a := r.builtIn(t, "a"); !a.BuiltIn || a.Current != 1 {
		t.Errorf("the eager one: %+v", a)
	}
	if b := r.builtIn(t, "b-alias"); b.Name != "b" || b.Current != 0 || b.Status() != kiln.VersionPending {
		t.Errorf("the deferred one: %+v", b)
	}

	t.Run("nobody waits for what nobody asked for", func(t *testing.T) {
		for line, err := range r.Logs(t.Context(), org, r.builtIn(t, "b").Latest.BuildID, 0, true) {
			if kiln.CodeOf(err) != kiln.CodeConflict || !strings.Contains(err.Error(), "first use") {
				t.Errorf("log: %+v, %v", line, err)
			}
		}
		r.tidy(t)
	})
	t.Run("on first use", func(t *testing.T) {
		tmpl, err := r.BuildOnUse(t.Context(), org, "b-alias")
		if err != nil || tmpl == nil || tmpl.Name != "b" {
			t.Fatalf("%+v, %v", tmpl, err)
		}
		if v, err := r.Wait(t.Context(), tmpl.Latest.BuildID); err != nil || v.Status != kiln.VersionReady {
			t.Fatalf("%+v, %v", v, err)
		}
		if again, err := r.BuildOnUse(t.Context(), org, "b"); again != nil || err != nil {
			t.Errorf("built on the second use: %+v, %v", again, err)
		}
		if res, err := r.BuildBuiltIn(t.Context(), Rebuild{Template: "b"}); err != nil || !res.Unchanged {
			t.Errorf("built when asked for again: %+v, %v", res, err)
		}
	})
	t.Run("the same catalogue changes nothing", func(t *testing.T) {
		r.settled(t, builtIns(t, "1", "a", "b", "c"), "a")
		if n := r.builtIn(t, "a").Latest.Number; n != 1 {
			t.Errorf("version %d", n)
		}
	})
	t.Run("a new recipe", func(t *testing.T) {
		r.settled(t, builtIns(t, "2", "a", "b", "c"))
		for _, name := range []string{"a", "b"} { // they are in use
			if tmpl := r.builtIn(t, name); tmpl.Current != 2 {
				t.Errorf("%s: %+v", name, tmpl)
			}
		}
		c := r.builtIn(t, "c")
		if c.Latest.Number != 2 || c.Latest.Status != kiln.VersionPending {
			t.Errorf("nobody has used c: %+v", c.Latest)
		}
		if old, err := r.store.Version(t.Context(), c.ID, 1); err != nil || old.Status != kiln.VersionFailed {
			t.Errorf("the old recipe of c still waits: %+v, %v", old, err)
		}
	})
	r.tidy(t)
}

func TestBuiltInsAreNobodys(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	r.settled(t, builtIns(t, "1", "a"))
	a := r.builtIn(t, "a")
	for _, ref := range []string{"a", "a-alias", a.ID} {
		if err := r.Delete(t.Context(), org, ref); kiln.CodeOf(err) != kiln.CodeForbidden {
			t.Errorf("delete %s: %v", ref, err)
		}
		if _, err := r.Rebuild(t.Context(), org, Rebuild{Template: ref}); kiln.CodeOf(err) != kiln.CodeForbidden {
			t.Errorf("rebuild %s: %v", ref, err)
		}
	}
	if err := r.Cancel(t.Context(), org, a.Latest.BuildID); kiln.CodeOf(err) != kiln.CodeForbidden {
		t.Errorf("cancel: %v", err)
	}
	own := r.create(t, "a", nil)
	r.ready(t, own)
	if want := "a shadows the built-in template a for this organisation"; !slices.Equal(own.Warnings, []string{want}) {
		t.Errorf("warnings %q", own.Warnings)
	}
	capture, err := r.Create(t.Context(), org, NewTemplate{Name: "a-alias", Context: strings.NewReader("x"), Capture: &kiln.CaptureSource{}, Replace: true})
	if err != nil || len(capture.Warnings) != 1 || !strings.Contains(capture.Warnings[0], "a-alias shadows the built-in template a ") {
		t.Errorf("a capture under its alias: %+v, %v", capture, err)
	}
	r.wait(t, capture)
	if again := r.create(t, "a", files{"f": "2"}); len(again.Warnings) > 0 {
		t.Errorf("warned of what is so already: %q", again.Warnings)
	} else {
		r.ready(t, again)
	}
	if own.Template.ID == a.ID || r.builtIn(t, "a").ID != own.Template.ID {
		t.Error("an own template does not shadow the built-in one")
	}
	if tmpl, err := r.BuildOnUse(t.Context(), org, "a"); tmpl != nil || err != nil {
		t.Errorf("the use of an own template: %+v, %v", tmpl, err)
	}
	if err := r.Delete(t.Context(), org, "a"); err != nil || r.builtIn(t, "a").ID != a.ID {
		t.Errorf("delete of the own one: %v", err)
	}
}

func TestFailedBuiltInIsTriedAgain(t *testing.T) {
	offline := true
	r := newRig(t, dataDir(t), func(_ *Options, s *stages) {
		s.hook = func(_ context.Context, stage kiln.Stage) error {
			if offline && stage == kiln.StageImage {
				return kiln.Errorf(kiln.CodeUnavailable, "no base image")
			}
			return nil
		}
	})
	r.settled(t, builtIns(t, "1", "a", "b"), "a")
	if a := r.builtIn(t, "a"); a.Status() != kiln.VersionFailed {
		t.Fatalf("%+v", a.Latest)
	}
	if tmpl, err := r.BuildOnUse(t.Context(), org, "a"); tmpl != nil || err != nil {
		t.Errorf("built again right after its failure: %+v, %v", tmpl, err)
	}
	offline = false
	r.settled(t, builtIns(t, "1", "a", "b"), "a") // the next start of the server
	if a := r.builtIn(t, "a"); a.Current != 2 {
		t.Errorf("%+v", a.Latest)
	}
	r.tidy(t)
}

// TestOperatorRefreshesBuiltIns: the recipe is the same, so that nothing else would build it.
func TestOperatorRefreshesBuiltIns(t *testing.T) {
	entered := make(chan struct{}, 1)
	var block atomic.Bool
	r := newRig(t, dataDir(t), func(_ *Options, s *stages) {
		blocked := blockIn(kiln.StageImage, entered)
		s.hook = func(ctx context.Context, stage kiln.Stage) error {
			if block.Load() {
				return blocked(ctx, stage)
			}
			return nil
		}
	})
	r.settled(t, builtIns(t, "1", "a", "b"), "a")
	a, b := r.builtIn(t, "a"), r.builtIn(t, "b")
	r.take()
	for _, c := range []struct {
		name string
		req  Rebuild
		ran  []kiln.Stage
	}{
		{"a", Rebuild{Template: "a-alias", NoCache: true}, []kiln.Stage{kiln.StageImage, kiln.StageRootfs}},
		{"b", Rebuild{Template: "b", Pull: true}, nil}, // nobody has used it, and its recipe is that of a
	} {
		res, err := r.BuildBuiltIn(t.Context(), c.req)
		if err != nil || res.Unchanged || res.Version.Number != 2 {
			t.Fatalf("%s: %+v, %v", c.name, res, err)
		}
		r.ready(t, res)
		if got := r.builtIn(t, c.name); got.Current != 2 || !slices.Equal(r.take(), c.ran) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	if first, err := r.store.Version(t.Context(), b.ID, 1); err != nil || first.Status != kiln.VersionFailed {
		t.Errorf("the version of b that nobody used waits on: %+v, %v", first, err)
	}

	block.Store(true)
	res, err := r.BuildBuiltIn(t.Context(), Rebuild{Template: a.ID, NoCache: true})
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	if err := r.Cancel(t.Context(), org, res.Version.BuildID); kiln.CodeOf(err) != kiln.CodeForbidden {
		t.Errorf("cancelled by a tenant: %v", err)
	}
	if err := r.Cancel(t.Context(), "", res.Version.BuildID); err != nil {
		t.Fatal(err)
	}
	if v := r.wait(t, res); v.Status != kiln.VersionFailed || r.builtIn(t, "a").Current != 2 {
		t.Errorf("after the cancellation: %+v", v)
	}
	block.Store(false)
	r.settled(t, builtIns(t, "1", "a", "b"), "a") // what is current has that recipe
	if got := r.builtIn(t, "a"); got.Latest.Number != 3 {
		t.Errorf("built again: %+v", got.Latest)
	}
	r.settled(t, builtIns(t, "1", "c"))
	if err := r.Cancel(t.Context(), "", r.builtIn(t, "c").Latest.BuildID); kiln.CodeOf(err) != kiln.CodeConflict {
		t.Errorf("cancel of a build that nobody asked for: %v", err)
	}
	r.tidy(t)
}

// TestBuiltInsHaveTheirAliases: also when the server died before they had, and when nothing
// else of the catalogue has changed.
func TestBuiltInsHaveTheirAliases(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	list := builtIns(t, "1", "a", "b")
	list[0].Aliases, list[1].Aliases = nil, []string{"x", "y"}
	r.settled(t, list)
	list[0].Aliases, list[1].Aliases = []string{"y", "z"}, []string{"x"}
	r.settled(t, list)
	for alias, name := range map[string]string{"x": "b", "y": "a", "z": "a"} {
		if got := r.builtIn(t, alias); got.Name != name || got.Latest.Number != 1 {
			t.Errorf("%s means %s version %d, want %s", alias, got.Name, got.Latest.Number, name)
		}
	}
	list[0].Aliases = []string{"z"}
	r.settled(t, list)
	if _, err := r.store.FindTemplate(t.Context(), org, "y"); kiln.CodeOf(err) != kiln.CodeNotFound {
		t.Errorf("an alias that was given up: %v", err)
	}
}

// TestUsedBuiltInIsTriedAgain: a new recipe that could not be built is built at the next
// start, whether the template is eager or not.
func TestUsedBuiltInIsTriedAgain(t *testing.T) {
	offline := false
	r := newRig(t, dataDir(t), func(_ *Options, s *stages) {
		s.hook = func(_ context.Context, stage kiln.Stage) error {
			if offline && stage == kiln.StageImage {
				return kiln.Errorf(kiln.CodeUnavailable, "no base image")
			}
			return nil
		}
	})
	r.settled(t, builtIns(t, "1", "a"), "a")
	offline = true
	r.settled(t, builtIns(t, "2", "a"))
	if a := r.builtIn(t, "a"); a.Current != 1 || a.Latest.Status != kiln.VersionFailed {
		t.Fatalf("%+v, %+v", a, a.Latest)
	}
	offline = false
	r.settled(t, builtIns(t, "2", "a"))
	if a := r.builtIn(t, "a"); a.Current != 3 {
		t.Errorf("%+v, %+v", a, a.Latest)
	}
	r.tidy(t)
}

// TestEagerBuiltInsAreBuiltInOrder: one after the other, as the catalogue lists them.
func TestEagerBuiltInsAreBuiltInOrder(t *testing.T) {
	var running, most atomic.Int32
	r := newRig(t, dataDir(t), func(o *Options, s *stages) {
		o.Parallel = 3
		s.hook = func(_ context.Context, stage kiln.Stage) error {
			if stage == kiln.StageImage {
				most.Store(max(most.Load(), running.Add(1)))
				defer running.Add(-1)
			}
			return nil
		}
	})
	var list []BuiltIn
	for _, name := range []string{"cheap", "middle", "dear", "on-demand"} {
		list = append(list, builtIns(t, name, name)...)
	}
	r.settled(t, list, "dear", "middle", "cheap")
	var last time.Time
	for _, b := range list[:3] {
		v := r.builtIn(t, b.Name).Latest
		if v.Status != kiln.VersionReady || v.StartedAt.Before(last) {
			t.Errorf("%s is %s and was begun at %v, the one before it ended at %v", b.Name, v.Status, v.StartedAt, last)
		}
		last = v.EndedAt
	}
	if v := r.builtIn(t, "on-demand").Latest; v.Status != kiln.VersionPending || most.Load() != 1 {
		t.Errorf("on demand: %s; %d at once", v.Status, most.Load())
	}
}

// TestUsersGoFirst fills the only worker, queues a built-in template and then a user's.
func TestUsersGoFirst(t *testing.T) {
	release := make(chan struct{})
	r := newRig(t, dataDir(t), func(o *Options, s *stages) {
		o.Parallel = 1
		s.hook = func(ctx context.Context, stage kiln.Stage) error {
			if stage != kiln.StageImage {
				return nil
			}
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	first := r.create(t, "first", nil)
	if err := r.RegisterBuiltIns(t.Context(), builtIns(t, "1", "b"), []string{"b"}); err != nil {
		t.Fatal(err)
	}
	last := r.create(t, "last", nil)
	close(release)
	r.ready(t, first)
	user := r.ready(t, last)
	r.background.Wait()
	if b := r.builtIn(t, "b").Latest; b.Status != kiln.VersionReady || b.StartedAt.Before(user.StartedAt) {
		t.Errorf("the built-in one started at %v, the user's at %v", b.StartedAt, user.StartedAt)
	}
}
