package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/store"
)

var allStages = []kiln.Stage{kiln.StageImage, kiln.StageRootfs, kiln.StageSnapshot}

func cachedStages(v *kiln.Version) []kiln.Stage {
	var out []kiln.Stage
	for _, s := range v.Stages {
		if s.Cached {
			out = append(out, s.Stage)
		}
	}
	return out
}

func TestBuildRunsEveryStageOnce(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	res := r.create(t, "a", files{"kiln-template.toml": "description = \"d\"\ndefault_size = \"shared-cpu-2x\"\ncolour = 1"})
	if res.Version.Number != 1 || res.Unchanged || res.Template.Latest != res.Version {
		t.Errorf("result %+v", res)
	}
	if len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "colour") {
		t.Errorf("warnings %q", res.Warnings)
	}
	v := r.ready(t, res)
	if got := r.take(); !slices.Equal(got, allStages) {
		t.Errorf("ran %q", got)
	}
	var names []kiln.Stage
	for _, s := range v.Stages {
		names = append(names, s.Stage)
		if s.Stage != kiln.StagePromote && (s.Key == "" || s.Duration <= 0) {
			t.Errorf("stage %+v", s)
		}
	}
	if !slices.Equal(names, kiln.Stages()) || cachedStages(v) != nil {
		t.Errorf("stages %+v", v.Stages)
	}
	tmpl, pinned, err := r.store.ResolveTemplate(t.Context(), org, kiln.TemplateRef{NameOrID: "a"})
	if err != nil || pinned.Number != 1 || tmpl.Description != "d" || pinned.Config.User != "u" || pinned.Rootfs.Role != kiln.RoleRootfs {
		t.Errorf("%+v, %+v, %v", tmpl, pinned, err)
	}
	snaps, err := r.store.VersionSnapshots(t.Context(), tmpl.ID, 1)
	if err != nil || len(snaps) != 1 || snaps[0].SizeName != "shared-cpu-2x" {
		t.Errorf("snapshots %+v, %v", snaps, err)
	}
	if r.closed != 1 {
		t.Errorf("image closed %d times", r.closed)
	}
	r.tidy(t)
}

// TestHazard27OnlyWhatChangedIsRebuilt is the cache table: after each change exactly the
// stages that depend on it run.
func TestHazard27OnlyWhatChangedIsRebuilt(t *testing.T) {
	img, rfs, snp := kiln.StageImage, kiln.StageRootfs, kiln.StageSnapshot
	base := files{"a": "1", ".dockerignore": "ignored\n", "ignored": "1"}
	with := func(name, content string) files {
		f := files{}
		for k, v := range base {
			f[k] = v
		}
		f[name] = content
		return f
	}
	toml := func(text string) files { return with("kiln-template.toml", text) }
	for _, tc := range []struct {
		name    string
		first   files
		then    files
		options kiln.BuildOptions
		over    kiln.Metadata
		host    func(*host)
		ran     []kiln.Stage
		newer   bool // a version is made
	}{
		{name: "nothing", first: base, then: base},
		{name: "ignored file", first: base, then: with("ignored", "2")},
		{name: "file", first: base, then: with("a", "2"), ran: []kiln.Stage{img, rfs, snp}, newer: true},
		{name: "new file", first: base, then: with("b", "2"), ran: []kiln.Stage{img, rfs, snp}, newer: true},
		{name: "Dockerfile", first: base, then: with("Dockerfile", "FROM debian\nRUN x"), ran: []kiln.Stage{img, rfs, snp}, newer: true},
		{name: "ignore file", first: base, then: with(".dockerignore", "ignored\nb\n"), ran: []kiln.Stage{img, rfs, snp}, newer: true},
		{name: "build arg", first: base, then: base, options: kiln.BuildOptions{Args: map[string]string{"A": "1"}}, ran: []kiln.Stage{img, rfs, snp}, newer: true},
		{name: "target", first: base, then: base, options: kiln.BuildOptions{Target: "t"}, ran: []kiln.Stage{img, rfs, snp}, newer: true},
		{name: "no cache", first: base, then: base, options: kiln.BuildOptions{NoCache: true}, ran: []kiln.Stage{img, rfs}, newer: true},
		{name: "pull, nothing newer", first: base, then: base, options: kiln.BuildOptions{Pull: true}},
		{name: "newer base, not pulled", first: base, then: base, host: func(h *host) { h.upstream = "2" }},
		{name: "pull, newer base", first: base, then: base, options: kiln.BuildOptions{Pull: true}, host: func(h *host) { h.upstream = "2" }, ran: []kiln.Stage{img, rfs, snp}, newer: true},
		{name: "moved base tag", first: base, then: base, host: func(h *host) { h.base = "2" }, ran: []kiln.Stage{img, rfs, snp}, newer: true},
		{name: "converter version", first: base, then: base, host: func(h *host) { h.format = 2 }, ran: []kiln.Stage{img, rfs, snp}, newer: true},
		{name: "VMM version", first: base, then: base, host: func(h *host) { h.machine = "m2" }, ran: []kiln.Stage{snp}, newer: true},
		{name: "env by request", first: base, then: base, over: kiln.Metadata{Env: map[string]string{"E": "1"}}, ran: []kiln.Stage{snp}, newer: true},
		{name: "start command by request", first: base, then: base, over: kiln.Metadata{StartCmd: "x"}, ran: []kiln.Stage{snp}, newer: true},
		{name: "ready command by request", first: base, then: base, over: kiln.Metadata{ReadyCmd: "x"}, ran: []kiln.Stage{snp}, newer: true},
		{name: "disk by request", first: base, then: base, over: kiln.Metadata{DiskMB: 7}, ran: []kiln.Stage{snp}, newer: true},
		{name: "default size by request", first: base, then: base, over: kiln.Metadata{DefaultSize: "shared-cpu-2x"}, ran: []kiln.Stage{snp}, newer: true},
		{name: "description by request", first: base, then: base, over: kiln.Metadata{Description: "x"}, newer: true},
		{name: "metadata file", first: toml("icon = \"a\""), then: toml("icon = \"b\""), ran: []kiln.Stage{img, rfs, snp}, newer: true},
		{name: "same metadata file", first: toml("tags = [\"a\"]\n[env]\nA = \"1\""), then: toml("tags = [\"a\"]\n[env]\nA = \"1\"")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, dataDir(t), nil)
			r.ready(t, r.create(t, "a", tc.first))
			r.take()
			if tc.host != nil {
				r.set(tc.host)
			}
			res, err := r.Create(t.Context(), org, NewTemplate{Name: "a", Context: archive(t, tc.then), Options: tc.options, Metadata: tc.over, Replace: true})
			if err != nil {
				t.Fatal(err)
			}
			v := r.ready(t, res)
			if res.Unchanged == tc.newer || v.Number == 2 != tc.newer {
				t.Errorf("unchanged %v, version %d", res.Unchanged, v.Number)
			}
			if got := r.take(); !slices.Equal(got, tc.ran) {
				t.Errorf("ran %q, want %q", got, tc.ran)
			}
			for _, s := range v.Stages {
				ran := s.Stage == kiln.StagePromote || s.Stage == kiln.StageSource || slices.Contains(tc.ran, s.Stage)
				if tc.newer && s.Cached == ran && s.Stage != kiln.StageSource {
					t.Errorf("stage %s: cached %v", s.Stage, s.Cached)
				}
			}
			// And back: everything is still at hand.
			if tc.host == nil {
				back := r.create(t, "a", tc.first)
				r.ready(t, back)
				if got := r.take(); len(got) != 0 {
					t.Errorf("going back ran %q", got)
				}
			}
			r.tidy(t)
		})
	}
}

// TestSecretsAreOfOneOrganisation: what was built with them is given to no other, and again
// to the same.
func TestSecretsAreOfOneOrganisation(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	build := func(orgID string, secrets map[string][]byte) *Result {
		t.Helper()
		res, err := r.Create(t.Context(), orgID, NewTemplate{Name: "a", Context: archive(t, nil), Options: kiln.BuildOptions{Secrets: secrets}, Replace: true})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	secrets := map[string][]byte{"token": []byte("x")}
	ours := r.ready(t, build(org, secrets))
	for name, theirs := range map[string]*kiln.Version{
		"with": r.ready(t, build("org_b", secrets)), "without": r.ready(t, build("org_c", nil)),
	} {
		if theirs.Rootfs.Digest == ours.Rootfs.Digest {
			t.Errorf("another organisation, %s secrets of its own, is given the same files", name)
		}
	}
	if !build(org, secrets).Unchanged {
		t.Error("the same organisation builds again")
	}
}

func TestRebuildWithoutChangeIsQuickAndMakesNothing(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	r.ready(t, r.create(t, "a", nil))
	r.take()
	blobs := r.blobCount(t)
	begun := time.Now()
	res, err := r.Rebuild(t.Context(), org, Rebuild{Template: "a"})
	took := time.Since(begun)
	if err != nil || !res.Unchanged || res.Version.Number != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	if took > 100*time.Millisecond {
		t.Errorf("took %s", took)
	}
	if ran := r.take(); len(ran) != 0 || r.blobCount(t) != blobs {
		t.Errorf("ran %q, %d blobs after %d", ran, r.blobCount(t), blobs)
	}
	forced, err := r.Rebuild(t.Context(), org, Rebuild{Template: "a", NoCache: true})
	if err != nil || forced.Unchanged {
		t.Fatalf("forced: %+v, %v", forced, err)
	}
	if v := r.ready(t, forced); v.Number != 2 {
		t.Errorf("forced: version %d", v.Number)
	}
}

// TestAnotherConfigIsAChange goes back and forth between two versions whose files are the
// same: what they run is not.
func TestAnotherConfigIsAChange(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	build := func(cmd string) *Result {
		t.Helper()
		res, err := r.Create(t.Context(), org, NewTemplate{
			Name: "a", Context: archive(t, nil), Options: kiln.BuildOptions{Args: map[string]string{cmdArg: cmd}}, Replace: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	one, two := r.ready(t, build("one")), r.ready(t, build("two"))
	if one.Rootfs != two.Rootfs {
		t.Fatal("the versions have different files")
	}
	res := build("one")
	if v := r.ready(t, res); res.Unchanged || v.Number != 3 || !slices.Equal(v.Config.Cmd, []string{"one"}) {
		t.Errorf("unchanged %v, version %d runs %q", res.Unchanged, v.Number, v.Config.Cmd)
	}
	if res := build("one"); !res.Unchanged {
		t.Error("the same was built again")
	}
}

func TestDamagedArtifactsAreMadeAgain(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	v := r.ready(t, r.create(t, "a", nil))
	r.take()
	if err := r.opts.Blobs.Remove(v.Rootfs.Digest); err != nil {
		t.Fatal(err)
	}
	res, err := r.Rebuild(t.Context(), org, Rebuild{Template: "a"})
	if err != nil || res.Unchanged {
		t.Fatalf("%+v, %v", res, err)
	}
	r.ready(t, res)
	if got := r.take(); !slices.Equal(got, []kiln.Stage{kiln.StageImage, kiln.StageRootfs}) {
		t.Errorf("ran %q", got)
	}
	snap, err := r.store.VersionSnapshots(t.Context(), v.TemplateID, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.opts.Blobs.Remove(snap[0].Memory.Digest); err != nil {
		t.Fatal(err)
	}
	if res, err = r.Rebuild(t.Context(), org, Rebuild{Template: "a"}); err != nil {
		t.Fatal(err)
	}
	r.ready(t, res)
	if got := r.take(); !slices.Equal(got, []kiln.Stage{kiln.StageSnapshot}) {
		t.Errorf("ran %q", got)
	}
}

func TestFailures(t *testing.T) {
	for _, tc := range []struct {
		name   string
		err    error
		want   kiln.BuildError
		builds int // attempts
	}{
		{name: "user's mistake", err: &kiln.BuildError{Stage: kiln.StageImage, Message: "RUN failed", Line: 3, ExitCode: 7}, want: kiln.BuildError{Stage: kiln.StageImage, Message: "RUN failed", Line: 3, ExitCode: 7}, builds: 1},
		{name: "disk full", err: fmt.Errorf("x: %w", kiln.Errorf(kiln.CodeExhausted, "disk full: %w", syscall.ENOSPC).WithHint("free space")), want: kiln.BuildError{Stage: kiln.StageImage, Message: "disk full: no space left on device", Hint: "free space"}, builds: 1},
		{name: "host lacks something", err: kiln.Errorf(kiln.CodeUnavailable, "no QEMU"), want: kiln.BuildError{Stage: kiln.StageImage, Message: "no QEMU"}, builds: 1},
		{name: "database server is away", err: unreachable(t), want: kiln.BuildError{Stage: kiln.StageImage, Message: "internal error"}, builds: 2},
		{name: "our fault", err: errors.New("nil pointer at secret place"), want: kiln.BuildError{Stage: kiln.StageImage, Message: "internal error"}, builds: 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fail := true
			r := newRig(t, dataDir(t), func(o *Options, s *stages) {
				o.Attempts = 2
				s.hook = func(_ context.Context, stage kiln.Stage) error {
					if fail && stage == kiln.StageImage {
						return tc.err
					}
					return nil
				}
			})
			res := r.create(t, "a", nil)
			v := r.wait(t, res)
			if v.Status != kiln.VersionFailed || v.BuildError == nil || v.EndedAt.IsZero() {
				t.Fatalf("version %+v", v)
			}
			got := *v.BuildError
			if tc.builds > 1 {
				if !strings.Contains(got.Hint, v.BuildID) || strings.Contains(got.Error(), tc.err.Error()) {
					t.Errorf("shown: %s", got.Error())
				}
				got.Hint = ""
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
			if ran := r.take(); len(ran) != tc.builds {
				t.Errorf("ran %q", ran)
			}
			r.tidy(t)
			fail = false
			again, err := r.Rebuild(t.Context(), org, Rebuild{Template: "a"})
			if err != nil {
				t.Fatal(err)
			}
			if v := r.ready(t, again); v.Number != 2 {
				t.Errorf("version %d", v.Number)
			}
		})
	}
}

func TestOurFaultIsTriedAgain(t *testing.T) {
	failures := []error{errors.New("hiccup"), unreachable(t)}
	r := newRig(t, dataDir(t), func(_ *Options, s *stages) {
		s.hook = func(_ context.Context, stage kiln.Stage) error {
			if stage == kiln.StageSnapshot && len(failures) > 0 {
				err := failures[0]
				failures = failures[1:]
				return err
			}
			return nil
		}
	})
	v := r.ready(t, r.create(t, "a", nil))
	want := []kiln.Stage{kiln.StageImage, kiln.StageRootfs, kiln.StageSnapshot, kiln.StageSnapshot, kiln.StageSnapshot}
	if got := r.take(); !slices.Equal(got, want) {
		t.Errorf("ran %q", got)
	}
	if len(v.Stages) != 5 {
		t.Errorf("stages %+v", v.Stages)
	}
}

// unreachable is what the store says when there is no PostgreSQL server.
func unreachable(t *testing.T) error {
	t.Helper()
	_, err := store.OpenPostgres(t.Context(), "postgres:///x?host="+t.TempDir())
	if kiln.CodeOf(err) != kiln.CodeUnavailable {
		t.Fatalf("a server that is not there: %v", err)
	}
	return err
}

func TestPanicFailsOneBuild(t *testing.T) {
	for _, stage := range allStages {
		r := newRig(t, dataDir(t), func(o *Options, s *stages) {
			o.Attempts = 1
			s.hook = func(_ context.Context, now kiln.Stage) error {
				if now == stage {
					panic("bug")
				}
				return nil
			}
		})
		v := r.wait(t, r.create(t, "a", nil))
		if v.Status != kiln.VersionFailed || v.BuildError.Stage != stage || v.BuildError.Message != "internal error" {
			t.Errorf("%s: %s, %+v", stage, v.Status, v.BuildError)
		}
		r.tidy(t)
	}
}

func TestFailedRebuildKeepsTheOldVersion(t *testing.T) {
	var broken error
	r := newRig(t, dataDir(t), func(_ *Options, s *stages) {
		s.hook = func(context.Context, kiln.Stage) error { return broken }
	})
	r.ready(t, r.create(t, "a", nil))
	broken = &kiln.BuildError{Stage: kiln.StageImage, Message: "no"}
	v := r.wait(t, r.create(t, "a", files{"new": "1"}))
	if v.Status != kiln.VersionFailed || v.Number != 2 {
		t.Errorf("version %+v", v)
	}
	tmpl, current, err := r.store.ResolveTemplate(t.Context(), org, kiln.TemplateRef{NameOrID: "a"})
	if err != nil || current.Number != 1 || tmpl.Status() != kiln.VersionReady || tmpl.Latest.BuildError == nil {
		t.Errorf("%+v, %+v, %v", tmpl, current, err)
	}
	// Who goes back to the old source has it rebuilt, not the one that failed.
	if res := r.create(t, "a", nil); !res.Unchanged {
		t.Errorf("the version that serves was built again: %+v", res.Version)
	}
	if res, err := r.Rebuild(t.Context(), org, Rebuild{Template: "a"}); err != nil || !res.Unchanged || res.Version.Number != 1 {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestTheLastRequestWins asks for the version that serves while another one is on its way to
// take its place.
func TestTheLastRequestWins(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	var hold atomic.Bool
	r := newRig(t, dataDir(t), func(_ *Options, s *stages) {
		s.hook = func(ctx context.Context, stage kiln.Stage) error {
			if stage != kiln.StageSnapshot || !hold.Swap(false) {
				return nil
			}
			begun <- struct{}{}
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	})
	first := r.ready(t, r.create(t, "a", nil))
	hold.Store(true)
	second := r.create(t, "a", files{"x": "1"})
	<-begun
	third := r.create(t, "a", nil)
	close(release)
	if v := r.ready(t, second); v.Number != 2 {
		t.Errorf("version %d", v.Number)
	}
	r.wait(t, third)
	_, current, err := r.store.ResolveTemplate(t.Context(), org, kiln.TemplateRef{NameOrID: "a"})
	if err != nil || current.Number != 3 || current.Rootfs != first.Rootfs {
		t.Errorf("%+v, %v", current, err)
	}
	r.tidy(t)
}

func TestHazard22DeadlinesStopEveryStage(t *testing.T) {
	for _, stage := range allStages {
		t.Run(string(stage), func(t *testing.T) {
			r := newRig(t, dataDir(t), func(o *Options, s *stages) {
				short := 30 * time.Millisecond
				o.Timeouts = map[kiln.Stage]Timeouts{kiln.StageImage: {Image: short}, kiln.StageRootfs: {Rootfs: short}, kiln.StageSnapshot: {Snapshot: short}}[stage]
				s.hook = blockIn(stage, nil)
			})
			v := r.wait(t, r.create(t, "a", nil))
			if v.Status != kiln.VersionFailed || v.BuildError.Stage != stage || !strings.Contains(v.BuildError.Message, "longer than 30ms") {
				t.Errorf("%s: %+v", v.Status, v.BuildError)
			}
			r.tidy(t)
		})
	}
}

// blockIn returns a hook that reports on entered, if given, and waits in one stage until
// its context ends.
func blockIn(stage kiln.Stage, entered chan<- struct{}) func(context.Context, kiln.Stage) error {
	return func(ctx context.Context, s kiln.Stage) error {
		if s != stage {
			return nil
		}
		if entered != nil {
			entered <- struct{}{}
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

func TestHazard22CancelStopsEveryStage(t *testing.T) {
	for _, stage := range allStages {
		t.Run(string(stage), func(t *testing.T) {
			entered := make(chan struct{}, 1)
			r := newRig(t, dataDir(t), func(_ *Options, s *stages) { s.hook = blockIn(stage, entered) })
			res := r.create(t, "a", nil)
			<-entered
			if err := r.Cancel(t.Context(), "org_b", res.Version.BuildID); kiln.CodeOf(err) != kiln.CodeNotFound {
				t.Errorf("another organisation: %v", err)
			}
			if err := r.Cancel(t.Context(), org, res.Version.BuildID); err != nil {
				t.Fatal(err)
			}
			v := r.wait(t, res)
			if v.Status != kiln.VersionFailed || !strings.Contains(v.BuildError.Message, "cancelled") {
				t.Errorf("%s: %+v", v.Status, v.BuildError)
			}
			err := r.Cancel(t.Context(), org, res.Version.BuildID)
			if kiln.CodeOf(err) != kiln.CodeConflict || !strings.Contains(err.Error(), "a version 1 has ended: the build was cancelled") {
				t.Errorf("again: %v", err)
			}
			r.tidy(t)
		})
	}
}

func TestCancelQueuedBuild(t *testing.T) {
	entered := make(chan struct{}, 1)
	r := newRig(t, dataDir(t), func(o *Options, s *stages) { o.Parallel, s.hook = 1, blockIn(kiln.StageImage, entered) })
	first := r.create(t, "a", nil)
	<-entered
	second := r.create(t, "b", nil)
	if err := r.Cancel(t.Context(), org, second.Version.BuildID); err != nil {
		t.Fatal(err)
	}
	if v := r.wait(t, second); v.Status != kiln.VersionFailed {
		t.Errorf("queued: %s", v.Status)
	}
	if err := r.Cancel(t.Context(), org, first.Version.BuildID); err != nil {
		t.Fatal(err)
	}
	r.wait(t, first)
	r.tidy(t)
	if got := r.take(); !slices.Equal(got, []kiln.Stage{kiln.StageImage}) {
		t.Errorf("ran %q", got)
	}
}

func TestParallelIsBounded(t *testing.T) {
	var mu sync.Mutex
	now, most := 0, 0
	both := make(chan struct{})
	r := newRig(t, dataDir(t), func(o *Options, s *stages) {
		s.hook = func(_ context.Context, stage kiln.Stage) error {
			if stage != kiln.StageImage {
				return nil
			}
			mu.Lock()
			now++
			if most = max(most, now); now == 2 && most == 2 {
				select {
				case <-both:
				default:
					close(both)
				}
			}
			mu.Unlock()
			<-both // two run at once, or this hangs
			mu.Lock()
			now--
			mu.Unlock()
			return nil
		}
	})
	var all []*Result
	for i := range 6 {
		all = append(all, r.create(t, fmt.Sprintf("t%d", i), files{"a": fmt.Sprint(i)}))
	}
	for _, res := range all {
		r.ready(t, res)
	}
	if most != 2 {
		t.Errorf("%d at once", most)
	}
}

func TestBuildStartsSoonAfterRequest(t *testing.T) {
	entered := make(chan struct{}, 8)
	r := newRig(t, dataDir(t), func(_ *Options, s *stages) {
		s.hook = func(_ context.Context, stage kiln.Stage) error {
			if stage == kiln.StageImage {
				entered <- struct{}{}
			}
			return nil
		}
	})
	var times []time.Duration
	for i := range 7 {
		res := r.create(t, fmt.Sprintf("t%d", i), files{"a": fmt.Sprint(i)})
		begun := time.Now()
		<-entered
		times = append(times, time.Since(begun))
		r.ready(t, res)
	}
	slices.Sort(times)
	if times[3] > 150*time.Millisecond {
		t.Errorf("a build starts %s after its request (median); all %v", times[3], times)
	}
}

func TestRequestErrorsLeaveNothing(t *testing.T) {
	r := newRig(t, dataDir(t), func(o *Options, _ *stages) { o.MaxContextBytes = 64 << 10 })
	r.ready(t, r.create(t, "taken", nil))
	before := r.blobCount(t)
	for _, tc := range []struct {
		name string
		req  NewTemplate
		code kiln.ErrorCode
	}{
		{"name", NewTemplate{Name: "Not Allowed", Context: archive(t, nil)}, kiln.CodeInvalid},
		{"no name", NewTemplate{Context: archive(t, files{"x": "1"})}, kiln.CodeInvalid},
		{"reserved name of a file", NewTemplate{Context: archive(t, files{"kiln-template.toml": "name = \"builds\""})}, kiln.CodeBuildFailed},
		{"taken", NewTemplate{Name: "taken", Context: archive(t, files{"x": "2"})}, kiln.CodeConflict},
		{"no Dockerfile", NewTemplate{Name: "b", Context: archive(t, nil), Options: kiln.BuildOptions{Dockerfile: "prod"}}, kiln.CodeBuildFailed},
		{"metadata file", NewTemplate{Name: "b", Context: archive(t, files{"kiln-template.toml": "disk_mb = -1"})}, kiln.CodeBuildFailed},
		{"size by request", NewTemplate{Name: "b", Context: archive(t, files{"x": "3"}), Metadata: kiln.Metadata{DefaultSize: "huge"}}, kiln.CodeInvalid},
		{"sizes disagree", NewTemplate{Name: "b", Context: archive(t, files{"kiln-template.toml": "min_size = \"shared-cpu-4x\""}), Metadata: kiln.Metadata{DefaultSize: "shared-cpu-1x"}}, kiln.CodeInvalid},
		{"disk by request", NewTemplate{Name: "b", Context: archive(t, files{"x": "4"}), Metadata: kiln.Metadata{DiskMB: -3}}, kiln.CodeInvalid},
		{"env by request", NewTemplate{Name: "b", Context: archive(t, files{"x": "5"}), Metadata: kiln.Metadata{Env: map[string]string{"A B": "1"}}}, kiln.CodeInvalid},
		{"no archive", NewTemplate{Name: "b", Context: strings.NewReader(strings.Repeat("no tar ", 1000))}, kiln.CodeInvalid},
		{"too large", NewTemplate{Name: "b", Context: bytes.NewReader(make([]byte, 65<<10))}, kiln.CodeInvalid},
	} {
		_, err := r.Create(t.Context(), org, tc.req)
		if kiln.CodeOf(err) != tc.code {
			t.Errorf("%s: got %v, want code %s", tc.name, err, tc.code)
		}
		if got := r.blobCount(t); got != before {
			t.Errorf("%s: %d blobs left", tc.name, got-before)
		}
		r.tidy(t)
	}
	if list, err := r.List(t.Context(), org); err != nil || len(list) != 1 {
		t.Errorf("templates %v, %v", list, err)
	}
}

func TestNameFromMetadataFile(t *testing.T) {
	r := newRig(t, dataDir(t), nil)
	res, err := r.Create(t.Context(), org, NewTemplate{Context: archive(t, files{"zwrm-template.toml": "name = \"from-file\""})})
	if err != nil || res.Template.Name != "from-file" {
		t.Fatalf("%+v, %v", res, err)
	}
	r.ready(t, res)
}

func TestSecretsReachTheBuildAndNothingElse(t *testing.T) {
	dir := dataDir(t)
	r := newRig(t, dir, nil)
	var seen []string
	images := &secretImages{imageStage: imageStage{r.stages}, seen: &seen}
	r.opts.Images = images
	req := NewTemplate{Name: "a", Context: archive(t, nil), Options: kiln.BuildOptions{Secrets: map[string][]byte{"npm": []byte("s3cr3t-value")}}}
	res, err := r.Create(t.Context(), org, req)
	if err != nil {
		t.Fatal(err)
	}
	r.ready(t, res)
	if !slices.Equal(seen, []string{"s3cr3t-value"}) {
		t.Errorf("build saw %q", seen)
	}
	r.tidy(t)
	assertAbsent(t, dir, "s3cr3t-value")
}

type secretImages struct {
	imageStage
	seen *[]string
}

func (s *secretImages) Build(ctx context.Context, src kiln.Source, bases []kiln.BaseImage, p kiln.Progress) (*kiln.Image, error) {
	for _, v := range src.Options.Secrets {
		*s.seen = append(*s.seen, string(v))
	}
	return s.imageStage.Build(ctx, src, bases, p)
}

// TestMoreSizesAreBaked: after the promotion, where the template allows them, and only as long
// as the version is the current one.
func TestMoreSizesAreBaked(t *testing.T) {
	const more = "performance-2x"
	baking, release := make(chan struct{}, 10), make(chan struct{})
	var hold atomic.Bool
	r := newRig(t, dataDir(t), func(o *Options, s *stages) {
		o.SnapshotSizes = []string{"shared-cpu-1x", "shared-cpu-2x", more}
		s.hook = func(ctx context.Context, stage kiln.Stage) error {
			if stage != kiln.StageSnapshot || !hold.Load() {
				return nil
			}
			baking <- struct{}{}
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	})
	sizes := func(id string, number int) (names []string) {
		t.Helper()
		list, err := r.store.VersionSnapshots(t.Context(), id, number)
		if err != nil {
			t.Fatal(err)
		}
		for _, snap := range list {
			names = append(names, snap.SizeName)
		}
		return names
	}
	res := r.create(t, "a", files{"kiln-template.toml": "min_size = \"shared-cpu-2x\"\ndefault_size = \"shared-cpu-4x\""})
	r.ready(t, res)
	r.background.Wait()
	if got := sizes(res.Template.ID, 1); !slices.Equal(got, []string{more, "shared-cpu-2x", "shared-cpu-4x"}) {
		t.Errorf("baked %q", got)
	}

	second := r.create(t, "b", files{"f": "1"})
	r.ready(t, second)
	r.background.Wait()
	hold.Store(true)
	third := r.create(t, "b", files{"f": "2"})
	<-baking // the default size, before the promotion
	release <- struct{}{}
	r.ready(t, third)
	<-baking // the next size
	if err := r.Delete(t.Context(), org, "b"); err != nil {
		t.Fatal(err)
	}
	release <- struct{}{}
	r.background.Wait()
	if got := sizes(third.Template.ID, 2); slices.Contains(got, more) {
		t.Errorf("baked for a deleted template: %q", got)
	}
}
