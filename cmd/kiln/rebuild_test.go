package main

import (
	"archive/tar"
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

// rebuilt is a template that remembers how it was rebuilt.
type rebuilt struct {
	api.Templates
	dockerfile string // of what was asked for last
	request    api.NewTemplate
	files      []string // of the context that arrived
	old        bool     // the stored source was asked for
}

func (r *rebuilt) result() (*kiln.Template, *kiln.Version) {
	v := &kiln.Version{Number: 1, BuildID: "b1", Status: kiln.VersionReady, Options: kiln.BuildOptions{Dockerfile: r.dockerfile}}
	return &kiln.Template{ID: "tmpl_a", Name: "a", Current: 1, Recipe: 1, Latest: v}, v
}

func (r *rebuilt) Get(context.Context, string, string) (*kiln.Template, []*kiln.Version, error) {
	t, v := r.result()
	failed := &kiln.Version{Number: 2, Status: kiln.VersionFailed, Options: kiln.BuildOptions{Dockerfile: "failed.Dockerfile"}}
	return t, []*kiln.Version{failed, v}, nil
}

func (r *rebuilt) Create(_ context.Context, _ string, req api.NewTemplate) (api.Queued, error) {
	r.request = req
	archive := tar.NewReader(req.Context)
	for h, err := archive.Next(); err == nil; h, err = archive.Next() {
		r.files = append(r.files, h.Name)
	}
	t, v := r.result()
	return api.Queued{Template: t, Version: v, Unchanged: true}, nil
}

func (r *rebuilt) Rebuild(context.Context, string, api.NewVersion) (api.Queued, error) {
	r.old = true
	t, v := r.result()
	return api.Queued{Template: t, Version: v, Unchanged: true, Warnings: []string{"as it was"}}, nil
}

// Without a name the one in the metadata file counts, and flags say what that file may say.
func TestBuildOfAFolderAlone(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": "FROM a\n", "kiln-template.toml": "name = \"a\"\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	templates := &rebuilt{}
	server := httptest.NewServer(api.New(api.Options{Version: "1", Auth: anybody{}, SpoolDir: t.TempDir(), Templates: templates}).Handler())
	defer server.Close()
	r := runKiln(map[string]string{"KILN_SERVER": server.URL, "KILN_TOKEN": "x"}, "templates", "build", dir,
		"--author", "me", "--icon", "i", "--tag", "b", "--tag", "c", "--min-size", "shared-cpu-2x", "--init", "systemd", "--post-restore", "p", "--smoke", "s")
	want := kiln.Metadata{Author: "me", Icon: "i", Tags: []string{"b", "c"}, MinSize: "shared-cpu-2x", Init: "systemd", PostRestore: "p", Smoke: "s"}
	if req := templates.request; r.code != 0 || req.Name != "" || !req.Replace || !reflect.DeepEqual(req.Metadata, want) {
		t.Errorf("exit code %d, request %+v\n%s", r.code, req, r.stderr)
	}
}

func TestRebuildTakesANewContext(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": "FROM a\nCOPY x /\n", "prod.Dockerfile": "FROM b\n", "x": "1"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := []string{"Dockerfile", "prod.Dockerfile", "x"}
	for name, c := range map[string]struct {
		last       string
		args       []string
		dockerfile string
		files      []string
		refused    string
	}{
		"nothing new":                  {last: "Dockerfile"},
		"folder":                       {last: "Dockerfile", args: []string{dir, "--pull"}, dockerfile: "Dockerfile", files: all},
		"Dockerfile named as before":   {last: "prod.Dockerfile", args: []string{dir}, dockerfile: "prod.Dockerfile", files: all},
		"Dockerfile that reads":        {last: "x", args: []string{"-f", filepath.Join(dir, "Dockerfile")}, dockerfile: "Dockerfile", files: all},
		"Dockerfile alone":             {last: "x", args: []string{"-f", filepath.Join(dir, "prod.Dockerfile")}, dockerfile: "prod.Dockerfile", files: []string{"prod.Dockerfile"}},
		"Dockerfile outside":           {last: ".kiln-dockerfile/Dockerfile", args: []string{dir}, refused: "--dockerfile FILE"},
		"folder and git credentials":   {last: "Dockerfile", args: []string{dir, "--git-ssh-key", "k"}, refused: "belong to a template from a git repository"},
		"Dockerfile that is not there": {last: "gone", args: []string{dir}, refused: "gone"},
	} {
		t.Run(name, func(t *testing.T) {
			templates := &rebuilt{dockerfile: c.last}
			server := httptest.NewServer(api.New(api.Options{Version: "1", Auth: anybody{}, SpoolDir: t.TempDir(), Templates: templates}).Handler())
			defer server.Close()
			r := runKiln(map[string]string{"KILN_SERVER": server.URL, "KILN_TOKEN": "x"}, append([]string{"templates", "rebuild", "a"}, c.args...)...)
			if c.refused != "" {
				if r.code != 2 || !strings.Contains(r.stderr, c.refused) {
					t.Errorf("exit code %d: %s", r.code, r.stderr)
				}
				return
			}
			if r.code != 0 || !strings.Contains(r.stdout, "no change") {
				t.Errorf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
			}
			if c.args == nil {
				if !templates.old || !strings.Contains(r.stderr, "as it was") {
					t.Errorf("the stored source was not asked for, or without a word: %s", r.stderr)
				}
				return
			}
			req := templates.request
			if !req.Keep || req.Name != "a" || req.Options.Dockerfile != c.dockerfile || !slices.Equal(templates.files, c.files) {
				t.Errorf("keep %v, name %q, Dockerfile %q, files %q", req.Keep, req.Name, req.Options.Dockerfile, templates.files)
			}
		})
	}
}
