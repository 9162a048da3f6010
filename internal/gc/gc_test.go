package gc_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/gc"
	"github.com/kilnvm/kiln/internal/store"
	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// world is a database and blobs, with a collector.
type world struct {
	*store.Store
	blobs *artifact.Blobs
	gc    *gc.Collector
	logs  map[string]int64
	host  string // part of every snapshot key
}

func (w *world) LogSize(id string) int64 { return w.logs[id] }
func (w *world) DropLog(id string) error { delete(w.logs, id); return nil }

func (w *world) key(v *kiln.Version, size string) (kiln.Digest, error) {
	return kiln.DigestOf([]byte(string(v.Rootfs.Digest) + size + w.host)), nil
}

func newWorld(t *testing.T, keep int) *world {
	t.Helper()
	w := &world{logs: map[string]int64{}, host: "1"}
	var err error
	if w.Store, err = store.Open(t.Context(), filepath.Join(t.TempDir(), "kiln.db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Store.Close() })
	if w.blobs, err = artifact.Open(filepath.Join(t.TempDir(), "blobs")); err != nil {
		t.Fatal(err)
	}
	w.gc, err = gc.New(gc.Options{Store: w.Store, Blobs: w.blobs, Logs: w, SnapshotKey: w.key,
		Policy: gc.Policy{Keep: keep, SandboxHistory: time.Hour, AuditHistory: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) blob(t *testing.T, role, content string) kiln.Blob {
	t.Helper()
	b, err := w.blobs.IngestReader(t.Context(), bytes.NewReader([]byte(content)), role, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// version makes the next version of a template, the first one with it, and leaves it
// building.
func (w *world) version(t *testing.T, tmpl *kiln.Template) *kiln.Version {
	t.Helper()
	id := kiln.NewID("b_")
	v := &kiln.Version{TemplateID: tmpl.ID, BuildID: id, CreatedAt: time.Now(), SourceDigest: kiln.DigestOf([]byte(id))}
	v.SourceBlob = w.blob(t, kiln.RoleSource, "source of "+id).Digest
	w.logs[id] = 10
	var err error
	if tmpl.Latest == nil {
		err = w.CreateTemplate(t.Context(), tmpl, v, store.Build{}, nil)
	} else {
		err = w.CreateVersion(t.Context(), v, store.Build{}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	tmpl.Latest = v
	if _, _, err := w.ClaimBuild(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return v
}

func (w *world) ready(t *testing.T, tmpl *kiln.Template) *kiln.Version {
	t.Helper()
	v := w.version(t, tmpl)
	v.Rootfs = w.blob(t, kiln.RoleRootfs, "rootfs of "+v.BuildID)
	v.Stages = []kiln.StageResult{{Stage: kiln.StageRootfs, Key: kiln.DigestOf([]byte("key " + v.BuildID))}}
	if err := w.CacheStage(t.Context(), kiln.StageRootfs, v.Stages[0].Key, v.Rootfs); err != nil {
		t.Fatal(err)
	}
	w.bake(t, v)
	v.EndedAt = time.Now()
	if err := w.Promote(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	return v
}

func (w *world) bake(t *testing.T, v *kiln.Version) kiln.Snapshot {
	t.Helper()
	key, _ := w.key(v, "s")
	snap := kiln.Snapshot{Key: key, SizeName: "s", Rootfs: v.Rootfs, CreatedAt: time.Now(),
		Memory:  w.blob(t, kiln.RoleMemory, "memory "+string(key)),
		VMState: w.blob(t, kiln.RoleVMState, "state "+string(key)),
		Scratch: w.blob(t, kiln.RoleScratch, "scratch "+string(key))}
	if err := w.PutSnapshot(t.Context(), v.TemplateID, v.Number, snap); err != nil {
		t.Fatal(err)
	}
	return snap
}

func (w *world) sandbox(t *testing.T, v *kiln.Version, status kiln.SandboxStatus, created time.Time) *kiln.Sandbox {
	t.Helper()
	sb := &kiln.Sandbox{ID: kiln.NewSandboxID(), OrgID: "o", TemplateID: v.TemplateID, Version: v.Number, Status: status, CreatedAt: created}
	if err := w.CreateSandbox(t.Context(), sb); err != nil {
		t.Fatal(err)
	}
	return sb
}

// whole reports whether a version's own files are all there.
func (w *world) whole(v *kiln.Version) bool {
	return w.blobs.Has(v.Rootfs) && w.has(v.SourceBlob)
}

func (w *world) has(d kiln.Digest) bool {
	f, err := w.blobs.Open(d)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

func (w *world) run(t *testing.T, dry bool) kiln.GarbageReport {
	t.Helper()
	r, err := w.gc.Run(t.Context(), dry)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func template(name string) *kiln.Template {
	return &kiln.Template{ID: kiln.NewTemplateID(), OrgID: "o", Name: name}
}

func TestPolicy(t *testing.T) {
	w := newWorld(t, 2)
	a := template("a")
	var v []*kiln.Version
	for range 6 {
		v = append(v, w.ready(t, a))
	}
	failed := w.version(t, a) // 7
	if err := w.FailBuild(t.Context(), failed.BuildID, &kiln.BuildError{Message: "no"}); err != nil {
		t.Fatal(err)
	}
	building := w.version(t, a) // 8
	if _, err := w.SetTag(t.Context(), "o", "a", 1, "keep"); err != nil {
		t.Fatal(err)
	}
	box := w.sandbox(t, v[1], kiln.SandboxRunning, time.Now())
	if _, _, err := w.Rollback(t.Context(), "o", "a", 3); err != nil {
		t.Fatal(err)
	}
	orphan := w.blob(t, kiln.RoleRootfs, "nobody's")
	w.sandbox(t, v[0], kiln.SandboxDeleted, time.Now().Add(-2*time.Hour))
	for id, at := range map[string]time.Time{"aud_old": time.Now().Add(-2 * time.Hour), "aud_new": time.Now()} {
		if err := w.RecordAudit(t.Context(), kiln.AuditEvent{ID: id, OrgID: "o", Time: at}); err != nil {
			t.Fatal(err)
		}
	}

	dry := w.run(t, true)
	for i, x := range v {
		if !w.whole(x) {
			t.Fatalf("a dry run removed files of version %d", i+1)
		}
	}
	real := w.run(t, false)
	if !slices.Equal(dry.Items, real.Items) || dry.Bytes != real.Bytes || real.Bytes == 0 {
		t.Errorf("dry run and run differ:\n%+v\n%+v", dry, real)
	}
	// 1 is tagged, 2 is used, 3 is current, 5 and 6 are the newest ready ones.
	for i, want := range []bool{true, true, true, false, true, true} {
		if w.whole(v[i]) != want {
			t.Errorf("version %d: files are there: %v", i+1, !want)
		}
		if _, logged := w.logs[v[i].BuildID]; logged != want {
			t.Errorf("version %d: log is there: %v", i+1, logged)
		}
		snaps, err := w.VersionSnapshots(t.Context(), a.ID, i+1)
		if err != nil || (len(snaps) == 1) != want {
			t.Errorf("version %d: snapshots %v, %v", i+1, snaps, err)
		}
		var cached kiln.Blob
		if ok, err := w.CachedStage(t.Context(), kiln.StageRootfs, v[i].Stages[0].Key, &cached); ok != want || err != nil {
			t.Errorf("version %d: in the stage cache: %v, %v", i+1, ok, err)
		}
	}
	if _, logged := w.logs[failed.BuildID]; logged || w.has(failed.SourceBlob) {
		t.Error("source or log of a failed version that is not the newest stayed")
	}
	if !w.has(building.SourceBlob) {
		t.Error("the source of a running build is gone")
	}
	if w.blobs.Has(orphan) {
		t.Error("a blob that nobody refers to stayed")
	}
	if events, err := w.Audit(t.Context(), "", "", 10); err != nil || len(events) != 1 || events[0].ID != "aud_new" {
		t.Errorf("the audit log is %+v, %v", events, err)
	}
	if n, err := w.CountEndedSandboxes(t.Context(), time.Now()); n != 0 || err != nil {
		t.Errorf("%d rows of ended sandboxes, %v", n, err)
	}
	if r := w.run(t, false); len(r.Items) != 0 {
		t.Errorf("a second run removed %+v", r.Items)
	}

	// What is given up cannot be claimed again.
	_, _, err := w.ResolveTemplate(t.Context(), "o", kiln.TemplateRef{NameOrID: "a", Version: 4})
	wantConflict(t, "start", err)
	_, err = w.SetTag(t.Context(), "o", "a", 4, "x")
	wantConflict(t, "tag", err)
	_, _, err = w.Rollback(t.Context(), "o", "a", 4)
	wantConflict(t, "roll back", err)
	wantConflict(t, "bake", w.PutSnapshot(t.Context(), a.ID, 4, kiln.Snapshot{Key: "k"}))
	wantConflict(t, "sandbox", w.CreateSandbox(t.Context(), &kiln.Sandbox{ID: "i", TemplateID: a.ID, Version: 4, Status: kiln.SandboxCreating}))

	// A deleted template keeps what its sandboxes run on, and that only.
	if _, err := w.DeleteTemplate(t.Context(), "o", "a"); err != nil {
		t.Fatal(err)
	}
	w.run(t, false)
	for i, x := range v {
		if w.whole(x) != (i == 1) {
			t.Errorf("deleted template, version %d: files are there: %v", i+1, w.whole(x))
		}
	}
	for _, s := range []kiln.SandboxStatus{kiln.SandboxStopping, kiln.SandboxDeleted} {
		box.Status = s
		if err := w.UpdateSandbox(t.Context(), box); err != nil {
			t.Fatal(err)
		}
	}
	w.run(t, false)
	if list, err := w.blobs.List(); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}

func wantConflict(t *testing.T, what string, err error) {
	t.Helper()
	if kiln.CodeOf(err) != kiln.CodeConflict {
		t.Errorf("%s with a version that was given up: %v", what, err)
	}
}

func TestSupersededSnapshots(t *testing.T) {
	w := newWorld(t, 1)
	a := template("a")
	v := w.ready(t, a)
	old, err := w.VersionSnapshots(t.Context(), a.ID, 1)
	if err != nil {
		t.Fatal(err)
	}
	w.host = "2" // a new kernel
	if r := w.run(t, false); len(r.Items) != 0 {
		t.Errorf("before there is a newer one: %+v", r.Items)
	}
	fresh := w.bake(t, v)
	box := w.sandbox(t, v, kiln.SandboxRunning, time.Now())
	if r := w.run(t, false); len(r.Items) != 0 {
		t.Errorf("while a sandbox may use it: %+v", r.Items)
	}
	for _, s := range []kiln.SandboxStatus{kiln.SandboxStopping, kiln.SandboxDeleted} {
		box.Status = s
		if err := w.UpdateSandbox(t.Context(), box); err != nil {
			t.Fatal(err)
		}
	}
	dry, real := w.run(t, true), w.run(t, false)
	if !slices.Equal(dry.Items, real.Items) || len(real.Items) != 4 {
		t.Errorf("dry run %+v\nrun     %+v", dry.Items, real.Items)
	}
	if w.blobs.Has(old[0].Memory) || !w.blobs.Has(fresh.Memory) || !w.whole(v) {
		t.Error("not the superseded snapshot was removed, and it alone")
	}
}

// TestKilledInTheMiddle ends a run at each of its steps. What is still known is whole, and
// the next run removes the rest.
func TestKilledInTheMiddle(t *testing.T) {
	for calls := 1; ; calls++ {
		w := newWorld(t, 1)
		a := template("a")
		v := []*kiln.Version{w.ready(t, a), w.ready(t, a), w.ready(t, a)}
		ctx, cancel := context.WithCancel(t.Context())
		_, err := w.gc.Run(&countdown{ctx, cancel, calls}, false)
		cancel()
		for i, x := range v {
			stored, serr := w.Version(t.Context(), a.ID, i+1)
			if serr != nil {
				t.Fatal(serr)
			}
			if stored.CollectedAt.IsZero() && !w.whole(x) {
				t.Errorf("stopped after %d looks at the context: version %d is known but not whole", calls, i+1)
			}
		}
		w.run(t, false)
		if list, err := w.blobs.List(); err != nil || len(list) != 5 {
			t.Errorf("stopped after %d: the next run left %d blobs, %v", calls, len(list), err)
		}
		if err == nil {
			if calls < 5 {
				t.Errorf("a run looks at its context %d times only", calls)
			}
			return
		}
	}
}

// countdown is a context that ends when it has been asked some times.
type countdown struct {
	context.Context
	cancel context.CancelFunc
	left   int
}

func (c *countdown) Err() error {
	if c.left--; c.left <= 0 {
		c.cancel()
	}
	return c.Context.Err()
}

// TestClaimsAgainstRuns starts sandboxes and moves tags while the collector runs: whoever
// succeeds has whole files.
func TestClaimsAgainstRuns(t *testing.T) {
	w := newWorld(t, 1)
	for round := range 20 {
		a := template(fmt.Sprintf("t%d", round))
		old := w.ready(t, a)
		w.ready(t, a)
		claimed := make(chan bool, 2)
		go func() {
			err := w.CreateSandbox(t.Context(), &kiln.Sandbox{ID: kiln.NewSandboxID(), TemplateID: a.ID, Version: 1, Status: kiln.SandboxCreating, CreatedAt: time.Now()})
			claimed <- err == nil
		}()
		go func() {
			_, err := w.SetTag(t.Context(), "o", a.Name, 1, "x")
			claimed <- err == nil
		}()
		w.run(t, false)
		first, second := <-claimed, <-claimed
		w.run(t, false)
		if w.whole(old) != (first || second) {
			t.Errorf("round %d: claimed %v, %v; files are there: %v", round, first, second, w.whole(old))
		}
	}
}
