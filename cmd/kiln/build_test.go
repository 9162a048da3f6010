package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
)

func TestWhichDockerfilesReadTheirContext(t *testing.T) {
	for dockerfile, want := range map[string]bool{
		"FROM a\nRUN true\n":                                                                false,
		"FROM a\nCOPY x /\n":                                                                true,
		"FROM a\ncopy x /\n":                                                                true,
		"FROM a AS b\nFROM c\nCOPY --from=b /x /\n":                                         false,
		"FROM a\nCOPY <<EOF /x\ntext\nEOF\n":                                                false,
		"FROM a\nADD https://example.org/x /\n":                                             false,
		"FROM a\nADD x.tar /\n":                                                             true,
		"FROM a\nRUN --mount=type=bind,target=/src ls /src\n":                               true,
		"FROM a\nRUN --mount=type=bind,from=b,target=/src ls /src\n":                        false,
		"FROM a\nRUN --mount=type=cache,target=/var/cache ls\n":                             false,
		"FROM a\nRUN --mount=target=/src ls /src\n":                                         true,
		"FROM a\nRUN --mount=type=bind,from=b,target=/b --mount=type=bind,target=/src ls\n": true,
		"FROM a\nRUN --mount=type=cache,target=/c --mount=from=b,target=/b ls\n":            false,
		"FROM a\nRUN --mount=type=secret,id=type=bind true\n":                               false,
		"FROM a AS b\nONBUILD COPY x /\nFROM b\n":                                           true,
		"FROM a AS b\nONBUILD RUN true\nFROM b\n":                                           false,
		"FROM a\nADD https://example.org/x y /\n":                                           true,
		"FROM a\nADD git@github.com:a/b.git /\n":                                            false,
		"FROM a\nCOPY <<EOF x /d/\ntext\nEOF\n":                                             true,
		"# syntax=docker/dockerfile:1\nFROM a\nRUN <<EOF\ncopy it\nCOPY\nEOF":               false,
		"":          false,
		"NOTHING\n": false,
	} {
		if got := copiesFromContext(strings.NewReader(dockerfile)); got != want {
			t.Errorf("%q: %v, want %v", dockerfile, got, want)
		}
	}
}

func TestContextOfCreate(t *testing.T) {
	write := func(files map[string]string) string {
		dir := t.TempDir()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	alone := write(map[string]string{"Dockerfile": "FROM a\n", "big": "not wanted"})
	copies := write(map[string]string{"Dockerfile": "FROM a\nCOPY x /\n"})
	described := write(map[string]string{"Dockerfile": "FROM a\n", "zwrm-template.toml": ""})
	for name, c := range map[string]struct {
		flags buildFlags
		want  string
	}{
		"standard input":          {buildFlags{dockerfile: "-"}, ""},
		"standard input, context": {buildFlags{dockerfile: "-", context: copies}, copies},
		"Dockerfile alone":        {buildFlags{dockerfile: filepath.Join(alone, "Dockerfile")}, ""},
		"Dockerfile that reads":   {buildFlags{dockerfile: filepath.Join(copies, "Dockerfile")}, copies},
		"metadata beside it":      {buildFlags{dockerfile: filepath.Join(described, "Dockerfile")}, described},
		"context given":           {buildFlags{dockerfile: filepath.Join(alone, "Dockerfile"), context: copies}, copies},
		"only a context":          {buildFlags{context: copies}, copies},
	} {
		a := &app{stdin: strings.NewReader("FROM stdin\n")}
		in, err := a.createInput(c.flags)
		if err != nil || in.Dir != c.want {
			t.Errorf("%s: %+v, %v, want %q", name, in, err, c.want)
		}
		if piped := string(in.Content) == "FROM stdin\n"; piped != (c.flags.dockerfile == "-") {
			t.Errorf("%s: content %q", name, in.Content)
		}
	}
}

func TestPairs(t *testing.T) {
	lookup := func(name string) (string, bool) { return "from " + name, name == "SET" }
	got, err := pairs("--build-arg", []string{"A=1", "B=x=y", "C=", "SET", "UNSET"}, lookup)
	want := map[string]string{"A": "1", "B": "x=y", "C": "", "SET": "from SET"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"NAME", "=value", ""} {
		if _, err := pairs("--env", []string{bad}, nil); err == nil {
			t.Errorf("--env %q was accepted", bad)
		}
	}
}

func TestSecrets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{lookupEnv: func(name string) (string, bool) { return "from a variable", name == "SECRET" }}
	got, err := a.readSecrets([]string{"id=one,src=" + file, "id=two,env=SECRET", "type=file,id=three,source=" + file})
	if err != nil || string(got["one"]) != "from a file" || string(got["two"]) != "from a variable" || string(got["three"]) != "from a file" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{"", "one", "id=one", "src=" + file, "id=,src=x", "id=one,env=NONE", "id=one,src=/nowhere"} {
		if _, err := a.readSecrets([]string{bad}); kiln.CodeOf(err) != kiln.CodeInvalid {
			t.Errorf("--secret %q: %v", bad, err)
		}
	}
}

func TestStageTable(t *testing.T) {
	var b strings.Builder
	err := stageTable(&b, []kiln.StageResult{
		{Stage: kiln.StageImage, Duration: 9*time.Second + 870*time.Millisecond, Detail: "from debian:bookworm"},
		{Stage: kiln.StageRootfs, Duration: 42 * time.Millisecond, Cached: true},
	})
	const want = "STAGE   TIME  CACHED  DETAIL\nimage   9.9s  no      from debian:bookworm\nrootfs  42ms  yes\ntotal   9.9s\n"
	if err != nil || b.String() != want {
		t.Errorf("got\n%s%v\nwant\n%s", b.String(), err, want)
	}
}

func TestOneSourceOnly(t *testing.T) {
	env := map[string]string{"KILN_SERVER": "http://127.0.0.1:1", "SECRET": "x"}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"build", "x"}, `no source given for template "x", and no folder`},
		{[]string{"build", "x", "dir", "--target", "\xff"}, "--target is not text in UTF-8"},
		{[]string{"create", "x", "--env", "A=\xff"}, "--env is not text in UTF-8"},
		{[]string{"build", "x", "dir", "--git-ssh-key", "f"}, "belong to --repo"},
		{[]string{"build", "x", "--repo", "https://example.org/a", "--dockerfile", "-"}, "cannot be read from standard input"},
		{[]string{"build", "x", "--image", "a", "--build-arg", "A=1"}, "--image has none"},
		{[]string{"build", "x", "--image", "a", "--target", "t"}, "--image has none"},
		{[]string{"create", "x", "--image", "a", "--secret", "id=s,env=SECRET"}, "--image has none"},
		{[]string{"build", "--builtin", "go", "--env", "A=1"}, "takes no --env"},
		{[]string{"build", "--builtin", "go", "--image", "a"}, "takes no --image"},
		{[]string{"build", "x", "dir", "--description", ""}, `--description "" says nothing`},
		{[]string{"build", "x", "dir", "--size", ""}, `--size "" says nothing`},
		{[]string{"build", "x", "dir", "--egress-mode", ""}, `--egress-mode "" says nothing`},
		{[]string{"create", "x", "--start-cmd", ""}, `--start-cmd "" says nothing`},
		{[]string{"create", "x", "--disk-size-mb", "0"}, "--disk-size-mb 0 says nothing"},
		{[]string{"create", "x", "--ops-per-sec", "-5"}, "--ops-per-sec -5 says nothing"},
		{[]string{"build", "x", "dir", "--min-size", "huge"}, "unknown size"},
		{[]string{"build", "x", "dir", "--repo", "https://example.org/a"}, "more than one source"},
		{[]string{"build", "x", "--image", "a", "--repo", "https://example.org/a"}, "more than one source"},
		{[]string{"create", "x", "--context", "dir", "--image", "a"}, "more than one source"},
		{[]string{"build", "x", "dir", "--ref", "main"}, "belong to --repo"},
		{[]string{"create", "x", "--image", "a", "--dockerfile", "f"}, "needs no Dockerfile"},
		{[]string{"create", "x", "--repo", "https://example.org/a", "--git-token-file", "/nowhere"}, "--git-token-file"},
	} {
		r := runKiln(env, append([]string{"templates"}, c.args...)...)
		if r.code != 2 || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: exit code %d: %s", c.args, r.code, r.stderr)
		}
	}
}

// TestBuildOfABuiltIn: what is asked for arrives, and -d does not wait for it.
func TestBuildOfABuiltIn(t *testing.T) {
	asked := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		asked <- r.URL.Path + " " + string(body)
		fmt.Fprint(w, `{"id":"b1","name":"python","version":2,"status":"queued"}`)
	}))
	defer server.Close()
	env := map[string]string{"KILN_SERVER": server.URL, "KILN_TOKEN": "x"}
	for flag, want := range map[string]string{"--no-cache": `{"no_cache":true}`, "--pull": `{"pull":true}`} {
		r := runKiln(env, "templates", "build", "--builtin", "python", flag, "-d")
		if got := <-asked; r.code != 0 || got != "/v1/catalog/python/build "+want || !strings.Contains(r.stdout, "building python version 2") {
			t.Errorf("%s: asked for %s, %+v", flag, got, r)
		}
	}
}
