package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/guest"
)

func newClient(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	c, err := New(Options{Server: s.URL + "/", Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestErrorsComeBackAsTheyWere(t *testing.T) {
	for name, tc := range map[string]struct {
		status     int
		body       string
		code       kiln.ErrorCode
		text, hint string
	}{
		"known":    {404, `{"error":"template \"x\" not found","code":"not_found","hint":"list them"}`, kiln.CodeNotFound, `template "x" not found`, "list them"},
		"build":    {422, `{"error":"no","code":"build_failed","build_error":{"stage":"image","message":"no","file":"Dockerfile","line":3}}`, kiln.CodeBuildFailed, "Dockerfile:3", ""},
		"no Kiln":  {500, "<html>", kiln.CodeInternal, "500", "is it a Kiln server?"},
		"no error": {502, `{}`, kiln.CodeInternal, "502", "is it a Kiln server?"},
	} {
		c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer secret" {
				t.Errorf("%s: no token", name)
			}
			w.WriteHeader(tc.status)
			fmt.Fprint(w, tc.body)
		})
		_, err := c.GetTemplate(t.Context(), "x")
		if kiln.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), tc.hint) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestServerThatIsNotThere(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	c, err := New(Options{Server: gone.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ListSandboxes(t.Context(), kiln.SandboxFilter{}); kiln.CodeOf(err) != kiln.CodeUnavailable || !strings.Contains(err.Error(), "kiln serve") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.ListSandboxes(ctx, kiln.SandboxFilter{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for _, bad := range []string{"", "127.0.0.1:7070", "ftp://x", "http://", "://"} {
		if _, err := New(Options{Server: bad}); kiln.CodeOf(err) != kiln.CodeInvalid {
			t.Errorf("server %q: %v", bad, err)
		}
	}
}

func TestNamesAreEscaped(t *testing.T) {
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.EscapedPath() != "/v1/templates/a%2Fb:v1%3F" {
			t.Errorf("path %s", r.URL.EscapedPath())
		}
		w.WriteHeader(http.StatusNoContent)
	})
	if err := c.DeleteTemplate(t.Context(), "a/b:v1?"); err != nil {
		t.Fatal(err)
	}
}

func TestNamesThatAreNoSegment(t *testing.T) {
	c := newClient(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked %s %s", r.Method, r.URL) })
	for _, name := range []string{"", ".", ".."} {
		if err := c.DeleteTemplate(t.Context(), name); kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), "is no name") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestTokenOfTwoLines(t *testing.T) {
	if _, err := New(Options{Server: "http://127.0.0.1:1", Token: "kiln_a\n"}); kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), "token") {
		t.Errorf("got %v", err)
	}
}

// A log stream that breaks is taken up again after the last line that arrived whole.
func TestBuildLogIsTakenUpAgain(t *testing.T) {
	var offsets []string
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		offsets = append(offsets, r.URL.Query().Get("offset"))
		w.Header().Set("Content-Type", "text/event-stream")
		switch len(offsets) {
		case 1:
			io.WriteString(w, "data: {\"next\":10,\"stage\":\"image\",\"line\":\"one\"}\n\n: ping\n\ndata: {\"next\":20,\"li")
		case 2:
			io.WriteString(w, "data: {\"next\":20,\"line\":\"two\"}\n\nevent: error\ndata: {\"error\":\"cancelled\",\"code\":\"canceled\"}\n\n")
		default:
			io.WriteString(w, "data: {\"next\":30,\"line\":\"three\"}\n\nevent: done\ndata: {\"id\":\"b1\",\"status\":\"done\"}\n\n")
		}
	})
	var lines []string
	b, err := c.BuildLog(t.Context(), "b1", LogOptions{Follow: true}, func(l api.LogLine) error {
		lines = append(lines, l.Line)
		return nil
	})
	if err != nil || b.Status != api.BuildDone {
		t.Fatalf("%+v, %v", b, err)
	}
	if got := strings.Join(lines, " "); got != "one two three" {
		t.Errorf("lines %q", got)
	}
	if got := strings.Join(offsets, " "); got != "0 10 20" {
		t.Errorf("offsets %q", got)
	}
}

// TestBuildLogGivesUp: a server that stays away ends the reader, which says how to go on.
func TestBuildLogGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, asked := time.Now(), 0
		c, err := New(Options{Server: "http://kiln", Transport: transport(func(*http.Request) (*http.Response, error) {
			if asked++; asked > 1 {
				return nil, syscall.ECONNREFUSED
			}
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("data: {\"next\":30,\"line\":\"one\"}\n\n"))}, nil
		})})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.BuildLog(t.Context(), "b1", LogOptions{Follow: true}, func(api.LogLine) error { return nil })
		var e *kiln.Error
		if !errors.As(err, &e) || e.Code != kiln.CodeUnavailable || !strings.Contains(e.Hint, "kiln templates logs -f b1 --offset 30") {
			t.Errorf("%+v", err)
		}
		if took := time.Since(begun); took < 30*time.Second {
			t.Errorf("it gave up after %v", took)
		}
	})
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestBuildLogEnds(t *testing.T) {
	stop := errors.New("enough")
	for name, tc := range map[string]struct {
		answer string
		status int
		line   func(api.LogLine) error
		want   func(error) bool
	}{
		"refused":       {`{"error":"no such build","code":"not_found"}`, 404, nil, func(err error) bool { return kiln.CodeOf(err) == kiln.CodeNotFound }},
		"server error":  {"event: error\ndata: {\"error\":\"internal error\",\"code\":\"internal\"}\n\n", 200, nil, func(err error) bool { return kiln.CodeOf(err) == kiln.CodeInternal }},
		"reader's will": {"data: {\"next\":1,\"line\":\"x\"}\n\n", 200, func(api.LogLine) error { return stop }, func(err error) bool { return errors.Is(err, stop) }},
		"not events":    {"data: x\n\n", 200, nil, func(err error) bool { return err != nil }},
	} {
		c := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(tc.status)
			io.WriteString(w, tc.answer)
		})
		line := tc.line
		if line == nil {
			line = func(api.LogLine) error { return nil }
		}
		if _, err := c.BuildLog(t.Context(), "b", LogOptions{Follow: true}, line); !tc.want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The form that carries a context must not be held up by a server that has answered.
func TestCreateTemplateThatIsRefusedEarly(t *testing.T) {
	c := newClient(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		io.WriteString(w, `{"error":"taken","code":"conflict"}`)
	})
	_, err := c.CreateTemplate(t.Context(), CreateTemplate{Name: "x", Context: endless{}})
	if code := kiln.CodeOf(err); code != kiln.CodeConflict && code != kiln.CodeUnavailable { // the answer may come too late to be read
		t.Errorf("got %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestSandboxThatDoesNotRun(t *testing.T) {
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("E2b-Sandbox-Id") != "i1" || r.Header.Get("X-Api-Key") != "secret" {
			t.Errorf("headers %v", r.Header)
		}
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, `{"sandboxId":"i1","message":"gone","code":502}`)
	})
	g := c.Guest("i1")
	_, err := g.Run(t.Context(), guest.Command{Args: []string{"true"}})
	if kiln.CodeOf(err) != kiln.CodeNotFound || !errors.Is(err, guest.ErrGone) || !strings.Contains(err.Error(), `"i1"`) {
		t.Errorf("run: %v", err)
	}
	if _, err := g.Stat(t.Context(), "/"); !errors.Is(err, guest.ErrGone) {
		t.Errorf("stat: %v", err)
	}
}
