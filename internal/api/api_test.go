package api

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/kilnvm/kiln"
)

func TestErrorsAreTranslatedOnce(t *testing.T) {
	for code, want := range map[kiln.ErrorCode]int{
		kiln.CodeInvalid: 400, kiln.CodeUnauthorized: 401, kiln.CodeForbidden: 403, kiln.CodeNotFound: 404, kiln.CodeConflict: 409,
		kiln.CodeBuildFailed: 422, kiln.CodeExhausted: 507, kiln.CodeLimit: 429, kiln.CodeUnavailable: 503, kiln.CodeTimeout: 504, kiln.CodeCanceled: 499,
		kiln.CodeInternal: 500,
	} {
		if got := statusOf(code); got != want {
			t.Errorf("%s: status %d, want %d", code, got, want)
		}
	}
	discard := slog.New(slog.DiscardHandler)
	secret := errors.New("disk /dev/sda7 said no")
	for name, tc := range map[string]struct {
		err  error
		code kiln.ErrorCode
		text string
	}{
		"internal":          {fmt.Errorf("store: %w", secret), kiln.CodeInternal, "internal error"},
		"internal, typed":   {kiln.Errorf(kiln.CodeInternal, "store: %w", secret), kiln.CodeInternal, "internal error"},
		"wrapped not found": {fmt.Errorf("x: %w", kiln.Errorf(kiln.CodeNotFound, "template %q not found", "a")), kiln.CodeNotFound, `template "a" not found`},
		"deadline":          {fmt.Errorf("x: %w", context.DeadlineExceeded), kiln.CodeTimeout, "GET /x: the deadline passed"},
		"build":             {&kiln.BuildError{Stage: kiln.StageImage, Message: "no", File: "Dockerfile", Line: 3}, kiln.CodeBuildFailed, "image: Dockerfile:3: no"},
	} {
		got := errorFor(t.Context(), discard, "GET /x", tc.err)
		if got.Code != tc.code || got.Message != tc.text {
			t.Errorf("%s: got %s %q", name, got.Code, got.Message)
		}
	}
}

func TestAuthentication(t *testing.T) {
	ts := newTestServer(t, nil)
	for _, tc := range []struct {
		path, header, value string
		want                int
	}{
		{"/v1/templates", "", "", 401},
		{"/v1/templates", "Authorization", "Bearer wrong", 401},
		{"/v1/templates", "Authorization", "Basic " + testToken, 401},
		{"/v1/templates", "Authorization", "Bearer " + testToken, 200},
		{"/v1/templates", "X-API-Key", testToken, 200},
		{"/nothing", "", "", 401},
		{"/nothing", "X-API-Key", testToken, 404},
		{"/healthz", "", "", 200},
		{"/readyz", "", "", 200},
		{"/openapi.json", "", "", 200},
	} {
		req, _ := http.NewRequest(http.MethodGet, ts.URL+tc.path, nil)
		if tc.header != "" {
			req.Header.Set(tc.header, tc.value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tc.want {
			t.Errorf("%s with %s %q: status %d, want %d", tc.path, tc.header, tc.value, resp.StatusCode, tc.want)
		}
		if tc.want == 401 && !strings.Contains(string(body), `"code":"unauthorized"`) {
			t.Errorf("%s: body %s", tc.path, body)
		}
	}
}

func TestReadyzSaysWhy(t *testing.T) {
	ts := newTestServer(t, func(o *Options) {
		o.Ready = func() error { return kiln.Errorf(kiln.CodeUnavailable, "the guest kernel is being fetched") }
	})
	status, body := ts.do(t, "GET", "/readyz", "", nil)
	if status != 503 || !strings.Contains(body, "guest kernel") {
		t.Errorf("got %d %s", status, body)
	}
}

// part is one part of a form.
type part struct{ name, filename, contentType, body string }

func form(t *testing.T, parts ...part) (string, io.Reader) {
	t.Helper()
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	for _, p := range parts {
		h := textproto.MIMEHeader{}
		disposition := fmt.Sprintf("form-data; name=%q", p.name)
		if p.filename != "" {
			disposition += fmt.Sprintf("; filename=%q", p.filename)
		}
		h.Set("Content-Disposition", disposition)
		if p.contentType != "" {
			h.Set("Content-Type", p.contentType)
		}
		pw, err := w.CreatePart(h)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(pw, p.body)
	}
	_ = w.Close()
	return w.FormDataContentType(), &buf
}

func tarNames(t *testing.T, data []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(tr)
		out[h.Name] = string(b)
	}
}

func TestBuildForms(t *testing.T) {
	const dockerfile = "FROM debian:bookworm-slim\nCOPY src/main.py /\n"
	for name, tc := range map[string]struct {
		parts []part
		want  map[string]string
		check func(t *testing.T, req NewTemplate)
	}{
		"PandaStack, Dockerfile and files": {
			parts: []part{{name: "name", body: "hello"}, {name: "dockerfile", body: dockerfile}, {name: "size_mb", body: "1048576"}, {name: "cpu", body: "2"}, {name: "memory_mb", body: "1500"},
				{name: "src/main.py", filename: "main.py", contentType: "application/octet-stream", body: "print(1)"}},
			want: map[string]string{"Dockerfile": dockerfile, "src/main.py": "print(1)"},
			check: func(t *testing.T, req NewTemplate) {
				if req.Metadata.DiskMB != kiln.MaxDiskMB || req.Metadata.DefaultSize != "shared-cpu-4x" {
					t.Errorf("metadata %+v", req.Metadata)
				}
			},
		},
		"PandaStack, image": {
			parts: []part{{name: "name", body: "hello"}, {name: "image_ref", body: "ghcr.io/a/b:1"}},
			want:  map[string]string{"Dockerfile": "FROM ghcr.io/a/b:1\n"},
			check: func(t *testing.T, req NewTemplate) {
				if req.Image != "ghcr.io/a/b:1" {
					t.Errorf("image %q", req.Image)
				}
			},
		},
		"git": {
			parts: []part{{name: "name", body: "hello"}, {name: "git", body: `{"url":"https://example.org/x.git","ref":"v1","dir":"d"}`},
				{name: "git_credentials", body: `{"token":"t"}`}},
			check: func(t *testing.T, req NewTemplate) {
				if req.Context != nil || *req.Git != (kiln.GitSource{URL: "https://example.org/x.git", Ref: "v1", Dir: "d"}) || req.GitCredentials.Token != "t" {
					t.Errorf("request %+v", req)
				}
			},
		},
		"PandaStack, rootfs": {
			parts: []part{{name: "name", body: "hello"}, {name: "rootfs", filename: "x.tar", body: "tar"}},
			want:  map[string]string{"Dockerfile": "FROM scratch\nADD rootfs.tar /\n", "rootfs.tar": "tar"},
		},
		"a context file called rootfs": {
			parts: []part{{name: "name", body: "hello"}, {name: "dockerfile", body: dockerfile}, {name: "rootfs", filename: "rootfs", body: "x"}},
			want:  map[string]string{"Dockerfile": dockerfile, "rootfs": "x"},
		},
		"archive": {
			parts: []part{{name: "name", body: "hello"}, {name: "context", filename: "context.tar", contentType: "application/x-tar", body: "whatever"},
				{name: "options", body: `{"target":"run","args":{"A":"1"},"secrets":{"k":"djE="}}`}, {name: "metadata", body: `{"description":"d","env":{"X":"y"}}`}},
			check: func(t *testing.T, req NewTemplate) {
				if req.Options.Target != "run" || req.Options.Args["A"] != "1" || string(req.Options.Secrets["k"]) != "v1" ||
					req.Metadata.Description != "d" || req.Metadata.Env["X"] != "y" {
					t.Errorf("request %+v", req)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			ts := newTestServer(t, nil)
			ct, body := form(t, tc.parts...)
			status, answer := ts.do(t, "POST", "/v1/templates/build", ct, body)
			if status != 202 {
				t.Fatalf("status %d: %s", status, answer)
			}
			var b Build
			if err := json.Unmarshal([]byte(answer), &b); err != nil || b.ID == "" || b.Status != BuildQueued || b.Name != "hello" {
				t.Errorf("answer %s (%v)", answer, err)
			}
			if tc.want != nil {
				got := tarNames(t, ts.templates.contexts["hello"])
				if fmt.Sprint(got) != fmt.Sprint(tc.want) {
					t.Errorf("context %q, want %q", got, tc.want)
				}
			}
			if tc.check != nil {
				tc.check(t, ts.templates.requests[0])
			}
		})
	}
}

func TestBadBuildForms(t *testing.T) {
	ok := part{name: "dockerfile", body: "FROM scratch\n"}
	named := part{name: "name", body: "hello"}
	for name, tc := range map[string]struct {
		parts  []part
		status int
		want   string
	}{
		"bad name":           {[]part{{name: "name", body: "Hello World"}, ok}, 400, `template name \"Hello World\" is not allowed`},
		"reserved name":      {[]part{{name: "name", body: "builds"}, ok}, 400, "reserved"},
		"name like an ID":    {[]part{{name: "name", body: "tmpl_x"}, ok}, 400, "template ID"},
		"no source":          {[]part{named}, 400, "no source"},
		"kernel":             {[]part{named, ok, {name: "kernel", body: "x"}}, 400, "kernel"},
		"two sources":        {[]part{named, ok, {name: "image_ref", body: "a"}}, 400, "image_ref"},
		"image_ref injects":  {[]part{named, {name: "image_ref", body: "a\nRUN x"}}, 400, "image_ref"},
		"path climbs":        {[]part{named, ok, {name: "../x", filename: "x", body: "x"}}, 400, "relative path"},
		"absolute path":      {[]part{named, ok, {name: "/etc/x", filename: "x", body: "x"}}, 400, "relative path"},
		"options not JSON":   {[]part{named, ok, {name: "options", body: "{"}}, 400, "options"},
		"options unknown":    {[]part{named, ok, {name: "options", body: `{"targt":"x"}`}}, 400, "targt"},
		"metadata not JSON":  {[]part{named, ok, {name: "metadata", body: "[]"}}, 400, "metadata"},
		"git and Dockerfile": {[]part{named, ok, {name: "git", body: `{"url":"https://example.org/x"}`}}, 400, "other sources"},
		"git with a commit":  {[]part{named, {name: "git", body: `{"url":"https://example.org/x","commit":"1"}`}}, 400, "put it into ref"},
		"git not JSON":       {[]part{named, {name: "git", body: "https://example.org/x"}}, 400, "form field git"},
		"image and files":    {[]part{named, {name: "image_ref", body: "a"}, {name: "x", filename: "x", body: "x"}}, 400, "nothing would copy"},
		"image and a target": {[]part{named, {name: "image_ref", body: "a"}, {name: "options", body: `{"target":"t"}`}}, 400, "an image_ref has none"},
		"two Dockerfiles":    {[]part{named, ok, {name: "options", body: `{"dockerfile":"prod"}`}}, 400, "options name another"},
		"credentials alone":  {[]part{named, ok, {name: "git_credentials", body: `{"token":"t"}`}}, 400, "no git repository"},
		"more than one JSON": {[]part{named, ok, {name: "options", body: `{"target":"t"}{}`}}, 400, "more than one JSON value"},
		"disk too large":     {[]part{named, ok, {name: "size_mb", body: "1048577"}}, 400, "size_mb"},
		"cpu":                {[]part{named, ok, {name: "cpu", body: "many"}}, 400, "cpu"},
		"no such size":       {[]part{named, ok, {name: "memory_mb", body: "60000"}}, 400, "no size"},
		"context too large":  {[]part{named, {name: "context", contentType: "application/x-tar", body: strings.Repeat("x", 3<<20)}}, 413, "larger than 1 MiB"},
		"taken":              {[]part{{name: "name", body: "taken"}, ok}, 409, "exists"},
		"field beyond limit": {[]part{named, {name: "dockerfile", body: strings.Repeat("#", maxField+1)}}, 413, "larger"},
	} {
		t.Run(name, func(t *testing.T) {
			ts := newTestServer(t, func(o *Options) { o.MaxContextBytes = 1 << 20 })
			ts.templates.byName["taken"] = &kiln.Template{Name: "taken"}
			ct, body := form(t, tc.parts...)
			status, answer := ts.do(t, "POST", "/v1/templates/build", ct, body)
			if status != tc.status || !strings.Contains(answer, tc.want) {
				t.Errorf("got %d %s, want %d with %q", status, answer, tc.status, tc.want)
			}
		})
	}
	t.Run("not a form", func(t *testing.T) {
		status, answer := newTestServer(t, nil).do(t, "POST", "/v1/templates/build", "application/json", strings.NewReader("{}"))
		if status != 400 || !strings.Contains(answer, "multipart") {
			t.Errorf("got %d %s", status, answer)
		}
	})
}

func TestTemplateRoutes(t *testing.T) {
	ts := newTestServer(t, nil)
	ct, body := form(t, part{name: "name", body: "hello"}, part{name: "dockerfile", body: "FROM scratch\n"})
	ts.do(t, "POST", "/v1/templates/build", ct, body)
	ts.templates.lines = []LogLine{{Next: 1, Stage: kiln.StageImage, Line: "one"}, {Next: 2, Stage: kiln.StageImage, Line: "two"}}
	for _, tc := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v1/templates", "", 200, `[{"id":"tmpl_`},
		{"GET", "/v1/templates/hello", "", 200, `"versions":[{`},
		{"GET", "/v1/templates/nope", "", 404, `{"error":"template \"nope\" not found","code":"not_found"}`},
		{"POST", "/v1/templates/hello/rebuild", "", 202, `"version":2`},
		{"POST", "/v1/catalog/hello/build", "", 202, `"unchanged":true`},
		{"POST", "/v1/templates/hello/rebuild", `{"no_cache":true}`, 202, `"version":3`},
		{"GET", "/v1/templates/builds", "", 200, `[{"id":"bldhello3"`},
		{"GET", "/v1/templates/builds/bldhello3", "", 200, `"status":"queued"`},
		{"GET", "/v1/templates/builds/nope", "", 404, "not_found"},
		{"GET", "/v1/templates/builds/nope/logs", "", 404, "not_found"},
		{"GET", "/v1/templates/builds/bldhello3/logs?follow=1", "", 200, "event: done\ndata: {\"id\":\"bldhello3\""},
		{"GET", "/v1/templates/builds/bldhello3/logs?offset=1", "", 200, `"line":"two"`},
		{"GET", "/v1/templates/builds/bldhello3/logs?offset=2", "", 200, "event: done"},
		{"GET", "/v1/templates/builds/bldhello3/logs?offset=-1", "", 400, "offset"},
		{"POST", "/v1/templates/builds/bldhello3/cancel", "", 204, ""},
		{"GET", "/v1/templates/builds/bldhello3", "", 200, `"status":"failed"`},
		{"DELETE", "/v1/templates/hello", "", 204, ""},
		{"DELETE", "/v1/templates/hello", "", 404, "not_found"},
		{"PUT", "/v1/templates/hello", "", 404, "no such route"},
	} {
		var in io.Reader
		ct := "text/plain;charset=UTF-8" // what the PandaStack client sends without a body
		if tc.body != "" {
			in, ct = strings.NewReader(tc.body), "application/json"
		}
		status, answer := ts.do(t, tc.method, tc.path, ct, in)
		if status != tc.status || !strings.Contains(answer, tc.want) {
			t.Errorf("%s %s: got %d %s, want %d with %s", tc.method, tc.path, status, answer, tc.status, tc.want)
		}
	}
}

func (ts *testServer) sandbox(t *testing.T) string {
	t.Helper()
	status, body := ts.do(t, "POST", "/v1/sandboxes", "application/json", strings.NewReader(`{"template":"hello","ttl_seconds":60,"unknown":1}`))
	if status != 201 {
		t.Fatalf("create: %d %s", status, body)
	}
	var sb Sandbox
	if err := json.Unmarshal([]byte(body), &sb); err != nil {
		t.Fatal(err)
	}
	if sb.BootMS != 70 || sb.BootMode != kiln.BootSnapshot || sb.MemoryMiB != 512 {
		t.Errorf("sandbox %s", body)
	}
	return sb.ID
}

func TestSandboxRoutes(t *testing.T) {
	ts := newTestServer(t, nil)
	id := ts.sandbox(t)
	for _, tc := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "", `{"template":"nope"}`, 404, `template \"nope\" not found`},
		{"POST", "", ``, 404, `template \"ubuntu-24.04\" not found`},
		{"POST", "", `{"template":"hello","size":"huge"}`, 400, "sizes are"},
		{"POST", "", `{"template":"hello@zero"}`, 400, "version number"},
		{"POST", "", `{"template":"hello","ttl_seconds":-5}`, 400, "ttl_seconds"},
		{"POST", "", `{"template":"hello","ttl_seconds":90000}`, 400, "ttl_seconds"},
		{"POST", "", `{"template":"hello","env":{"A=B":"x"}}`, 400, "environment variable"},
		{"POST", "", `{"template":"hello","idle_seconds":-1}`, 400, "idle_seconds"},
		{"POST", "", `{"template":7}`, 400, "expected string"},
		{"POST", "", `{`, 400, "unexpected"},
		{"GET", "", "", 200, id},
		{"GET", "/" + id, "", 200, `"status":"running"`},
		{"GET", "/inone", "", 404, `sandbox \"inone\" not found`},
		{"POST", "/" + id + "/keepalive", "", 200, `"expires_at"`},
		{"POST", "/" + id + "/keepalive", `{"ttl_seconds":120}`, 200, `"expires_at"`},
		{"GET", "/" + id + "/lifecycle", "", 200, `"ttl_seconds":120`},
		{"POST", "/" + id + "/keepalive", `{"ttl_seconds":7200}`, 200, `"expires_at"`},
		{"POST", "/" + id + "/keepalive", "", 200, `"expires_at"`},
		{"GET", "/" + id + "/lifecycle", "", 200, `"ttl_seconds":7200`},
		{"POST", "/" + id + "/keepalive", `{"ttl_seconds":0}`, 200, `"expires_at"`},
		{"GET", "/" + id + "/lifecycle", "", 200, `"ttl_seconds":7200`},
		{"PATCH", "/" + id + "/lifecycle", `{"ttl_seconds":30}`, 200, `"ttl_seconds":30`},
		{"PATCH", "/" + id + "/lifecycle", `{"persistent":true,"idle_seconds":60}`, 200, `"persistent":true,"idle_seconds":60`},
		{"GET", "?status=odd", "", 400, "statuses are"},
		{"GET", "?metadata=odd", "", 400, "KEY=VALUE"},
		{"GET", "?next_token=odd", "", 400, "page token"},
		{"GET", "?limit=0", "", 400, "limit"},
		{"POST", "/" + id + "/pause", "", 200, `"status":"paused"`},
		{"POST", "/" + id + "/pause", "", 409, "paused already"},
		{"POST", "/" + id + "/wake", "", 200, `"status":"running"`},
		{"POST", "/" + id + "/hibernate", "", 200, `"status":"paused"`},
		{"POST", "/" + id + "/resume", "", 200, `"status":"running"`},
		{"POST", "/" + id + "/fork", `{"count":3}`, 201, `"parent_id":"` + id + `","children":[{"id":"i`},
		{"POST", "/" + id + "/fork", "", 201, `"errors":[{"error":"no room for the last one"`},
		{"POST", "/" + id + "/fork", `{"count":101}`, 400, "count"},
		{"POST", "/inone/pause", "", 404, "not found"},
		{"POST", "/" + id + "/exec", `{"cmd":"echo hi; echo oops >&2; exit 3"}`, 200, `{"stdout":"hi\n","stderr":"oops\n","exit_code":3,`},
		{"POST", "/" + id + "/exec", `{"args":["cat"],"stdin":"aGVsbG8="}`, 200, `"stdout":"hello"`},
		{"POST", "/" + id + "/exec", `{"cmd":"exec sleep 30","timeout_seconds":0.05}`, 504, "timeout"},
		{"POST", "/" + id + "/exec", `{"args":["/no/such/command"]}`, 200, `"exit_code":127`},
		{"POST", "/" + id + "/exec", `{}`, 400, "no command"},
		{"POST", "/" + id + "/exec", `{"cmd":"a","args":["b"]}`, 400, "not both"},
		{"POST", "/" + id + "/exec/stream", `{"cmd":"printf a; printf b >&2; exit 4"}`, 200, "event: exit\ndata: {\"exit_code\":4"},
		{"POST", "/" + id + "/exec/stream", `{"cmd":"exec sleep 30","timeout_seconds":0.05}`, 200, "event: error\ndata: {\"error\":\"exec: timeout"},
		{"POST", "/inone/exec", `{"cmd":"x"}`, 404, "not found"},
		{"PUT", "/" + id + "/fs?path=/tmp/a", "content", 200, `{"path":"/tmp/a","bytes":7}`},
		{"PUT", "/" + id + "/fs?path=/proc/x", "content", 400, "permission denied"},
		{"PUT", "/" + id + "/fs", "content", 400, "path"},
		{"GET", "/" + id + "/fs?path=/tmp/a", "", 200, "content"},
		{"GET", "/" + id + "/fs/stat?path=/tmp/a", "", 200, `"mode":"0644","mtime":1000`},
		{"GET", "/" + id + "/fs/stat?path=/tmp/b", "", 404, "no such file"},
		{"GET", "/" + id + "/fs/dir?path=/tmp", "", 200, `"entries":[{"name":"a"`},
		{"DELETE", "/" + id + "/fs?path=/tmp/a", "", 204, ""},
		{"GET", "/" + id + "/fs?path=/tmp/a", "", 404, "no such file"},
		{"DELETE", "/" + id, "", 204, ""},
		{"POST", "/" + id + "/exec", `{"cmd":"x"}`, 404, "not found"},
	} {
		var in io.Reader
		ct := ""
		if tc.body != "" {
			in, ct = strings.NewReader(tc.body), "application/json"
		}
		status, answer := ts.do(t, tc.method, "/v1/sandboxes"+tc.path, ct, in)
		if status != tc.status || !strings.Contains(answer, tc.want) {
			t.Errorf("%s %s %s: got %d %s, want %d with %s", tc.method, tc.path, tc.body, status, answer, tc.status, tc.want)
		}
	}
}

// A file whose reading fails half-way must not look like a shorter file.
func TestBrokenDownloadIsNoShortFile(t *testing.T) {
	ts := newTestServer(t, nil)
	id := ts.sandbox(t)
	ts.sandboxes.guest.files["/broken"] = bytes.Repeat([]byte("x"), 100_000)
	req, _ := http.NewRequest(http.MethodGet, ts.URL+"/v1/sandboxes/"+id+"/fs?path=/broken", nil)
	req.Header.Set("Authorization", "Bearer "+testToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("%d bytes came without an error", n)
	}
}

func TestOtherOrganisationsDoNotExist(t *testing.T) {
	ts := newTestServer(t, nil)
	id := ts.sandbox(t)
	req, _ := http.NewRequest(http.MethodGet, ts.URL+"/v1/sandboxes/"+id, nil)
	req.Header.Set("Authorization", "Bearer other")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 404 {
		t.Errorf("status %d, want 404", resp.StatusCode)
	}
}

func TestStreamKeepsCharactersWhole(t *testing.T) {
	var chunks []string
	w := newTextWriter(func(s string) error { chunks = append(chunks, s); return nil })
	for _, b := range []byte("aé€😀z\xff") {
		if _, err := w.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = w.Write([]byte("\xe2\x82"))
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(chunks, "|"), "a|é|€|😀|z|\uFFFD|\uFFFD"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestExecWebSocket(t *testing.T) {
	ts := newTestServer(t, nil)
	id := ts.sandbox(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, ts.URL+"/v1/sandboxes/"+id+"/exec/ws", &websocket.DialOptions{
		HTTPHeader: http.Header{"Authorization": {"Bearer " + testToken}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	send := func(frame string) {
		if err := conn.Write(ctx, websocket.MessageText, []byte(frame)); err != nil {
			t.Fatal(err)
		}
	}
	last := func(id string) (out string, a socketAnswer) {
		for {
			_, data, err := conn.Read(ctx)
			if err != nil {
				t.Fatal(err)
			}
			a = socketAnswer{}
			if err := json.Unmarshal(data, &a); err != nil {
				t.Fatal(err)
			}
			if a.ID == id && (a.Exit != nil || a.Error != "") {
				return out, a
			}
			out += a.Data
		}
	}
	send(`{"id":"1","cmd":"echo hi; exit 5"}`)
	if out, a := last("1"); out != "hi\n" || a.Exit == nil || *a.Exit != 5 {
		t.Errorf("got %q %+v", out, a)
	}
	send(`{"id":"2","cmd":"exec sleep 60"}`)
	send(`{"id":"2","cancel":true}`)
	if _, a := last("2"); a.Error != "cancelled" {
		t.Errorf("cancel: %+v", a)
	}
	send(`{"id":"3"}`)
	if _, a := last("3"); !strings.Contains(a.Error, "no command") {
		t.Errorf("empty command: %+v", a)
	}
	send(`nonsense`)
	if _, a := last(""); !strings.Contains(a.Error, "JSON") {
		t.Errorf("nonsense: %+v", a)
	}
}

// Records for displays come only to those who ask for them, and leave the offsets as they are.
func TestBuildLogEvents(t *testing.T) {
	ts := newTestServer(t, nil)
	ct, body := form(t, part{name: "name", body: "hello"}, part{name: "dockerfile", body: "FROM scratch\n"})
	ts.do(t, "POST", "/v1/templates/build", ct, body)
	ts.templates.lines = []LogLine{
		{Next: 1, Stage: kiln.StageImage, Kind: kiln.LogBegin},
		{Next: 2, Stage: kiln.StageImage, Kind: kiln.LogEvent, Event: []byte(`{"vertexes":[]}`)},
		{Next: 3, Stage: kiln.StageImage, Kind: kiln.LogStep, Line: "#1 DONE"},
		{Next: 4, Stage: kiln.StageImage, Line: "done", Result: &kiln.StageResult{Stage: kiln.StageImage, Cached: true}},
	}
	for query, want := range map[string]int{"": 2, "?events=0": 2, "?events=1": 4, "?events=1&offset=1": 3, "?offset=3": 1} {
		status, got := ts.do(t, "GET", "/v1/templates/builds/bldhello1/logs"+query, "", nil)
		if n := strings.Count(got, `data: {"next":`); status != 200 || n != want {
			t.Errorf("%q: %d, %d records, want %d:\n%s", query, status, n, want, got)
		}
		if events := strings.Contains(got, `"kind":"event","event":{"vertexes":[]}`); events != strings.Contains(query, "events=1") {
			t.Errorf("%q: events: %v", query, events)
		}
	}
	const logs = "/v1/templates/builds/bldhello1/logs?offset=1"
	if _, got := ts.do(t, "GET", logs, "", nil); !strings.Contains(got, "id: 3\ndata: {\"next\":3") {
		t.Errorf("no ID: %s", got)
	}
	if _, got := ts.do(t, "GET", logs, "", nil, "Last-Event-ID", "3"); strings.Count(got, `data: {"next":`) != 1 {
		t.Errorf("after the ID 3: %s", got)
	}
}
