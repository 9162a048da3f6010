package pipeline

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kilnvm/kiln"
)

func assertAbsent(t *testing.T, dir, needle string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(content), needle) {
			t.Errorf("%s holds %q", p, needle)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestHazard26ManyRebuildsAtOnce(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	r.ready(t, r.create(t, "a", nil))
	const n = 12
	var wg sync.WaitGroup
	results := make([]*Result, n)
	for i := range n {
		wg.Go(func() {
			res, err := r.Create(t.Context(), org, NewTemplate{Name: "a", Context: archive(t, files{"f": fmt.Sprint(i)}), Replace: true})
			if err != nil {
				t.Error(err)
				return
			}
			results[i] = res
		})
	}
	wg.Wait()
	numbers := map[int]bool{}
	for _, res := range results {
		v := r.ready(t, res)
		numbers[v.Number] = true
	}
	if len(numbers) != n {
		t.Errorf("%d numbers for %d versions", len(numbers), n)
	}
	tmpl, v, err := r.store.ResolveTemplate(t.Context(), org, kiln.TemplateRef{NameOrID: "a"})
	if err != nil || v.Number != n+1 || tmpl.Current != n+1 {
		t.Errorf("promoted %+v, %v, want version %d", v, err, n+1)
	}
	r.tidy(t)
}

func TestHazard26SlowOldBuildDoesNotOvertake(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	r := newRig(t, dataDir(t), func(_ *Options, s *stages) {
		s.hook = func(_ context.Context, stage kiln.Stage) error {
			if stage == kiln.StageImage && first.CompareAndSwap(false, true) {
				close(entered)
				<-release
			}
			return nil
		}
	})
	slow := r.create(t, "a", nil)
	<-entered
	quick := r.create(t, "a", files{"new": "1"})
	r.ready(t, quick)
	close(release)
	r.ready(t, slow)
	_, v, err := r.store.ResolveTemplate(t.Context(), org, kiln.TemplateRef{NameOrID: "a"})
	if err != nil || v.Number != 2 {
		t.Errorf("promoted %+v, %v", v, err)
	}
}

func TestHazard26DeleteDuringBuild(t *testing.T) {
	for _, stage := range allStages {
		t.Run(string(stage), func(t *testing.T) {
			entered := make(chan struct{}, 1)
			r := newRig(t, dataDir(t), func(_ *Options, s *stages) { s.hook = blockIn(stage, entered) })
			res := r.create(t, "a", nil)
			<-entered
			if err := r.Delete(t.Context(), "org_b", "a"); kiln.CodeOf(err) != kiln.CodeNotFound {
				t.Errorf("another organisation: %v", err)
			}
			if err := r.Delete(t.Context(), org, "a"); err != nil {
				t.Fatal(err)
			}
			v := r.wait(t, res)
			if v.Status != kiln.VersionFailed || !strings.Contains(v.BuildError.Message, "deleted") {
				t.Errorf("%s: %+v", v.Status, v.BuildError)
			}
			if _, _, err := r.Get(t.Context(), org, "a"); kiln.CodeOf(err) != kiln.CodeNotFound {
				t.Errorf("still there: %v", err)
			}
			r.tidy(t)
		})
	}
}

// TestHazard26RebuildsAgainstDeletes lets both happen in any order and looks at what must
// hold whatever the order was.
func TestHazard26RebuildsAgainstDeletes(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	for round := range 10 {
		name := fmt.Sprintf("t%d", round)
		first := r.create(t, name, nil)
		var wg sync.WaitGroup
		var builds []string
		var mu sync.Mutex
		builds = append(builds, first.Version.BuildID)
		for i := range 4 {
			wg.Go(func() {
				if i == 2 {
					if err := r.Delete(t.Context(), org, name); err != nil {
						t.Error(err)
					}
					return
				}
				res, err := r.Rebuild(t.Context(), org, Rebuild{Template: name, NoCache: true})
				if kiln.CodeOf(err) == kiln.CodeNotFound {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				builds = append(builds, res.Version.BuildID)
				mu.Unlock()
			})
		}
		wg.Wait()
		for _, id := range builds {
			v, err := r.Wait(t.Context(), id)
			if err != nil || !v.Status.Terminal() {
				t.Errorf("build %s: %+v, %v", id, v, err)
			}
		}
		if _, _, err := r.Get(t.Context(), org, name); kiln.CodeOf(err) != kiln.CodeNotFound {
			t.Errorf("%s still there: %v", name, err)
		}
	}
	r.tidy(t)
}

func TestEnsureSnapshotBakesOnce(t *testing.T) {
	entered, release := make(chan struct{}, 10), make(chan struct{})
	var block atomic.Bool
	r := newRig(t, dataDir(t), func(_ *Options, s *stages) {
		s.hook = func(ctx context.Context, stage kiln.Stage) error {
			if stage == kiln.StageSnapshot && block.Load() {
				entered <- struct{}{}
				select {
				case <-release:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		}
	})
	v := r.ready(t, r.create(t, "a", files{"kiln-template.toml": "min_size = \"shared-cpu-2x\""}))
	r.take()
	if _, err := r.EnsureSnapshot(t.Context(), v, "shared-cpu-1x"); kiln.CodeOf(err) != kiln.CodeInvalid {
		t.Errorf("below the minimum: %v", err)
	}
	if _, err := r.EnsureSnapshot(t.Context(), v, "huge"); kiln.CodeOf(err) != kiln.CodeInvalid {
		t.Errorf("unknown size: %v", err)
	}
	if _, err := r.EnsureSnapshot(t.Context(), v, "shared-cpu-2x"); err != nil {
		t.Errorf("default size: %v", err)
	}
	if ran := r.take(); len(ran) != 0 {
		t.Errorf("the default size was baked again: %q", ran)
	}

	block.Store(true)
	impatient, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := r.EnsureSnapshot(impatient, v, "shared-cpu-4x"); err == nil {
			t.Error("the one who left got a snapshot")
		}
	})
	<-entered
	for range 5 {
		wg.Go(func() {
			if snap, err := r.EnsureSnapshot(t.Context(), v, "shared-cpu-4x"); err != nil || snap.SizeName != "shared-cpu-4x" {
				t.Errorf("%+v, %v", snap, err)
			}
		})
	}
	waitFor(t, func() bool { return r.waiting() == 6 })
	leave() // the others still want it
	waitFor(t, func() bool { return r.waiting() == 5 })
	close(release)
	wg.Wait()
	if ran := r.take(); len(ran) != 1 {
		t.Errorf("baked %d times", len(ran))
	}
	snaps, err := r.store.VersionSnapshots(t.Context(), v.TemplateID, v.Number)
	if err != nil || len(snaps) != 2 {
		t.Errorf("snapshots %+v, %v", snaps, err)
	}
}

func (r *rig) waiting() int {
	r.bakes.mu.Lock()
	defer r.bakes.mu.Unlock()
	n := 0
	for _, k := range r.bakes.byID {
		n += k.waiters
	}
	return n
}

func TestAbandonedBakeIsStopped(t *testing.T) {
	entered := make(chan struct{}, 1)
	var block atomic.Bool
	stopped := make(chan struct{})
	r := newRig(t, dataDir(t), func(_ *Options, s *stages) {
		s.hook = func(ctx context.Context, stage kiln.Stage) error {
			if !block.Load() {
				return nil
			}
			entered <- struct{}{}
			<-ctx.Done()
			close(stopped)
			return ctx.Err()
		}
	})
	v := r.ready(t, r.create(t, "a", nil))
	block.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := r.EnsureSnapshot(ctx, v, "shared-cpu-4x")
		done <- err
	}()
	<-entered
	cancel()
	if err := <-done; err == nil {
		t.Error("got a snapshot")
	}
	<-stopped
}
