package test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// way is one way to name a service in a sandbox.
type way struct {
	name   string
	url    string // of the service, without a final slash
	header http.Header
	prefix string // that the service is told
	client *http.Client
}

// ports are the services of one sandbox.
type ports struct {
	*server
	id, token string
}

// ways returns all ways to a port, from what the CLI says. Host names are not looked up:
// everything is asked of the server.
func (p *ports) ways(t *testing.T, port string) []way {
	t.Helper()
	var said struct {
		URL     string            `json:"url"`
		PathURL string            `json:"path_url"`
		Headers map[string]string `json:"headers"`
	}
	if err := json.Unmarshal([]byte(p.must("sandbox", "port", p.id, port, "-o", "json")), &said); err != nil {
		t.Fatal(err)
	}
	if plain := strings.TrimSpace(p.must("sandbox", "port", p.id, port)); plain != said.URL || !strings.Contains(plain, port+"-"+p.id+".localhost") {
		t.Errorf("the URL is %q, and in JSON %q", plain, said.URL)
	}
	if plain := strings.TrimSpace(p.must("sandbox", "port", p.id, port, "--path")); plain != said.PathURL {
		t.Errorf("the URL by path is %q, and in JSON %q", plain, said.PathURL)
	}
	base, err := url.Parse(p.url())
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, base.Host)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport, Timeout: 2 * time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	named := http.Header{}
	for name, value := range said.Headers {
		named.Set(name, value)
	}
	below, err := url.Parse(said.PathURL)
	if err != nil {
		t.Fatal(err)
	}
	return []way{
		{"host name", strings.TrimSuffix(said.URL, "/"), http.Header{}, "", client},
		{"headers", p.url(), named, "", client},
		{"path", strings.TrimSuffix(said.PathURL, "/"), http.Header{"Authorization": {"Bearer " + p.token}}, strings.TrimSuffix(below.Path, "/"), client},
	}
}

func (s *server) url() string { return readServer(s.t, s.dataDir) }

func (w way) do(t *testing.T, method, path string, body io.Reader) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range w.header {
		req.Header[name] = values
	}
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatalf("%s %s by %s: %v", method, path, w.name, err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// refused fails the test unless a request is refused in the form that clients understand.
func (w way) refused(t *testing.T, path string, status int, message string) {
	t.Helper()
	resp := w.do(t, http.MethodGet, path, nil)
	var body struct {
		Message string
		Code    int
	}
	err := json.NewDecoder(resp.Body).Decode(&body)
	if err != nil || resp.StatusCode != status || body.Code != status || !strings.Contains(body.Message, message) || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s by %s: %d %+v, %v; want %d and %q", path, w.name, resp.StatusCode, body, err, status, message)
	}
}

// TestPorts reaches a service in a real VM through a real server in every way that there is,
// with everything that HTTP is used for.
func TestPorts(t *testing.T) {
	s := newServer(t)
	dir := writeFiles(t, map[string]string{
		"Dockerfile":         "FROM debian:bookworm-slim\nCOPY service /service\n",
		"kiln-template.toml": "start_cmd = \"/service\"\n[egress]\nmode = \"deny_all\"\n",
	})
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", filepath.Join(dir, "service"), "./portservice")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.must("templates", "build", "web", dir)
	token, err := os.ReadFile(filepath.Join(s.dataDir, "token"))
	if err != nil {
		t.Fatal(err)
	}
	p := &ports{s, strings.TrimSpace(s.must("sandbox", "create", "-t", "web", "--persistent")), strings.TrimSpace(string(token))}
	ways := p.ways(t, "8080")
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			w.testRequests(t)
			w.testStream(t)
			w.testSocket(t)
			w.refused(t, "/slam", http.StatusBadGateway, "without an answer")
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		for _, w := range p.ways(t, "8081") {
			w.refused(t, "/", http.StatusBadGateway, "nothing listens")
		}
	})
	t.Run("without a token", func(t *testing.T) {
		w := ways[2]
		w.header = nil
		w.refused(t, "/", http.StatusUnauthorized, "with a token")
	})
	t.Run("paused", func(t *testing.T) {
		for _, w := range ways {
			s.must("sandbox", "pause", p.id)
			if resp := w.do(t, http.MethodGet, "/", nil); resp.StatusCode != http.StatusOK {
				t.Errorf("a paused sandbox is not woken by %s: %s", w.name, resp.Status)
			}
		}
	})
	t.Run("forwarded by the CLI", p.testForward)
	t.Run("gone", func(t *testing.T) {
		s.must("sandbox", "destroy", p.id)
		for _, w := range ways {
			w.refused(t, "/", http.StatusBadGateway, "not found or has ended")
		}
	})
}

func (w way) testRequests(t *testing.T) {
	const size = 2 << 20
	body := bytes.Repeat([]byte("kiln, "), size/6)
	sum := sha256.Sum256(body)
	var got struct {
		Method, Path, Query, Host, Prefix, Proto, Authorization, Cookie string
		Bytes                                                           int64
		SHA256                                                          string
	}
	resp := w.do(t, http.MethodPost, "/a%2Fb/c?x=1&x=%20", bytes.NewReader(body))
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d, %v", resp.StatusCode, err)
	}
	u, _ := url.Parse(w.url)
	want := got
	want.Method, want.Path, want.Query, want.Host, want.Prefix, want.Proto, want.Authorization = "POST", "/a%2Fb/c", "x=1&x=%20", u.Host, w.prefix, "http", ""
	want.Bytes, want.SHA256 = int64(len(body)), hex.EncodeToString(sum[:])
	if got != want {
		t.Errorf("the service saw %+v, want %+v", got, want)
	}

	resp = w.do(t, http.MethodGet, "/redirect", nil)
	if location := resp.Header.Get("Location"); location != w.prefix+"/arrived" {
		t.Errorf("redirected to %q", location)
	}
	if c := resp.Cookies(); len(c) != 1 || c[0].Path != w.prefix+"/" || c[0].Domain != "" {
		t.Errorf("cookies %v", c)
	}
	if isolated := strings.HasPrefix(resp.Header.Get("Content-Security-Policy"), "sandbox"); isolated != (w.prefix != "") {
		t.Errorf("with an origin of its own: %v", isolated)
	}

	resp = w.do(t, http.MethodGet, "/download?bytes=8388608", nil)
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 8<<20 {
		t.Errorf("downloaded %d bytes, %v", n, err)
	}
}

// testStream reads events that come one after the other's arrival.
func (w way) testStream(t *testing.T) {
	resp := w.do(t, http.MethodGet, "/events", nil)
	events := bufio.NewReader(resp.Body)
	for i, want := range []string{"data: 0\n", "data: 1\n", "data: 2\n"} {
		if i > 0 {
			w.do(t, http.MethodPost, "/next", nil)
		}
		line, err := events.ReadString('\n')
		blank, err2 := events.ReadString('\n')
		if line != want || blank != "\n" || err != nil || err2 != nil {
			t.Fatalf("event %d: %q %q, %v, %v", i, line, blank, err, err2)
		}
	}
	if _, err := events.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last event: %v", err)
	}
}

func (w way) testSocket(t *testing.T) {
	// Not the client with a time limit: it would end the connection.
	conn, resp, err := websocket.Dial(t.Context(), w.url+"/socket", &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: w.client.Transport}, HTTPHeader: w.header,
	})
	if err != nil {
		t.Fatalf("%v (%v)", err, resp)
	}
	defer conn.CloseNow() //nolint:errcheck // the test is over
	conn.SetReadLimit(-1)
	large := bytes.Repeat([]byte{0, 1, 2, 255}, 1<<16)
	for _, m := range []struct {
		kind websocket.MessageType
		data []byte
	}{{websocket.MessageText, []byte("hello")}, {websocket.MessageBinary, large}, {websocket.MessageText, []byte("again")}} {
		if err := conn.Write(t.Context(), m.kind, m.data); err != nil {
			t.Fatal(err)
		}
		kind, data, err := conn.Read(t.Context())
		if err != nil || kind != m.kind || !bytes.Equal(data, m.data) {
			t.Fatalf("%d bytes came back as %d, %v", len(m.data), len(data), err)
		}
	}
	if err := conn.Write(t.Context(), websocket.MessageText, []byte("bye")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.Read(t.Context()); websocket.CloseStatus(err) != 4000 {
		t.Errorf("the service's parting words were lost: %v", err)
	}
}

// testForward asks a local address that the CLI forwards.
func (p *ports) testForward(t *testing.T) {
	cmd := exec.Command(filepath.Join(p.bin, "kiln"), "sandbox", "port", p.id, "8080", "--listen", "127.0.0.1:0")
	cmd.Env = p.env()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_, _ = io.Copy(io.Discard, stdout)
		if err := cmd.Wait(); err != nil {
			t.Errorf("interrupted: %v", err)
		}
	}()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	at := regexp.MustCompile(`http://[0-9.:]+`).FindString(line)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	w := way{"forwarded address", at, http.Header{}, "", &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	w.testRequests(t)
	w.testStream(t)
	w.testSocket(t)
}
