package sandboxd_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln/internal/sandboxd/sandboxdtest"
)

// form makes a multipart body; pairs are the file name and content of each part "file".
func form(t *testing.T, pairs ...string) (contentType, body string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		header := textproto.MIMEHeader{}
		header.Set("Content-Disposition", fmt.Sprintf(`form-data; name="file"; filename=%q`, pairs[i]))
		part, err := w.CreatePart(header)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(part, pairs[i+1])
	}
	w.Close()
	return w.FormDataContentType(), b.String()
}

func filesURL(d *sandboxdtest.Daemon, pairs ...string) string {
	query := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		query.Set(pairs[i], pairs[i+1])
	}
	return d.URL + "/files?" + query.Encode()
}

func upload(t *testing.T, target, contentType, body string, header ...string) (int, string) {
	t.Helper()
	r := request(t, http.MethodPost, target, body)
	r.Header.Set("Content-Type", contentType)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	status, _, text := send(t, r)
	return status, strings.TrimSpace(text)
}

func TestUploadForms(t *testing.T) {
	d := sandboxdtest.Start(t)
	kind, body := form(t, d.Home+"/x/one", "1", "two", "2")
	status, answer := upload(t, filesURL(d, "username", "agent"), kind, body)
	want := fmt.Sprintf(`[{"path":"%[1]s/x/one","name":"one","type":"file"},{"path":"%[1]s/two","name":"two","type":"file"}]`, d.Home)
	if status != 200 || answer != want {
		t.Errorf("%d %s, want %s", status, answer, want)
	}
	kind, body = form(t, "ignored/name", "3")
	if status, answer := upload(t, filesURL(d, "path", "~/three", "username", "agent"), kind, body); status != 200 {
		t.Errorf("%d %s", status, answer)
	}
	for name, want := range map[string]string{"x/one": "1", "two": "2", "three": "3"} {
		if got, err := os.ReadFile(d.Home + "/" + name); string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	two, twoBody := form(t, "a", "1", "b", "2")
	none, noneBody := form(t)
	for name, test := range map[string]struct {
		target, kind, body string
		status             int
	}{
		"two files for one path": {filesURL(d, "path", d.Home+"/y"), two, twoBody, 400},
		"no file":                {filesURL(d), none, noneBody, 400},
		"truncated":              {filesURL(d), two, twoBody[:len(twoBody)/2], 400},
		"no path":                {filesURL(d), "application/octet-stream", "x", 400},
		"other type":             {filesURL(d, "path", d.Home+"/z"), "text/plain", "x", 400},
		"unknown user":           {filesURL(d, "path", "z", "username", "stranger"), "application/octet-stream", "x", 401},
	} {
		status, answer := upload(t, test.target, test.kind, test.body)
		var body struct {
			Code    int
			Message string
		}
		if err := json.Unmarshal([]byte(answer), &body); err != nil || status != test.status || body.Code != status || body.Message == "" {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
}

func TestUploadGzipAndMetadata(t *testing.T) {
	d := sandboxdtest.Start(t)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = io.WriteString(w, strings.Repeat("text ", 1000))
	w.Close()
	path := d.Home + "/f"
	status, answer := upload(t, filesURL(d, "path", path), "application/octet-stream", packed.String(),
		"Content-Encoding", "gzip", "X-Metadata-Colour", "blue", "X-Metadata-Size", "big")
	if status != 200 || !strings.Contains(answer, `"metadata":{"colour":"blue","size":"big"}`) {
		t.Errorf("%d %s", status, answer)
	}
	if got, _ := os.ReadFile(path); string(got) != strings.Repeat("text ", 1000) {
		t.Errorf("%d bytes", len(got))
	}
	if status, answer := upload(t, filesURL(d, "path", path), "application/octet-stream", "x", "X-Metadata-Colour", "red"); status != 200 {
		t.Errorf("%d %s", status, answer)
	}
	if _, answer := rpc(t, d, "filesystem.Filesystem/Stat", `{"path":"`+path+`"}`); fmt.Sprint(answer["entry"].(map[string]any)["metadata"]) != "map[colour:red]" {
		t.Errorf("%v", answer)
	}
	for coding, body := range map[string]string{"gzip": "no gzip", "br": "x"} {
		if status, _ := upload(t, filesURL(d, "path", path), "application/octet-stream", body, "Content-Encoding", coding); status != 400 {
			t.Errorf("%s: %d", coding, status)
		}
	}
}

func TestDownload(t *testing.T) {
	d := sandboxdtest.Start(t)
	path := d.Home + "/data"
	if err := os.WriteFile(path, []byte("0123456789"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.Home+"/empty", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, path, header, value string
		status                    int
		body                      string
	}{
		{"whole", path, "", "", 200, "0123456789"},
		{"relative to home", "data", "", "", 200, "0123456789"},
		{"from home", "~/data", "", "", 200, "0123456789"},
		{"range", path, "Range", "bytes=2-4", 206, "234"},
		{"suffix", path, "Range", "bytes=-3", 206, "789"},
		{"bad range", path, "Range", "bytes=50-", 416, ""},
		{"not modified", path, "If-Modified-Since", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), 304, ""},
		{"empty", d.Home + "/empty", "", "", 200, ""},
		{"plain is preferred", path, "Accept-Encoding", "gzip, deflate, br", 200, "0123456789"},
		{"nothing acceptable", path, "Accept-Encoding", "br, identity;q=0", 406, ""},
		{"directory", d.Home, "", "", 400, ""},
		{"missing", "nothing", "", "", 404, ""},
		{"NUL", "a\x00b", "", "", 400, ""},
	} {
		r := request(t, http.MethodGet, filesURL(d, "path", test.path, "username", "agent"), "")
		if test.header != "" {
			r.Header.Set(test.header, test.value)
		}
		status, header, body := send(t, r)
		if status != test.status || test.body != "" && body != test.body {
			t.Errorf("%s: %d %q, want %d %q", test.name, status, body, test.status, test.body)
		}
		if test.name == "empty" && header.Get("Content-Length") != "0" {
			t.Errorf("empty: Content-Length %q", header.Get("Content-Length"))
		}
	}
	r := request(t, http.MethodGet, filesURL(d, "path", path), "")
	r.Header.Set("Accept-Encoding", "gzip, identity;q=0")
	_, header, body := send(t, r)
	plain, err := gzip.NewReader(strings.NewReader(body))
	if err != nil || header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("%v, %v", err, header)
	}
	if text, err := io.ReadAll(plain); string(text) != "0123456789" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestCompose(t *testing.T) {
	d := sandboxdtest.Start(t)
	for name, text := range map[string]string{"a": "one ", "b": "two"} {
		if err := os.WriteFile(d.Home+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	status, answer := upload(t, d.URL+"/files/compose", "application/json", `{"source_paths":["a","b"],"destination":"out/c","username":"agent"}`)
	got, _ := os.ReadFile(d.Home + "/out/c")
	if status != 200 || string(got) != "one two" || !strings.Contains(answer, `"name":"c"`) {
		t.Errorf("%d %s: %q", status, answer, got)
	}
	for _, body := range []string{`{"source_paths":["a","nothing"],"destination":"d","username":"agent"}`,
		`{"source_paths":["a"],"destination":"a","username":"agent"}`, `{}`, `nonsense`} {
		if status, answer := upload(t, d.URL+"/files/compose", "application/json", body); status != 400 && status != 404 {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
}

func initDaemon(t *testing.T, d *sandboxdtest.Daemon, body string) int {
	t.Helper()
	status, _ := upload(t, d.URL+"/init", "application/json", body)
	return status
}

func TestAccessToken(t *testing.T) {
	d := sandboxdtest.Start(t)
	if status := initDaemon(t, d, `{"accessToken":"secret"}`); status != 204 {
		t.Fatal(status)
	}
	for _, test := range []struct {
		method, path string
		open         bool
	}{
		{"GET", "/health", true}, {"GET", "/files?path=/etc/passwd", false}, {"POST", "/files?path=/x", false},
		{"GET", "/envs", false}, {"GET", "/metrics", false}, {"POST", "/files/compose", false}, {"POST", "/quiesce", false},
		{"POST", "/shutdown", false}, {"POST", "/process.Process/List", false}, {"POST", "/filesystem.Filesystem/Stat", false}, {"GET", "/other", false},
	} {
		r := request(t, test.method, d.URL+test.path, "{}")
		r.Header.Set("Content-Type", "application/json")
		if status, _, _ := send(t, r); (status != 401) != test.open {
			t.Errorf("%s %s without token: %d", test.method, test.path, status)
		}
	}
	r := request(t, "GET", d.URL+"/envs", "")
	r.Header.Set("X-Access-Token", "secret")
	if status, _, _ := send(t, r); status != 200 {
		t.Errorf("with token: %d", status)
	}
	for body, want := range map[string]int{`{}`: 401, `{"accessToken":"other"}`: 401, `{"accessToken":"secret"}`: 204} {
		if status := initDaemon(t, d, body); status != want {
			t.Errorf("init %s: %d", body, status)
		}
	}
	s := openStream(t, d, "process.Process/Start", `{"process":{"cmd":"true"}}`)
	if flags, text := s.next(); s.status != 200 || flags != 2 || !strings.Contains(text, "unauthenticated") {
		t.Errorf("stream: %d, %d %s", s.status, flags, text)
	}
}

func TestFileSignature(t *testing.T) {
	d := sandboxdtest.Start(t)
	path := d.Home + "/f"
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	initDaemon(t, d, `{"accessToken":"tok"}`)
	signature := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return "v1_" + strings.TrimRight(base64.StdEncoding.EncodeToString(sum[:]), "=")
	}
	later, earlier := fmt.Sprint(time.Now().Unix()+60), fmt.Sprint(time.Now().Unix()-60)
	for _, test := range []struct {
		name, method string
		query        []string
		status       int
	}{
		{"read", "GET", []string{"path", path, "signature", signature(path + ":read::tok")}, 200},
		{"read as user", "GET", []string{"path", "f", "username", "agent", "signature", signature("f:read:agent:tok")}, 200},
		{"expires later", "GET", []string{"path", path, "signature", signature(path + ":read::tok:" + later), "signature_expiration", later}, 200},
		{"write", "POST", []string{"path", path, "signature", signature(path + ":write::tok")}, 200},
		{"expired", "GET", []string{"path", path, "signature", signature(path + ":read::tok:" + earlier), "signature_expiration", earlier}, 401},
		{"expiration not signed", "GET", []string{"path", path, "signature", signature(path + ":read::tok"), "signature_expiration", later}, 401},
		{"other path", "GET", []string{"path", "/etc/passwd", "signature", signature(path + ":read::tok")}, 401},
		{"other operation", "POST", []string{"path", path, "signature", signature(path + ":read::tok")}, 401},
		{"other user", "GET", []string{"path", path, "username", "agent", "signature", signature(path + ":read::tok")}, 401},
		{"other token", "GET", []string{"path", path, "signature", signature(path + ":read::not")}, 401},
		{"none", "GET", []string{"path", path}, 401},
	} {
		r := request(t, test.method, filesURL(d, test.query...), "x")
		r.Header.Set("Content-Type", "application/octet-stream")
		if status, _, text := send(t, r); status != test.status {
			t.Errorf("%s: %d %s", test.name, status, text)
		}
	}
}

func TestInit(t *testing.T) {
	d := sandboxdtest.Start(t)
	for _, test := range []struct {
		body   string
		status int
		envs   string
	}{
		{`{"envVars":{"A":"1"},"timestamp":"2030-01-01T00:00:00Z","lifecycleID":"unknown fields are ignored"}`, 204, `{"A":"1"}`},
		{`{"envVars":{"A":"old"},"timestamp":"2029-01-01T00:00:00Z"}`, 204, `{"A":"1"}`},
		{`{"envVars":{"B":"2"},"timestamp":"2031-01-01T00:00:00Z"}`, 204, `{"B":"2"}`},
		{`{"imageEnv":{"I":"i","B":"i"}}`, 204, `{"B":"2","I":"i"}`},
		{`{"defaultUser":"stranger"}`, 400, `{"B":"2","I":"i"}`},
		{`{"entropy":"c2hvcnQ=","envVars":{}}`, 400, `{"B":"2","I":"i"}`},
		{`{"envVars":"no"}`, 400, `{"B":"2","I":"i"}`},
		{`{"defaultUser":"agent","defaultWorkdir":"/tmp"}`, 204, `{"B":"2","I":"i"}`},
	} {
		if status := initDaemon(t, d, test.body); status != test.status {
			t.Errorf("%s: %d, want %d", test.body, status, test.status)
		}
		if _, _, envs := send(t, request(t, "GET", d.URL+"/envs", "")); strings.TrimSpace(envs) != test.envs {
			t.Errorf("after %s: %s, want %s", test.body, envs, test.envs)
		}
	}
	if clocks := d.System.Calls().Clocks; len(clocks) != 2 {
		t.Errorf("clock set to %v", clocks)
	}
	s := openStream(t, d, "process.Process/Start", `{"process":{"cmd":"sh","args":["-c","id -u; pwd; cd; pwd"]}}`)
	s.started()
	if output, _ := s.rest(); output["stdout"] != "12345\n/tmp\n"+d.Home+"\n" {
		t.Errorf("%q", output)
	}
}

// TestHazard03InitStepsTheClockEitherWay: the snapshot may be older or newer than the
// host's time by any amount; the first word of the host after a restore counts.
func TestHazard03InitStepsTheClockEitherWay(t *testing.T) {
	for _, years := range []int{-10, 10} {
		d := sandboxdtest.Start(t)
		if status := initDaemon(t, d, `{"imageEnv":{},"defaultUser":"root"}`); status != 204 { // before the capture
			t.Fatal(status)
		}
		want := time.Now().AddDate(years, 0, 0).UTC()
		if status := initDaemon(t, d, `{"timestamp":"`+want.Format(time.RFC3339Nano)+`"}`); status != 204 {
			t.Fatal(status)
		}
		if clocks := d.System.Calls().Clocks; len(clocks) != 1 || !clocks[0].Equal(want) {
			t.Errorf("%d years: clock set to %v, want %v", years, clocks, want)
		}
	}
}

func TestHealthMetricsAndUnknown(t *testing.T) {
	d := sandboxdtest.Start(t)
	if status, _, body := send(t, request(t, "GET", d.URL+"/health", "")); status != 204 || body != "" {
		t.Errorf("%d %q", status, body)
	}
	_, _, body := send(t, request(t, "GET", d.URL+"/metrics", ""))
	var m map[string]float64
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ts", "cpu_count", "mem_total", "mem_used", "mem_cache", "mem_total_mib", "mem_used_mib", "disk_used", "disk_total"} {
		if m[name] <= 0 {
			t.Errorf("%s is %v in %s", name, m[name], body)
		}
	}
	if used, ok := m["cpu_used_pct"]; !ok || used < 0 || used > 100 {
		t.Errorf("cpu_used_pct %v", used)
	}
	if status, _, body := send(t, request(t, "POST", d.URL+"/freeze", "")); status != 404 || !strings.Contains(body, `"code":404`) {
		t.Errorf("%d %s", status, body)
	}
}
