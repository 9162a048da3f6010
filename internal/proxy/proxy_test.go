package proxy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/proxy"
)

// world is one organisation "ours" with the token "kiln_good" and one sandbox "ibox", whose
// daemon tells what it was asked and with which access token.
type world struct{ daemon *guest.Client }

func (w world) Lookup(_ context.Context, id string) (string, *guest.Client, error) {
	if id != "ibox" {
		return "", nil, kiln.Errorf(kiln.CodeNotFound, "sandbox %q", id)
	}
	return "ours", w.daemon, nil
}

func (world) Authenticate(_ context.Context, token string) (kiln.Principal, error) {
	switch token {
	case "kiln_good":
		return kiln.Principal{OrgID: "ours", Scopes: []kiln.Scope{kiln.ScopeSandboxesWrite}}, nil
	case "kiln_reader":
		return kiln.Principal{OrgID: "ours", Scopes: []kiln.Scope{kiln.ScopeSandboxesRead}}, nil
	case "kiln_foreign":
		return kiln.Principal{OrgID: "theirs", Scopes: []kiln.Scope{kiln.ScopeAdmin}}, nil
	}
	if token == "kiln_broken" {
		return kiln.Principal{}, errors.New("the database does not answer")
	}
	return kiln.Principal{}, kiln.Errorf(kiln.CodeUnauthorized, "wrong token")
}

func start(t *testing.T) *httptest.Server { return startTraced(t, nil) }

func startTraced(t *testing.T, traces trace.TracerProvider) *httptest.Server {
	t.Helper()
	daemon := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, values := range r.URL.Query() { // what the service is to answer
			w.Header()[name] = values
		}
		w.Header().Set("Seen-Prefix", r.Header.Get("X-Forwarded-Prefix"))
		w.Header().Set("Seen-For", r.Header.Get("X-Forwarded-For"))
		w.Header().Set("Seen-Trace", r.Header.Get("Traceparent"))
		if r.URL.Path == "/cut" {
			fmt.Fprint(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		if r.URL.Path == "/echo" {
			if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
				t.Error(err)
			}
			buffer := make([]byte, 100)
			for { // an answer that begins at once
				if err := http.NewResponseController(w).Flush(); err != nil {
					t.Error(err)
				}
				n, err := r.Body.Read(buffer)
				_, _ = w.Write(buffer[:n])
				if err != nil {
					return
				}
			}
		}
		if port := r.Header.Get(proxy.HeaderSandboxPort); port != "" {
			fmt.Fprintf(w, "%s ", port)
		}
		fmt.Fprintf(w, "%s token=%s user=%s leaked=%s%s", r.URL.Path, r.Header.Get("X-Access-Token"),
			strings.Join(r.Header["Authorization"], "|"), strings.Join(r.Header[proxy.HeaderToken], "|"), r.Header.Get(proxy.HeaderSandboxID))
	}))
	t.Cleanup(daemon.Close)
	client := guest.New(func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", daemon.Listener.Addr().String())
	})
	t.Cleanup(client.Close)
	client.UseToken("secret")
	w := world{client}
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "api") })
	s := httptest.NewServer(proxy.Handler(proxy.Options{Sandboxes: w, Auth: w, Domain: "box.test", Next: next, Traces: traces}))
	t.Cleanup(s.Close)
	return s
}

// below is the path of a service.
const below = "/v1/sandboxes/ibox/ports/8080"

func TestProxy(t *testing.T) {
	s := start(t)
	type header map[string]string
	box := func(more header) header {
		h := header{proxy.HeaderSandboxID: "ibox", proxy.HeaderSandboxPort: "49983"}
		for k, v := range more {
			h[k] = v
		}
		return h
	}
	port := func(more header) header {
		h := box(more)
		h[proxy.HeaderSandboxPort] = "8080"
		return h
	}
	for _, c := range []struct {
		name, path, host string
		header           header
		status           int
		want             string // "" means do not compare
	}{
		{"no sandbox named", "/v1/templates", "", nil, 200, "api"},
		{"other host", "/", "49983-ibox.other.test", nil, 200, "api"},
		{"owner by key", "/files", "", box(header{"X-API-Key": "kiln_good"}), 200, "/files token=secret user= leaked="},
		{"owner by bearer", "/files", "", box(header{"Authorization": "Bearer kiln_good"}), 200, "/files token=secret user= leaked="},
		{"owner with a user", "/files", "", box(header{"X-API-Key": "kiln_good", "Authorization": "Basic bWU6"}), 200, "/files token=secret user=Basic bWU6 leaked="},
		{"nobody gets no token", "/files", "", box(nil), 200, "/files token= user= leaked="},
		{"to another organisation it does not exist", "/files", "", box(header{"X-API-Key": "kiln_foreign"}), 502, ""},
		{"reading token reads", "/files", "", box(header{"X-API-Key": "kiln_reader"}), 200, "/files token=secret user= leaked="},
		{"wrong token gets no token", "/files", "", box(header{"X-API-Key": "bad"}), 200, "/files token= user= leaked="},
		{"own access token", "/files", "", box(header{"X-Access-Token": "mine"}), 200, "/files token=mine user= leaked="},
		{"by host name", "/health", "49983-ibox.box.test:7070", nil, 200, "/health token= user= leaked="},
		{"unknown sandbox", "/health", "", header{proxy.HeaderSandboxID: "igone", proxy.HeaderSandboxPort: "49983"}, 502, ""},
		{"half of the headers", "/health", "", header{proxy.HeaderSandboxID: "ibox"}, 400, ""},
		{"other port", "/x", "", port(nil), 200, "8080 /x token= user= leaked="},
		{"other port, paths are the service's", "/init", "", port(nil), 200, "8080 /init token= user= leaked="},
		{"other port by host name", "/", "8080-ibox.box.test", nil, 200, "8080 / token= user= leaked="},
		{"other port sees no Kiln token", "/", "", port(header{"X-API-Key": "kiln_foreign", "Authorization": "Bearer kiln_good"}), 200, "8080 / token= user= leaked="},
		{"other port sees its own token", "/", "", port(header{"Authorization": "Bearer app"}), 200, "8080 / token= user=Bearer app leaked="},
		{"other port of an unknown sandbox", "/", "", header{proxy.HeaderSandboxID: "igone", proxy.HeaderSandboxPort: "8080"}, 502, ""},
		{"no port", "/", "", header{proxy.HeaderSandboxID: "ibox", proxy.HeaderSandboxPort: "70000"}, 400, ""},
		{"no port in the host name", "/", "web-ibox.box.test", nil, 400, ""},
		{"by path", below + "/x%2Fy/?q", "", header{"Authorization": "Bearer kiln_good"}, 200, "8080 /x/y/ token= user= leaked="},
		{"by path, the root", below + "/", "", header{"X-API-Key": "kiln_good"}, 200, "8080 / token= user= leaked="},
		{"by path, without the slash", below, "", header{"X-API-Key": "kiln_good"}, 200, "api"},
		{"by path, escaped", "/v1/sandboxes/ibox/%70orts/8080/", "", header{"X-API-Key": "kiln_good"}, 200, "api"},
		{"by path with a reading token", below + "/", "", header{"X-API-Key": "kiln_reader"}, 200, "8080 / token= user= leaked="},
		{"by path, a connection with a reading token", below + "/", "", header{"X-API-Key": "kiln_reader", "Connection": "Upgrade", "Upgrade": "websocket"}, 403, ""},
		{"by path without a token", below + "/", "", nil, 401, ""},
		{"by path with a wrong token", below + "/", "", header{"X-API-Key": "bad"}, 401, ""},
		{"by path from another organisation", below + "/", "", header{"X-API-Key": "kiln_foreign"}, 502, ""},
		{"by path, unknown sandbox", "/v1/sandboxes/igone/ports/80/", "", header{"X-API-Key": "kiln_good"}, 502, ""},
		{"by path, unknown sandbox without a token", "/v1/sandboxes/igone/ports/80/", "", nil, 401, ""},
		{"by path, no port", "/v1/sandboxes/ibox/ports/0/", "", header{"X-API-Key": "kiln_good"}, 400, ""},
		{"by path, the daemon", "/v1/sandboxes/ibox/ports/49983/files", "", header{"X-API-Key": "kiln_good"}, 200, "/files token=secret user= leaked="},
		{"by path, the daemon without a token", "/v1/sandboxes/ibox/ports/49983/files", "", nil, 401, ""},
		{"by path, init", "/v1/sandboxes/ibox/ports/49983/init", "", header{"X-API-Key": "kiln_good"}, 403, ""},
		{"by path, init, disguised", "/v1/sandboxes/ibox/ports/49983/%69nit/.", "", header{"X-API-Key": "kiln_good"}, 403, ""},
		{"init", "/init", "", box(header{"X-API-Key": "kiln_good"}), 403, ""},
		{"init, disguised", "/x/..//init/", "", box(header{"X-API-Key": "kiln_good"}), 403, ""},
		{"quiesce", "/quiesce", "", box(header{"X-API-Key": "kiln_good"}), 403, ""},
		{"root", "/root", "", box(header{"X-API-Key": "kiln_good"}), 403, ""},
		{"shutdown", "/shutdown", "", box(nil), 403, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if c.host != "" {
				req.Host = c.host
			}
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != c.status || c.want != "" && string(text) != c.want {
				t.Errorf("%d %s, want %d %s", resp.StatusCode, text, c.status, c.want)
			}
			var body struct {
				SandboxID string `json:"sandboxId"`
				Message   string
				Code      int
			}
			if c.status >= 400 && (json.Unmarshal(text, &body) != nil || body.Code != c.status || body.Message == "") {
				t.Errorf("the body of an error is %s", text)
			}
		})
	}
}

// Whatever the two headers hold together, Kiln's tokens do not reach the sandbox, and a
// service's own credentials do.
func TestTokensStayOutside(t *testing.T) {
	s := start(t)
	const path, host, daemon = "by path", "by host", "the daemon"
	const anybody = -1 // no token that Kiln knows
	// whose a credential is: the status by path of whoever has it
	authorizations := map[string]int{
		"": anybody, "Bearer kiln_good": 200, "bearer  kiln_good": 200, "Bearer kiln_foreign": 502, "Bearer kiln_expired": anybody,
		"Bearer kiln_broken": 503, "Bearer app": anybody, "Basic YXBwOg==": anybody, "kiln_good": anybody, "Token kiln_good": anybody,
		"Token token=\"kiln_good\"": anybody, "Bearer app,kiln_good": anybody,
	}
	keys := map[string]int{"": anybody, "kiln_good": 200, "kiln_foreign": 502, "kiln_expired": anybody, "kiln_broken": 503, "app": anybody}
	for authorization, first := range authorizations {
		for key, second := range keys {
			for _, way := range []string{path, host, daemon} {
				name := fmt.Sprintf("%q, %q, %s", authorization, key, way)
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/", nil)
				if err != nil {
					t.Fatal(err)
				}
				switch way {
				case path:
					req.URL.Path = below + "/"
				case host:
					req.Host = "8080-ibox.box.test"
				case daemon:
					req.Host = "49983-ibox.box.test"
				}
				if authorization != "" {
					req.Header.Set("Authorization", authorization)
				}
				if key != "" {
					req.Header.Set("X-API-Key", key)
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				text, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if strings.Contains(string(text), "kiln_") {
					t.Errorf("%s: the sandbox saw %s", name, text)
				}
				want := first
				if first == anybody {
					want = second
				}
				switch {
				case want == anybody && way == path:
					want = 401
				case want == anybody, way == host && want == 502: // services are open
					want = 200
				}
				if resp.StatusCode != want {
					t.Errorf("%s: %d %s, want %d", name, resp.StatusCode, text, want)
				}
				if want != 200 {
					continue
				}
				kept := func(credential string) string {
					if strings.Contains(credential, "kiln_") || way == daemon && strings.HasPrefix(credential, "Bearer") {
						return ""
					}
					return credential
				}
				shown := "user=" + kept(authorization) + " leaked="
				if way != daemon { // which knows no keys
					shown += kept(key)
				}
				if !strings.HasSuffix(string(text), shown) {
					t.Errorf("%s: the sandbox saw %s, want %s", name, text, shown)
				}
			}
		}
	}
}

// What a service answers has no effect on others that share its origin.
func TestAnswersAreConfined(t *testing.T) {
	s := start(t)
	host := strings.TrimPrefix(s.URL, "http://")
	for _, c := range []struct {
		name, answer, byPath, byHost string
	}{
		{"Set-Cookie", "a=Domain=x; Path=/; Domain=box.test; HttpOnly", "a=Domain=x; Path=" + below + "/; HttpOnly", "a=Domain=x; Path=/; HttpOnly"},
		{"Set-Cookie", "a=1; path = /app;secure", "a=1; path=" + below + "/app;secure", "a=1; path = /app;secure"},
		{"Set-Cookie", "a=1", "a=1", "a=1"},
		{"Location", "/login?to=%2F#x", below + "/login?to=%2F#x", "/login?to=%2F#x"},
		{"Location", "/a%2Fb", below + "/a%2Fb", "/a%2Fb"},
		{"Location", "login", "login", "login"},
		{"Location", below + "/login", below + "/login", below + "/login"},
		{"Location", "http://" + host + "/x", "http://" + host + below + "/x", "http://" + host + "/x"},
		{"Location", "https://elsewhere.test/x", "https://elsewhere.test/x", "https://elsewhere.test/x"},
		{"Location", "//elsewhere.test/x", "//elsewhere.test/x", "//elsewhere.test/x"},
		{"Clear-Site-Data", `"*"`, "", `"*"`},
		{"Service-Worker-Allowed", "/", "", "/"},
		{"Content-Security-Policy", "default-src 'self'", "default-src 'self' | sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts", "default-src 'self'"},
		{"Seen-Prefix", "", below, ""},
		{"Seen-For", "", "127.0.0.1", "127.0.0.1"},
	} {
		query := "/?" + url.Values{c.name: {c.answer}}.Encode()
		for how, ask := range map[string]struct{ url, host, want string }{
			"path": {s.URL + below + query, "", c.byPath}, "host": {s.URL + query, "8080-ibox.box.test", c.byHost},
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, ask.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = ask.host
			req.Header.Set("X-API-Key", "kiln_good")
			req.Header.Set("X-Forwarded-Prefix", "/forged")
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if got := strings.Join(resp.Header[c.name], " | "); got != ask.want {
				t.Errorf("%s %q by %s: %q, want %q", c.name, c.answer, how, got, ask.want)
			}
		}
	}
}

// An answer may begin before the request has ended, as that of a command does whose input
// still comes: nothing of the request is lost, and the answer is not cut off.
func TestAnswersBeforeTheEndOfTheRequest(t *testing.T) {
	s := start(t)
	for _, port := range []string{"49983", "8080"} {
		t.Run(port, func(t *testing.T) {
			body, feed := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/echo", body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set(proxy.HeaderSandboxID, "ibox")
			req.Header.Set(proxy.HeaderSandboxPort, port)
			req.Header.Set("Authorization", "Bearer kiln_good")
			go func() {
				if _, err := io.WriteString(feed, "first "); err != nil {
					t.Error(err)
				}
			}()
			resp, err := s.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			first := make([]byte, len("first "))
			if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "first " {
				t.Fatalf("%q, %v", first, err)
			}
			if _, err := io.WriteString(feed, "second"); err != nil {
				t.Fatal(err)
			}
			feed.Close()
			if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "second" {
				t.Errorf("%q, %v", rest, err)
			}
		})
	}
}
