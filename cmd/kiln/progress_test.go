package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/api"
)

// recordedBuild returns the log of a build whose last step was cached, as the server keeps it.
func recordedBuild() []string {
	return []string{
		`{"next":1,"time":"2026-01-02T03:04:05Z","stage":"source","line":"","kind":"begin"}`,
		`{"next":2,"time":"2026-01-02T03:04:06Z","stage":"source","line":"done in 1s","result":{"stage":"source","cached":false,"duration_ns":1000000000}}`,
		`{"next":3,"time":"2026-01-02T03:04:06Z","stage":"image","line":"","kind":"begin"}`,
		`{"next":4,"time":"2026-01-02T03:04:07Z","stage":"image","line":"","kind":"event","event":{"vertexes":[{"digest":"sha256:aa","name":"[1/2] FROM debian","started":"2026-01-02T03:04:06Z","completed":"2026-01-02T03:04:07Z"}]}}`,
		`{"next":5,"time":"2026-01-02T03:04:07Z","stage":"image","line":"#1 [1/2] FROM debian","kind":"step"}`,
		`{"next":6,"time":"2026-01-02T03:04:08Z","stage":"image","line":"","kind":"event","event":{"vertexes":[{"digest":"sha256:bb","name":"[2/2] RUN make","started":"2026-01-02T03:04:07Z","completed":"2026-01-02T03:04:08Z","cached":true}]}}`,
		`{"next":7,"time":"2026-01-02T03:04:08Z","stage":"image","line":"#2 CACHED","kind":"step"}`,
		`{"next":8,"time":"2026-01-02T03:04:09Z","stage":"image","line":"done in 3s","result":{"stage":"image","cached":false,"duration_ns":3000000000,"detail":"from debian"}}`,
		`{"next":9,"time":"2026-01-02T03:04:09Z","stage":"rootfs","line":"","kind":"begin"}`,
		`{"next":10,"time":"2026-01-02T03:04:09Z","stage":"rootfs","line":"unchanged, found in 1ms","result":{"stage":"rootfs","cached":true,"duration_ns":1000000,"detail":"9 MiB"}}`,
	}
}

// logServer serves recordedBuild and more as the newest build of the template "hello".
func logServer(t *testing.T, end string, more ...string) map[string]string {
	t.Helper()
	records := append(recordedBuild(), more...)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/templates/hello", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"name":"hello","latest":%s}`, end)
	})
	mux.HandleFunc("GET /v1/templates/builds/b1/logs", func(w http.ResponseWriter, r *http.Request) {
		var offset int
		if _, err := fmt.Sscan(r.URL.Query().Get("offset"), &offset); err != nil {
			t.Error(err)
		}
		for _, record := range records[offset:] {
			fmt.Fprintf(w, "data: %s\n\n", record)
		}
		fmt.Fprintf(w, "event: done\ndata: %s\n\n", end)
	})
	mux.HandleFunc("POST /v1/templates/hello/rebuild", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, unchangedBuild)
	})
	mux.HandleFunc("POST /v1/templates/capture", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, end) })
	created := false
	mux.HandleFunc("GET /v1/templates/builtin", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"name":"builtin","built_in":true,"latest":{"id":"b1","name":"builtin","status":"running"}}`)
	})
	mux.HandleFunc("POST /v1/sandboxes", func(w http.ResponseWriter, _ *http.Request) {
		if !created { // its build has begun
			created = true
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"code":"conflict","error":"template \"builtin\" is built on its first use"}`)
			return
		}
		fmt.Fprint(w, `{"id":"isandbox"}`)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return map[string]string{"KILN_SERVER": server.URL, "KILN_TOKEN": "x", "TERM": "xterm"}
}

const (
	doneBuild      = `{"id":"b1","name":"hello","version":1,"status":"done","ended_at":"2026-01-02T03:04:10Z"}`
	unchangedBuild = `{"id":"b0","name":"hello","version":1,"status":"done","unchanged":true}`
	failedBuild    = `{"id":"b1","name":"hello","version":1,"status":"failed","error":"no luck","ended_at":"2026-01-02T03:04:10Z"}`
)

// TestProgressJSONEndsWithTheBuild: also where there is nothing to show, so that a program
// that reads it needs to know no other form.
func TestProgressJSONEndsWithTheBuild(t *testing.T) {
	for _, c := range []struct {
		args      []string
		unchanged bool
		records   int
	}{
		{[]string{"rebuild", "hello"}, true, 0},
		{[]string{"capture", "mine", "--sandbox", "i1"}, false, len(recordedBuild())},
		{[]string{"capture", "mine", "--sandbox", "i1", "--detach"}, false, 0},
	} {
		r := runKiln(logServer(t, doneBuild), append([]string{"templates"}, append(c.args, "--progress", "json")...)...)
		lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
		var last struct {
			Kind  string
			Build api.Build
		}
		err := json.Unmarshal([]byte(lines[len(lines)-1]), &last)
		if r.code != 0 || len(lines) != c.records+1 || err != nil || last.Kind != "build" || last.Build.Unchanged != c.unchanged || last.Build.ID == "" {
			t.Errorf("%v: %v, exit code %d\n%s%s", c.args, err, r.code, r.stdout, r.stderr)
		}
	}
	r := runKiln(logServer(t, doneBuild), "templates", "rebuild", "hello", "--progress", "json", "-o", "json")
	var b api.Build
	if err := json.Unmarshal([]byte(r.stdout), &b); err != nil || !b.Unchanged || !strings.Contains(r.stderr, `"kind":"build"`) {
		t.Errorf("with -o json: %v, %+v", err, r)
	}
}

// TestProgressOfFirstUse: the build of a built-in template is shown as any build is.
func TestProgressOfFirstUse(t *testing.T) {
	r := runKiln(logServer(t, doneBuild), "sandbox", "create", "-t", "builtin")
	const want = "template builtin is built on its first use; this takes a while\n" +
		"[source] done in 1s\n#1 [1/2] FROM debian\n#2 CACHED\ndone in 3s\n[rootfs] unchanged, found in 1ms\n"
	if r.code != 0 || r.stdout != "isandbox\n" || r.stderr != want {
		t.Errorf("%+v", r)
	}
}

// TestProgressOfAQueuedBuild: nothing of it arrives until others have ended.
func TestProgressOfAQueuedBuild(t *testing.T) {
	asked := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/templates/builds/b1", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"id":"b1","name":"hello","version":3,"status":"queued"}`)
		close(asked)
	})
	mux.HandleFunc("GET /v1/templates/hello", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"name":"hello","latest":{"id":"b1"}}`)
	})
	said := make(chan struct{})
	mux.HandleFunc("GET /v1/templates/builds/b1/logs", func(w http.ResponseWriter, _ *http.Request) {
		<-asked
		<-said
		fmt.Fprintf(w, "event: done\ndata: %s\n\n", doneBuild)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	stderr := writerFunc(func(p []byte) {
		if string(p) != "the build of hello version 3 waits for others to end\n" {
			t.Errorf("said %q", p)
		}
		close(said)
	})
	env := map[string]string{"KILN_SERVER": server.URL, "KILN_TOKEN": "x"}
	lookupEnv := func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	}
	if code := run([]string{"templates", "logs", "-f", "hello"}, strings.NewReader(""), io.Discard, stderr, lookupEnv); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

type writerFunc func(p []byte)

// Write implements io.Writer.
func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

func TestProgressPlain(t *testing.T) {
	env := logServer(t, doneBuild)
	const want = "[source] done in 1s\n#1 [1/2] FROM debian\n#2 CACHED\ndone in 3s\n[rootfs] unchanged, found in 1ms\n"
	for _, args := range [][]string{
		{"templates", "logs", "-f", "hello"}, // no terminal
		{"templates", "logs", "-f", "hello", "--progress", "plain"},
	} {
		if r := runKiln(env, args...); r.code != 0 || r.stdout != want {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if r := runKiln(env, "templates", "logs", "hello", "--offset", "8"); r.stdout != "[rootfs] unchanged, found in 1ms\n" {
		t.Errorf("from offset 8: %+v", r)
	}
	r := runKiln(logServer(t, failedBuild), "templates", "logs", "-f", "hello")
	if r.code == 0 || r.stdout != want || !strings.Contains(r.stderr, "no luck") {
		t.Errorf("a failed build: %+v", r)
	}
}

func TestProgressJSON(t *testing.T) {
	env := logServer(t, doneBuild)
	all := runKiln(env, "templates", "logs", "-f", "hello", "--progress", "json")
	recorded := recordedBuild()
	lines := strings.Split(strings.TrimSuffix(all.stdout, "\n"), "\n")
	if all.code != 0 || len(lines) != len(recorded)+1 {
		t.Fatalf("%+v", all)
	}
	for i, record := range recorded {
		if lines[i] != record {
			t.Errorf("got  %s\nwant %s", lines[i], record)
		}
	}
	var last struct {
		Kind  string
		Build api.Build
	}
	if err := json.Unmarshal([]byte(lines[len(recorded)]), &last); err != nil || last.Kind != "build" || last.Build.Status != api.BuildDone {
		t.Errorf("%+v, %v", last, err)
	}
	rest := runKiln(env, "templates", "logs", "-f", "hello", "--progress", "json", "--offset", "4")
	if want := strings.Join(lines[4:], "\n") + "\n"; rest.stdout != want {
		t.Errorf("from offset 4:\n%s", rest.stdout)
	}
}

// runOnTerminal runs the program with a terminal as its standard output and returns what
// was written there.
func runOnTerminal(t *testing.T, env map[string]string, args ...string) (code int, screen, stderr string) {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := pty.Setsize(master, &pty.Winsize{Rows: 40, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	shown := make(chan string)
	go func() {
		b, err := io.ReadAll(master)
		if pathErr, ok := err.(*os.PathError); !ok || pathErr.Err != unix.EIO { // the end of a terminal
			t.Errorf("terminal: %v", err)
		}
		shown <- string(b)
	}()
	var errs strings.Builder
	code = run(args, strings.NewReader(""), slave, &errs, func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	})
	if err := slave.Close(); err != nil {
		t.Fatal(err)
	}
	return code, <-shown, errs.String()
}

func TestProgressTTY(t *testing.T) {
	env := logServer(t, doneBuild)
	for _, args := range [][]string{
		{"templates", "logs", "-f", "hello"},
		{"templates", "logs", "hello", "--progress", "tty"},
	} {
		code, screen, stderr := runOnTerminal(t, env, args...)
		for _, want := range []string{
			"[+] Building", "(5/5) FINISHED", "[kiln] source", "[1/2] FROM debian", "CACHED [2/2] RUN make",
			"[kiln] image from debian", "3.0s", "CACHED [kiln] rootfs 9 MiB",
		} {
			if !strings.Contains(screen, want) {
				t.Errorf("%v: no %q on the terminal", args, want)
			}
		}
		if code != 0 || strings.Contains(screen, "#2 CACHED") || t.Failed() {
			t.Errorf("%v: code %d, %s\n%s", args, code, stderr, screen)
		}
	}
	if _, screen, _ := runOnTerminal(t, env, "templates", "logs", "hello"); !strings.HasPrefix(screen, "[source] done in 1s\r\n#1") {
		t.Errorf("without -f: %q", screen)
	}
	env["TERM"] = "dumb"
	if _, screen, _ := runOnTerminal(t, env, "templates", "logs", "-f", "hello"); !strings.HasPrefix(screen, "[source] done in 1s\r\n#1") {
		t.Errorf("on a dumb terminal: %q", screen)
	}
}

func TestProgressTTYShowsFailure(t *testing.T) {
	env := logServer(t, failedBuild,
		`{"next":11,"time":"2026-01-02T03:04:09Z","stage":"snapshot","line":"","kind":"begin"}`,
		`{"next":12,"time":"2026-01-02T03:04:09Z","stage":"snapshot","line":"failed: no luck"}`)
	code, screen, stderr := runOnTerminal(t, env, "templates", "logs", "-f", "hello")
	if code == 0 || !strings.Contains(screen, "ERROR [kiln] snapshot") || !strings.Contains(screen, "failed: no luck") || !strings.Contains(stderr, "no luck") {
		t.Errorf("code %d, %s\n%s", code, stderr, screen)
	}
}

func TestProgressIsCheckedFirst(t *testing.T) {
	env := map[string]string{"KILN_SERVER": "http://127.0.0.1:1"}
	for _, args := range [][]string{{"logs", "x"}, {"rebuild", "x"}, {"build", "x", "."}, {"create", "x", "--image", "a"}} {
		args = append([]string{"templates"}, args...)
		if r := runKiln(env, append(args, "--progress", "fancy")...); r.code != 2 || !strings.Contains(r.stderr, `unknown progress "fancy"`) {
			t.Errorf("%v: %+v", args, r)
		}
		if r := runKiln(env, append(args, "--progress", "tty")...); r.code != 2 || !strings.Contains(r.stderr, "not a terminal") {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

// TestProgressTTYOfAFailedStep: the step tells why, once; the stage around it need not.
func TestProgressTTYOfAFailedStep(t *testing.T) {
	env := logServer(t, failedBuild,
		`{"next":11,"time":"2026-01-02T03:04:09Z","stage":"image","line":"","kind":"begin"}`,
		`{"next":12,"time":"2026-01-02T03:04:09Z","stage":"image","line":"","kind":"event","event":{"vertexes":[{"digest":"sha256:cc","name":"[3/3] RUN false","started":"2026-01-02T03:04:09Z","completed":"2026-01-02T03:04:10Z","error":"exit code: 1"}]}}`,
		`{"next":13,"time":"2026-01-02T03:04:10Z","stage":"image","line":"failed: image: exit code: 1"}`)
	code, screen, _ := runOnTerminal(t, env, "templates", "logs", "-f", "hello")
	if code == 0 || !strings.Contains(screen, "ERROR [3/3] RUN false") || strings.Contains(screen, "ERROR [kiln]") || strings.Contains(screen, "failed: image") {
		t.Errorf("code %d\n%s", code, screen)
	}
}

// TestProgressTTYInterrupted: nothing looks as if it ran on.
func TestProgressTTYInterrupted(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	shown := make(chan string)
	go func() {
		b, _ := io.ReadAll(master) // ends with EIO
		shown <- string(b)
	}()
	d, err := newTTYDisplay(slave)
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range []string{
		`{"time":"2026-01-02T03:04:09Z","stage":"image","line":"","kind":"begin"}`,
		`{"time":"2026-01-02T03:04:09Z","stage":"image","line":"","kind":"event","event":{"vertexes":[{"digest":"sha256:cc","name":"[3/3] RUN sleep","started":"2026-01-02T03:04:09Z"}]}}`,
	} {
		var l api.LogLine
		if err := json.Unmarshal([]byte(record), &l); err != nil {
			t.Fatal(err)
		}
		if err := d.record(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(d.end(nil), slave.Close()); err != nil {
		t.Fatal(err)
	}
	if screen := <-shown; !strings.Contains(screen, "CANCELED [3/3] RUN sleep") || !strings.Contains(screen, "CANCELED [kiln] image") {
		t.Errorf("%s", screen)
	}
}

// TestDurationsAreExplained: a flag says what it takes, not what a parser says.
func TestDurationsAreExplained(t *testing.T) {
	for _, value := range []string{"9999999h", strings.Repeat("x", 1000)} {
		r := runKiln(nil, "sandbox", "create", "-t", "a", "--ttl", value)
		if r.code != exitUsage || !strings.Contains(r.stderr, "--ttl: ") || !strings.Contains(r.stderr, "is not a duration such as 90s") || len(r.stderr) > 200 {
			t.Errorf("exit code %d: %s", r.code, r.stderr)
		}
	}
}
