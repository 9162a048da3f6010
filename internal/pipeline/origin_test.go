package pipeline

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/source/git/gittest"
)

func TestGitSource(t *testing.T) {
	const token = "t0ken-0f-the-test"
	repo := gittest.New(t)
	first := repo.Commit("main", map[string]string{
		"Dockerfile": "FROM a\n", "app/Dockerfile": "FROM debian\n",
		"app/kiln-template.toml": "description = \"first\"\nauthor = \"file\"\n[build]\nargs = { A = \"1\" }\n",
	})
	url := repo.ServeHTTP(token)
	cred := kiln.GitCredentials{Token: token}
	dir := t.TempDir()
	r := newRig(t, dir, nil)
	request := NewTemplate{
		Name: "g", Git: &kiln.GitSource{URL: url, Ref: "main", Dir: "app"}, GitCredentials: cred, Metadata: kiln.Metadata{Author: "flag"}, Replace: true,
	}
	res, err := r.Create(t.Context(), org, request)
	if err != nil {
		t.Fatal(err)
	}
	v := r.ready(t, res)
	if got := v.Options.Origin.Git; got.Commit != first || got.URL != url || v.SourceDigest != got.Digest() {
		t.Errorf("pinned %+v, digest %s", got, v.SourceDigest)
	}
	if v.Metadata.Description != "first" || v.Metadata.Author != "flag" || v.Options.Args["A"] != "1" {
		t.Errorf("metadata %+v, args %v", v.Metadata, v.Options.Args)
	}
	r.take()

	t.Run("nothing new upstream is no build", func(t *testing.T) {
		repo.Commit("other", map[string]string{"f": "1"})
		for name, again := range map[string]func() (*Result, error){
			"rebuild": func() (*Result, error) {
				return r.Rebuild(t.Context(), org, Rebuild{Template: "g", GitCredentials: cred})
			},
			"the same request": func() (*Result, error) { return r.Create(t.Context(), org, request) },
		} {
			res, err := again()
			if err != nil || !res.Unchanged || res.Version.Number != 1 {
				t.Errorf("%s: %+v, %v", name, res, err)
			}
		}
		if ran := r.take(); len(ran) != 0 {
			t.Errorf("ran %q", ran)
		}
	})
	t.Run("what is not fetched again stays until the request is stored", func(t *testing.T) {
		ctx, release := r.opts.Blobs.Hold(t.Context())
		defer release()
		blob := r.fetched(ctx, org, "g", v.SourceDigest)
		sweep, err := r.opts.Blobs.BeginSweep()
		if err != nil {
			t.Fatal(err)
		}
		defer sweep.End()
		if removed, err := sweep.Remove(blob); blob != v.SourceBlob || removed || err != nil {
			t.Errorf("blob %q removed: %v, %v", blob, removed, err)
		}
	})
	t.Run("no-cache forces a build of the same commit", func(t *testing.T) {
		blobs := r.blobCount(t)
		res, err := r.Rebuild(t.Context(), org, Rebuild{Template: "g", GitCredentials: cred, NoCache: true})
		if err != nil || res.Unchanged {
			t.Fatalf("%+v, %v", res, err)
		}
		if v := r.ready(t, res); v.Number != 2 || v.Options.Origin.Git.Commit != first {
			t.Errorf("%+v", v)
		}
		if ran := r.take(); len(ran) == 0 || r.blobCount(t) != blobs {
			t.Errorf("ran %q; %d blobs, then %d", ran, blobs, r.blobCount(t))
		}
	})
	t.Run("a new commit is a new version, with the flags of the request", func(t *testing.T) {
		second := repo.Commit("main", map[string]string{
			"app/Dockerfile": "FROM debian\nRUN x\n", "app/kiln-template.toml": "description = \"second\"\nauthor = \"file\"\n",
		})
		res, err := r.Rebuild(t.Context(), org, Rebuild{Template: "g", GitCredentials: cred})
		if err != nil || res.Unchanged {
			t.Fatalf("%+v, %v", res, err)
		}
		v := r.ready(t, res)
		if v.Options.Origin.Git.Commit != second || v.Metadata.Description != "second" || v.Metadata.Author != "flag" || len(v.Options.Args) != 0 {
			t.Errorf("%+v, %+v", v.Options, v.Metadata)
		}
	})
	t.Run("without a change the next rebuild follows what was asked last", func(t *testing.T) {
		repo.Git("branch", "release", "main")
		again := request
		again.Git = &kiln.GitSource{URL: url, Ref: "release", Dir: "app"}
		again.Metadata.Description = "second" // as the file says
		res, err := r.Create(t.Context(), org, again)
		if err != nil || !res.Unchanged || res.Version.Options.Origin.Git.Ref != "release" {
			t.Fatalf("%+v, %v", res, err)
		}
		third := repo.Commit("release", map[string]string{
			"app/Dockerfile": "FROM debian\nRUN y\n", "app/kiln-template.toml": "description = \"third\"\n",
		})
		if res, err = r.Rebuild(t.Context(), org, Rebuild{Template: "g", GitCredentials: cred}); err != nil || res.Unchanged {
			t.Fatalf("%+v, %v", res, err)
		}
		v := r.ready(t, res)
		if git := v.Options.Origin.Git; git.Commit != third || git.Ref != "release" || v.Metadata.Description != "second" {
			t.Errorf("%+v, %+v", v.Options, v.Metadata)
		}
	})
	t.Run("credentials are needed every time and kept nowhere", func(t *testing.T) {
		if _, err := r.Rebuild(t.Context(), org, Rebuild{Template: "g"}); err == nil || !strings.Contains(err.Error(), "--git-token-file") {
			t.Errorf("without token: %v", err)
		}
		assertAbsent(t, dir, token)
	})
	t.Run("another URL is another source", func(t *testing.T) {
		again := request
		again.Git = &kiln.GitSource{URL: strings.Replace(url, "127.0.0.1", "localhost", 1), Ref: "main", Dir: "app"}
		res, err := r.Create(t.Context(), org, again)
		if err != nil || res.Unchanged {
			t.Errorf("%+v, %v", res, err)
		}
		r.ready(t, res)
	})
	r.tidy(t)
}

func TestCapturedRoot(t *testing.T) {
	opened := 0
	r := newRig(t, t.TempDir(), func(o *Options, s *stages) {
		o.OpenRoot = func(f *os.File) (kiln.EntrySource, error) {
			opened++
			content, err := io.ReadAll(f)
			return &root{s, string(content)}, err
		}
	})
	capture := func(content string) *Result {
		t.Helper()
		res, err := r.Create(t.Context(), org, NewTemplate{
			Name: "c", Context: strings.NewReader(content), Replace: true, Metadata: kiln.Metadata{ReadyCmd: "true", Smoke: "true"},
			Capture: &kiln.CaptureSource{Sandbox: "iabc", Template: "a", Version: 3, Config: kiln.ImageConfig{User: "me"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	v := r.ready(t, capture("one"))
	if v.Config.User != "me" || v.Metadata.ReadyCmd != "true" || v.Metadata.Smoke != "true" || v.Options.Origin.Capture.Sandbox != "iabc" {
		t.Errorf("%+v", v)
	}
	if res := capture("one"); !res.Unchanged {
		t.Errorf("the same file system was built again: %+v", res.Version)
	}
	if v := r.ready(t, capture("two")); v.Number != 2 || opened != 2 {
		t.Errorf("version %d, opened %d times", v.Number, opened)
	}
	res, err := r.Rebuild(t.Context(), org, Rebuild{Template: "c", NoCache: true})
	if err != nil {
		t.Fatal(err)
	}
	if v := r.ready(t, res); v.Number != 3 || v.Config.User != "me" {
		t.Errorf("rebuilt %+v", v)
	}
	r.tidy(t)
	r.stages.mu.Lock()
	defer r.stages.mu.Unlock()
	if r.closed != 3 {
		t.Errorf("%d of 3 roots closed", r.closed)
	}
}

func TestQuotaNeedsNoBuild(t *testing.T) {
	r := newRig(t, t.TempDir(), nil)
	r.ready(t, r.create(t, "a", files{"kiln-template.toml": "disk_mb = 512\n[limits]\nops_per_sec = 10\n"}))
	resolve := func() (kiln.VMSpec, kiln.DiskLimits) {
		t.Helper()
		_, v, err := r.store.ResolveTemplate(t.Context(), org, kiln.TemplateRef{NameOrID: "a"})
		if err != nil {
			t.Fatal(err)
		}
		spec := v.VMSpec(kiln.Sizes()[0])
		return spec, spec.Disk
	}
	if spec, limits := resolve(); spec.ScratchMB != 512 || limits != (kiln.DiskLimits{OpsPerSec: 10}) {
		t.Errorf("as built: %d MiB, %+v", spec.ScratchMB, limits)
	}
	tmpl, err := r.UpdateQuota(t.Context(), org, "a", func(q *kiln.Quota) { q.DiskMB, q.Limits.BandwidthMBps = 2048, 100 })
	if err != nil || tmpl.Quota.DiskMB != 2048 {
		t.Fatalf("%+v, %v", tmpl, err)
	}
	if spec, limits := resolve(); spec.ScratchMB != 2048 || limits != (kiln.DiskLimits{BandwidthMBps: 100, OpsPerSec: 10}) {
		t.Errorf("with a quota: %d MiB, %+v", spec.ScratchMB, limits)
	}
	for name, change := range map[string]func(*kiln.Quota){
		"negative":         func(q *kiln.Quota) { q.Limits.OpsPerSec = -1 },
		"burst of nothing": func(q *kiln.Quota) { q.Limits.BurstOps = 5 },
		"huge disk":        func(q *kiln.Quota) { q.DiskMB = 1 << 30 },
	} {
		if _, err := r.UpdateQuota(t.Context(), org, "a", change); kiln.CodeOf(err) != kiln.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.UpdateQuota(t.Context(), "org_b", "a", func(*kiln.Quota) {}); kiln.CodeOf(err) != kiln.CodeNotFound {
		t.Errorf("another organisation: %v", err)
	}
	res, err := r.Rebuild(t.Context(), org, Rebuild{Template: "a", NoCache: true})
	if err != nil {
		t.Fatal(err)
	}
	r.ready(t, res)
	if spec, _ := resolve(); spec.ScratchMB != 2048 {
		t.Errorf("a rebuild took the quota away: %d MiB", spec.ScratchMB)
	}
}
