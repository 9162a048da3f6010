package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/cmd/kiln/server"
	"github.com/kilnvm/kiln/internal/api"
)

// kilnResult is what a run of the program printed and returned.
type kilnResult struct {
	code           int
	stdout, stderr string
}

// runKiln runs the program in this process, with an environment of its own.
func runKiln(env map[string]string, args ...string) kilnResult {
	var stdout, stderr bytes.Buffer
	code := run(args, strings.NewReader(""), &stdout, &stderr, func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	})
	return kilnResult{code, stdout.String(), stderr.String()}
}

func TestCommandLine(t *testing.T) {
	empty := map[string]string{"KILN_DATA_DIR": t.TempDir()}
	for _, c := range []struct {
		args []string
		code int
		want string // in both streams together
	}{
		{[]string{"version"}, 0, "kiln dev"},
		{[]string{"version", "-o", "json"}, 0, `"version": "dev"`},
		{[]string{"version", "-o", "xml"}, 2, `unknown output format "xml"`},
		{[]string{"--help"}, 0, "Exit codes:"},
		{nil, 0, "Available Commands:"},
		{[]string{"bake"}, 2, `unknown command "kiln bake"`},
		{[]string{"sandbox", "bake"}, 2, `unknown command "kiln sandbox bake"`},
		{[]string{"sandbox"}, 0, "Available Commands:"},
		{[]string{"templates", "build"}, 2, "usage: kiln templates build [NAME] DIR"},
		{[]string{"templates", "list", "--nonsense"}, 2, "unknown flag: --nonsense"},
		{[]string{"templates", "list"}, 6, "no server is running"},
		{[]string{"templates", "create", "x"}, 2, "no Dockerfile given"},
		{[]string{"templates", "create", "x", "--egress-allow-port", "http"}, 2, `--egress-allow-port: "http" is not a whole number`},
		{[]string{"sandbox", "run", "-t", "x", "--", "true"}, 125, "no server is running"},
		{[]string{"sandbox", "run", "--", "true"}, 2, "no template given"},
		{[]string{"sandbox", "create", "-t", "x", "--ttl", "soon"}, 2, "is not a duration"},
		{[]string{"sandbox", "create", "-t", "x", "--ttl", "-5s"}, 2, "negative"},
		{[]string{"sandbox", "create", "-t", "x", "-e", "A"}, 2, "NAME=VALUE"},
		{[]string{"bench", "boot"}, 2, "no template given"},
		{[]string{"bench", "boot", "-t", "x"}, 6, "no server is running"},
		{[]string{"bench", "boot", "-t", "x", "--own"}, 2, "exclude each other"},
		{[]string{"bench", "boot", "-t", "x", "--rounds", "0"}, 2, "--rounds"},
		{[]string{"templates", "build", "mine", "--builtin", "go"}, 2, "takes no NAME"},
		{[]string{"wait", "--timeout", "150ms"}, 6, "not ready"},
		{[]string{"rootfs", "ls", "./nowhere.ext4"}, 3, "no such image"},
		{[]string{"serve", "--listen", "nonsense"}, 2, "listen"},
		{[]string{"serve", "--config", "/nowhere.toml"}, 2, "/nowhere.toml"},
	} {
		r := runKiln(empty, c.args...)
		if r.code != c.code || !strings.Contains(r.stdout+r.stderr, c.want) {
			t.Errorf("kiln %s: exit code %d, want %d with %q\n%s%s", strings.Join(c.args, " "), r.code, c.code, c.want, r.stdout, r.stderr)
		}
		if c.code != 0 && r.stdout != "" {
			t.Errorf("kiln %s: an error on standard output: %q", strings.Join(c.args, " "), r.stdout)
		}
	}
}

func TestServerIsFound(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "server.json"), []byte(`{"url":"http://127.0.0.1:1","pid":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(server.TokenPath(dir), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		env  map[string]string
		want string
	}{
		"data directory":       {nil, map[string]string{"KILN_DATA_DIR": dir}, "http://127.0.0.1:1"},
		"flag over variable":   {[]string{"--data-dir", dir}, map[string]string{"KILN_DATA_DIR": "/nowhere"}, "http://127.0.0.1:1"},
		"server variable":      {nil, map[string]string{"KILN_DATA_DIR": dir, "KILN_SERVER": "http://127.0.0.1:2"}, "http://127.0.0.1:2"},
		"server flag":          {[]string{"--server", "http://127.0.0.1:3"}, map[string]string{"KILN_DATA_DIR": dir, "KILN_SERVER": "http://127.0.0.1:2"}, "http://127.0.0.1:3"},
		"server is no address": {[]string{"--server", "127.0.0.1"}, nil, "is not a URL"},
	} {
		r := runKiln(c.env, append(c.args, "templates", "list")...)
		if r.code == 0 || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%s: %d %s", name, r.code, r.stderr)
		}
	}
	a := &app{dataDir: dir, lookupEnv: func(string) (string, bool) { return "", false }}
	if token, err := a.localToken(); err != nil || token != "secret" {
		t.Errorf("token %q, %v", token, err)
	}
}

func TestExitCodes(t *testing.T) {
	for code, want := range map[kiln.ErrorCode]int{
		kiln.CodeInternal: 1, kiln.CodeInvalid: 2, kiln.CodeNotFound: 3, kiln.CodeConflict: 4, kiln.CodeUnauthorized: 5, kiln.CodeForbidden: 5,
		kiln.CodeUnavailable: 6, kiln.CodeExhausted: 6, kiln.CodeLimit: 6, kiln.CodeTimeout: 6, kiln.CodeBuildFailed: 7, kiln.CodeCanceled: 130,
	} {
		err := fmt.Errorf("wrapped: %w", kiln.Errorf(code, "x"))
		if got := exitCode(t.Context(), err); got != want {
			t.Errorf("%s: %d, want %d", code, got, want)
		}
		if got := exitCode(t.Context(), ownFailure(err)); got != 125 {
			t.Errorf("%s of a sandbox command: %d, want 125", code, got)
		}
	}
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	if got := exitCode(interrupted, context.Canceled); got != 130 {
		t.Errorf("interrupted: %d, want 130", got)
	}
	if got := exitCode(interrupted, ownFailure(kiln.Errorf(kiln.CodeCanceled, "the request was cancelled: %w", context.Canceled))); got != 130 {
		t.Errorf("interrupted before the command ran: %d, want 130", got)
	}
	if got := exitCode(interrupted, ownFailure(kiln.Errorf(kiln.CodeInternal, "x"))); got != 125 {
		t.Errorf("failed, then interrupted: %d, want 125", got)
	}
	var out bytes.Buffer
	if code := (&app{stderr: &out}).report(interrupted, ownFailure(context.Canceled)); code != 130 || out.String() != "kiln: interrupted\n" {
		t.Errorf("%d %q", code, out.String())
	}
}

func TestErrorsAreShortAndSayWhatToDo(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"plain":       {fmt.Errorf("a\nb"), "kiln: a; b\n"},
		"with a hint": {fmt.Errorf("x: %w", kiln.Errorf(kiln.CodeInvalid, "no").WithHint("do so")), "kiln: no\nhint: do so\n"},
		"build": {
			&kiln.BuildError{Stage: kiln.StageImage, Message: "exit code: 3", File: "Dockerfile", Line: 2, Source: "RUN false \\\n  || exit 3", Output: []string{"one", "two"}, Hint: "look"},
			"kiln: image: Dockerfile:2: exit code: 3\n  2 | RUN false \\\n    |   || exit 3\nlast output:\n  | one\n  | two\nhint: look\n",
		},
		"build that printed garbage": {
			&kiln.BuildError{Stage: kiln.StageImage, Message: `process "` + strings.Repeat("x", 100) + `" failed`, Source: "RUN \x1bc",
				Output: []string{"\x1b[31mred\x1b[0m\x1b]0;title\a", "5%\r10%\r100%\r", "\x00\xff\tü", strings.Repeat("ü", 500)}},
			"kiln: image: process \"" + strings.Repeat("x", 80) + "…\" failed\n  0 | RUN \ufffdc\nlast output:\n  | red\n  | 100%\n  | \ufffd\ufffd ü\n  | " + strings.Repeat("ü", 400) + "…\n",
		},
		"title of a terminal": {fmt.Errorf("a\x1b]0;b\a\x1b[1mc\x07"), "kiln: ac\ufffd\n"},
	} {
		var b bytes.Buffer
		printError(&b, c.err)
		if b.String() != c.want {
			t.Errorf("%s: got\n%swant\n%s", name, b.String(), c.want)
		}
	}
}

func TestChecksAsJSON(t *testing.T) {
	r := runKiln(map[string]string{"KILN_DATA_DIR": t.TempDir()}, "doctor", "-o", "json")
	var checks []struct{ Name, Status, Detail, Fix string }
	if err := json.Unmarshal([]byte(r.stdout), &checks); err != nil || len(checks) < 8 {
		t.Fatalf("%v\n%s%s", err, r.stdout, r.stderr)
	}
	failed := false
	for _, c := range checks {
		failed = failed || c.Status == "fail"
		if c.Status == "fail" && c.Fix == "" {
			t.Errorf("%s failed without a remedy", c.Name)
		}
	}
	if failed != (r.code == 1) {
		t.Errorf("exit code %d, failed %v", r.code, failed)
	}
}

// What templates say of themselves must not command a terminal, or tear a table.
func TestTableIsOneLineARow(t *testing.T) {
	var out bytes.Buffer
	if err := table(&out, [][]string{{"A", "B"}, {"x\ty\x1b[31m", "line\nline\u202e\u2028é 火"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "A         B\nx y\uFFFD[31m  line line\uFFFD é 火\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// An empty cell at the end of a row moves nothing in the rows below it.
func TestTableKeepsItsColumns(t *testing.T) {
	var out bytes.Buffer
	if err := table(&out, [][]string{{"NAME", "BUILT-IN", "DESCRIPTION"}, {"a", "no", ""}, {"b", "yes", "x"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "NAME  BUILT-IN  DESCRIPTION\na     no\nb     yes       x\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// A token that was to expire at once, or never can, is no token that lives for ever.
func TestLifeOfATokenThatNoneHas(t *testing.T) {
	env := map[string]string{"KILN_SERVER": "http://127.0.0.1:1", "KILN_TOKEN": "x"}
	for _, life := range []string{"0", "-1h", "1ns", "87601h"} {
		r := runKiln(env, "tokens", "create", "ci", "--scope", "admin", "--expires="+life)
		if r.code != 2 || !strings.Contains(r.stderr, "--expires") {
			t.Errorf("%s: exit code %d: %s", life, r.code, r.stderr)
		}
	}
}

// TestListTemplates: every flag arrives, all pages are read, and wide tells more.
func TestListTemplates(t *testing.T) {
	queries := make(chan string, 2)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		queries <- r.URL.RawQuery
		if r.URL.Query().Get("next_token") == "" {
			w.Header().Set(api.HeaderNextToken, "more")
			fmt.Fprint(w, `[{"id":"tmpl_a","name":"a","status":"ready","version":2,"default_size":"shared-cpu-1x","base":"debian","tags":["x","y"],"description":"first","latest":{"version":3,"status":"failed"}}]`)
			return
		}
		fmt.Fprint(w, `[{"id":"tmpl_b","name":"b","status":"pending","version":0,"built_in":true,"latest":{"version":1,"status":"queued"}}]`)
	}))
	defer server.Close()
	env := map[string]string{"KILN_SERVER": server.URL, "KILN_TOKEN": "x"}
	for _, c := range []struct {
		args  []string
		query string
		want  []string // lines that begin like this
	}{
		{nil, "limit=500", []string{"NAME  STATUS   VERSION  BUILT-IN  DESCRIPTION", "a     ready    2        no        first", "b     pending  1        yes"}},
		{[]string{"--status", "ready", "--prefix", "a", "--tag", "x", "--own", "-o", "wide"}, "built_in=false&limit=500&prefix=a&status=ready&tag=x",
			[]string{"NAME  STATUS   VERSION  BUILT-IN  ID      LATEST     SIZE           BASE", "a     ready    2        no        tmpl_a  3 failed   shared-cpu-1x  debian", "b     pending  1        yes       tmpl_b  1 pending  -              -"}},
		{[]string{"--built-in"}, "built_in=true&limit=500", []string{"NAME", "a", "b"}},
	} {
		r := runKiln(env, append([]string{"templates", "list"}, c.args...)...)
		if first, second := <-queries, <-queries; first != c.query || !strings.Contains(second, "next_token=more") {
			t.Errorf("%v: asked for %s and %s", c.args, first, second)
		}
		lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
		if r.code != 0 || len(lines) != len(c.want) {
			t.Fatalf("%v: %+v", c.args, r)
		}
		for i, want := range c.want {
			if !strings.HasPrefix(lines[i], want) {
				t.Errorf("%v: got %q, want %q", c.args, lines[i], want)
			}
		}
	}
	if r := runKiln(env, "templates", "list", "--own", "--built-in"); r.code != 2 {
		t.Errorf("both: %+v", r)
	}
}

func TestTemplateIsShownWhole(t *testing.T) {
	var out bytes.Buffer
	a := &app{stdout: &out}
	err := a.printTemplate(&api.TemplateDetail{
		Template: api.Template{Name: "my-ml", Version: 1, Icon: "brain", Tags: []string{"python", "ml"}, DefaultSize: "performance-2x"},
		Versions: []*kiln.Version{{Number: 2}, {Number: 1, Metadata: kiln.Metadata{
			MinSize: "shared-cpu-4x", DiskMB: 4096, Env: map[string]string{"B": "2", "A": "1"}, ReadyCmd: "true", Init: "systemd", PostRestore: "reseed",
			Egress: kiln.EgressPolicy{Mode: kiln.EgressDenyAll, AllowCIDRs: []string{"0.0.0.0/0"}, DenyCIDRs: []string{"10.0.0.0/8"}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"icon           brain\n", "tags           python, ml\n", "smallest size  shared-cpu-4x\n", "disk           4096 MiB\n",
		"env            A=1\nenv            B=2\n", "ready command  true\n", "post-restore   reseed\n", "init           systemd\n", "egress         deny_all allow 0.0.0.0/0 deny 10.0.0.0/8\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
}
