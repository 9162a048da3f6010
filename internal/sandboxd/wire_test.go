package sandboxd_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln/internal/sandboxd/sandboxdtest"
)

// The tests of this file speak the protocol byte by byte, as the published clients do,
// because a generated client would hide a change of it.

// rpc posts JSON to a unary method and returns status and answer.
func rpc(t *testing.T, d *sandboxdtest.Daemon, method, body string) (int, map[string]any) {
	t.Helper()
	r := request(t, http.MethodPost, d.URL+"/"+method, body)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Connect-Protocol-Version", "1")
	status, _, text := send(t, r)
	var answer map[string]any
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		t.Fatalf("%s: %q: %v", method, text, err)
	}
	return status, answer
}

func request(t *testing.T, method, url, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func send(t *testing.T, r *http.Request) (int, http.Header, string) {
	t.Helper()
	transport := &http.Transport{DisableCompression: true, DisableKeepAlives: true}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, answer.Header, string(text)
}

// stream is an answer of JSON messages in frames.
type stream struct {
	t      *testing.T
	r      *bufio.Reader
	cancel context.CancelFunc
	status int
	header http.Header
}

// openStream posts one JSON message to a streaming method.
func openStream(t *testing.T, d *sandboxdtest.Daemon, method, message string, header ...string) *stream {
	t.Helper()
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, d.URL+"/"+method, bytes.NewReader(append(frame, message...)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/connect+json")
	r.Header.Set("Connect-Protocol-Version", "1")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	transport := &http.Transport{DisableKeepAlives: true}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); answer.Body.Close() })
	return &stream{t, bufio.NewReader(answer.Body), cancel, answer.StatusCode, answer.Header}
}

// next returns the flags and the text of a frame.
func (s *stream) next() (byte, string) {
	s.t.Helper()
	var head [5]byte
	if _, err := io.ReadFull(s.r, head[:]); err != nil {
		s.t.Fatalf("frame: %v", err)
	}
	text := make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(s.r, text); err != nil {
		s.t.Fatalf("frame: %v", err)
	}
	return head[0], string(text)
}

// event returns the next event of a process: its kind and fields.
func (s *stream) event() (string, map[string]any) {
	s.t.Helper()
	var message struct{ Event map[string]map[string]any }
	s.message(&message)
	return only(s.t, message.Event)
}

// change returns the next event of a watch: its kind and fields.
func (s *stream) change() (string, map[string]any) {
	s.t.Helper()
	var event map[string]map[string]any
	s.message(&event)
	return only(s.t, event)
}

func (s *stream) message(into any) {
	s.t.Helper()
	flags, text := s.next()
	if err := json.Unmarshal([]byte(text), into); flags != 0 || err != nil {
		s.t.Fatalf("flags %d, %q: no message (%v)", flags, text, err)
	}
}

// only returns the one member of m.
func only(t *testing.T, m map[string]map[string]any) (string, map[string]any) {
	t.Helper()
	for kind, fields := range m {
		if len(m) == 1 {
			return kind, fields
		}
	}
	t.Fatalf("%v is not one event", m)
	return "", nil
}

// started reads the start event and returns the process number.
func (s *stream) started() int {
	s.t.Helper()
	kind, fields := s.event()
	if kind != "start" {
		s.t.Fatalf("the first event is %s", kind)
	}
	return int(fields["pid"].(float64))
}

// rest collects the output until the end event, and checks that the end frame follows it.
func (s *stream) rest() (output map[string]string, end map[string]any) {
	s.t.Helper()
	output = map[string]string{}
	for {
		switch kind, fields := s.event(); kind {
		case "data":
			for name, text := range fields {
				b, err := base64.StdEncoding.DecodeString(text.(string))
				if err != nil {
					s.t.Fatal(err)
				}
				output[name] += string(b)
			}
		case "end":
			if flags, text := s.next(); flags != 2 || text != "{}" {
				s.t.Fatalf("end frame: flags %d, %q", flags, text)
			}
			if _, err := s.r.ReadByte(); !errors.Is(err, io.EOF) {
				s.t.Fatalf("after the end frame: %v", err)
			}
			return output, fields
		case "keepalive":
		default:
			s.t.Fatalf("event %s", kind)
		}
	}
}

func TestWireStart(t *testing.T) {
	d := sandboxdtest.Start(t)
	s := openStream(t, d, "process.Process/Start",
		`{"process":{"cmd":"/bin/sh","args":["-c","printf 'a\\000b'; echo \"$V\" >&2; pwd; exit 3"],"envs":{"V":"v"},"cwd":"/"},"stdin":false,"unknown":1}`)
	if s.status != http.StatusOK || s.header.Get("Content-Type") != "application/connect+json" {
		t.Errorf("status %d, content type %q", s.status, s.header.Get("Content-Type"))
	}
	if s.started() == 0 {
		t.Error("no process number")
	}
	output, end := s.rest()
	if output["stdout"] != "a\x00b/\n" || output["stderr"] != "v\n" {
		t.Errorf("output %q", output)
	}
	if fmt.Sprint(end) != "map[error:exit status 3 exitCode:3 exited:true status:exit status 3]" {
		t.Errorf("end %v", end)
	}
	_, end = func() (map[string]string, map[string]any) {
		s := openStream(t, d, "process.Process/Start", `{"process":{"cmd":"true"}}`)
		s.started()
		return s.rest()
	}()
	if fmt.Sprint(end) != "map[exited:true status:exit status 0]" { // proto3 JSON leaves zeros out
		t.Errorf("end %v", end)
	}
}

func TestWireStreamErrors(t *testing.T) {
	d := sandboxdtest.Start(t)
	for _, test := range []struct{ method, message, code string }{
		{"process.Process/Start", `{"process":{"cmd":"/no/such"}}`, "not_found"},
		{"process.Process/Start", `{"process":{"cmd":"true","cwd":"/no/dir"}}`, "invalid_argument"},
		{"process.Process/Start", `{}`, "invalid_argument"},
		{"process.Process/Connect", `{"process":{"pid":1}}`, "not_found"},
		{"process.Process/Connect", `{"process":{"tag":"none"}}`, "not_found"},
		{"process.Process/Connect", `{}`, "invalid_argument"},
		{"filesystem.Filesystem/WatchDir", `{"path":"/no/such"}`, "not_found"},
		{"filesystem.Filesystem/WatchDir", `{"path":"/etc/passwd"}`, "invalid_argument"},
	} {
		s := openStream(t, d, test.method, test.message)
		flags, text := s.next()
		if s.status != http.StatusOK || flags != 2 || !strings.Contains(text, `"code":"`+test.code+`"`) {
			t.Errorf("%s %s: status %d, flags %d, %s; want %s", test.method, test.message, s.status, flags, text, test.code)
		}
	}
	s := openStream(t, d, "process.Process/Start", `{"process":{"cmd":"true"}}`,
		"Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("stranger:")))
	if _, text := s.next(); !strings.Contains(text, `"unauthenticated"`) {
		t.Errorf("unknown user: %s", text)
	}
}

func TestWireUnaryErrors(t *testing.T) {
	d := sandboxdtest.Start(t)
	for _, test := range []struct {
		method, message string
		status          int
		code            string
	}{
		{"process.Process/SendSignal", `{"process":{"pid":1},"signal":"SIGNAL_SIGKILL"}`, 404, "not_found"},
		{"filesystem.Filesystem/Stat", `{"path":"/no/such"}`, 404, "not_found"},
		{"filesystem.Filesystem/MakeDir", `{"path":"/etc"}`, 409, "already_exists"},
		{"filesystem.Filesystem/MakeDir", `{"path":"/etc/passwd"}`, 400, "invalid_argument"},
		{"filesystem.Filesystem/ListDir", `{"path":"/etc/passwd"}`, 400, "invalid_argument"},
		{"filesystem.Filesystem/GetWatcherEvents", `{"watcherId":"x"}`, 404, "not_found"},
	} {
		status, answer := rpc(t, d, test.method, test.message)
		if status != test.status || answer["code"] != test.code || answer["message"] == "" {
			t.Errorf("%s: %d %v", test.method, status, answer)
		}
	}
}

func TestWireInputListAndSignal(t *testing.T) {
	d := sandboxdtest.Start(t)
	s := openStream(t, d, "process.Process/Start", `{"process":{"cmd":"cat"},"tag":"my cat"}`)
	pid := s.started()
	selector := fmt.Sprintf(`"process":{"pid":%d}`, pid)
	_, answer := rpc(t, d, "process.Process/List", `{}`)
	if want := fmt.Sprintf("map[processes:[map[config:map[cmd:cat] pid:%d tag:my cat]]]", pid); fmt.Sprint(answer) != want {
		t.Errorf("list %v, want %s", answer, want)
	}
	rpc(t, d, "process.Process/SendInput", `{"process":{"tag":"my cat"},"input":{"stdin":"aGk="}}`)
	if kind, fields := s.event(); kind != "data" || fields["stdout"] != "aGk=" {
		t.Errorf("%s %v", kind, fields)
	}
	for _, test := range []struct {
		method, message string
		status          int
	}{
		{"SendInput", `{` + selector + `,"input":{"pty":"aGk="}}`, 400},
		{"Update", `{` + selector + `,"pty":{"size":{"cols":80,"rows":24}}}`, 400},
		{"SendSignal", `{` + selector + `}`, 501},
		{"SendSignal", `{` + selector + `,"signal":"SIGNAL_SIGTERM"}`, 200},
	} {
		if status, answer := rpc(t, d, "process.Process/"+test.method, test.message); status != test.status {
			t.Errorf("%s %s: %d %v", test.method, test.message, status, answer)
		}
	}
	if _, end := s.rest(); fmt.Sprint(end) != "map[error:signal: terminated exitCode:-1 status:signal: terminated]" {
		t.Errorf("%v", end)
	}
	if _, answer := rpc(t, d, "process.Process/List", `{}`); len(answer) != 0 {
		t.Errorf("list after the end: %v", answer)
	}
}

func TestWireCloseStdin(t *testing.T) {
	d := sandboxdtest.Start(t)
	s := openStream(t, d, "process.Process/Start", `{"process":{"cmd":"sh","args":["-c","cat; read x </dev/zero & sleep 0.2; kill $!"]}}`)
	selector := fmt.Sprintf(`{"process":{"pid":%d}}`, s.started())
	for range 2 {
		if status, answer := rpc(t, d, "process.Process/CloseStdin", selector); status != 200 {
			t.Errorf("%d %v", status, answer)
		}
	}
	if _, end := s.rest(); end["exited"] != true {
		t.Errorf("%v", end)
	}
}

func TestWireStreamInput(t *testing.T) {
	d := sandboxdtest.Start(t)
	s := openStream(t, d, "process.Process/Start", `{"process":{"cmd":"cat"},"tag":"t"}`)
	s.started()
	var body []byte
	for _, message := range []string{
		`{"start":{"process":{"tag":"t"}}}`, `{"data":{"input":{"stdin":"b25l"}}}`, `{"keepalive":{}}`, `{"data":{"input":{"stdin":"IHR3bw=="}}}`,
	} {
		body = binary.BigEndian.AppendUint32(append(body, 0), uint32(len(message)))
		body = append(body, message...)
	}
	r := request(t, http.MethodPost, d.URL+"/process.Process/StreamInput", string(body))
	r.Header.Set("Content-Type", "application/connect+json")
	if status, _, text := send(t, r); status != 200 || !strings.HasSuffix(text, "\x02\x00\x00\x00\x02{}") {
		t.Errorf("%d %q", status, text)
	}
	rpc(t, d, "process.Process/CloseStdin", `{"process":{"tag":"t"}}`)
	if output, _ := s.rest(); output["stdout"] != "one two" {
		t.Errorf("%q", output)
	}
}

func TestWireTerminal(t *testing.T) {
	d := sandboxdtest.Start(t)
	s := openStream(t, d, "process.Process/Start",
		`{"process":{"cmd":"sh","args":["-c","stty -echo; echo ready; read x; stty size; echo $x $TERM"]},"pty":{"size":{"cols":99,"rows":33}}}`)
	selector := fmt.Sprintf(`"process":{"pid":%d}`, s.started())
	if kind, fields := s.event(); kind != "data" || fields["pty"] == nil {
		t.Errorf("%s %v", kind, fields)
	}
	for _, test := range []struct {
		method, message string
		status          int
	}{
		{"CloseStdin", `{` + selector + `}`, 400},
		{"SendInput", `{` + selector + `,"input":{"stdin":"aGkK"}}`, 400},
		{"Update", `{` + selector + `,"pty":{"size":{"cols":70000,"rows":1}}}`, 400},
		{"Update", `{` + selector + `,"pty":{"size":{"cols":132,"rows":43}}}`, 200},
		{"SendInput", `{` + selector + `,"input":{"pty":"aGkK"}}`, 200},
	} {
		if status, answer := rpc(t, d, "process.Process/"+test.method, test.message); status != test.status {
			t.Errorf("%s: %d %v", test.method, status, answer)
		}
	}
	if output, _ := s.rest(); output["pty"] != "43 132\r\nhi xterm-256color\r\n" {
		t.Errorf("%q", output)
	}
}

func TestWireDisconnectLeavesTheProcess(t *testing.T) {
	d := sandboxdtest.Start(t)
	s := openStream(t, d, "process.Process/Start", `{"process":{"cmd":"sh","args":["-c","yes lost | head -c 1000000; read x; echo $x; exit 4"]},"tag":"t"}`)
	pid := s.started()
	s.cancel()
	first := openStream(t, d, "process.Process/Connect", `{"process":{"tag":"t"}}`)
	second := openStream(t, d, "process.Process/Connect", fmt.Sprintf(`{"process":{"pid":%d}}`, pid))
	if first.started() != pid || second.started() != pid {
		t.Error("another process")
	}
	rpc(t, d, "process.Process/SendInput", `{"process":{"tag":"t"},"input":{"stdin":"aGkK"}}`)
	for _, follower := range []*stream{first, second} {
		output, end := follower.rest()
		if !strings.HasSuffix(output["stdout"], "hi\n") || end["exitCode"] != float64(4) {
			t.Errorf("%q, %v", output, end)
		}
	}
	late := openStream(t, d, "process.Process/Connect", `{"process":{"tag":"t"}}`)
	if late.started() != pid {
		t.Error("another process")
	}
	if _, end := late.rest(); end["exitCode"] != float64(4) {
		t.Errorf("the end is not remembered: %v", end)
	}
	if status, _ := rpc(t, d, "process.Process/SendInput", `{"process":{"tag":"t"},"input":{"stdin":"aGkK"}}`); status != 404 {
		t.Errorf("input after the end: %d", status)
	}
}

func TestWireDeadlineKillsEvenWithoutTheClient(t *testing.T) {
	d := sandboxdtest.Start(t)
	s := openStream(t, d, "process.Process/Start", `{"process":{"cmd":"sleep","args":["1000"]},"tag":"t"}`, "Connect-Timeout-Ms", "300")
	s.started()
	follower := openStream(t, d, "process.Process/Connect", `{"process":{"tag":"t"}}`)
	follower.started()
	flags, text := s.next()
	for flags == 0 { // the end event may still come before the deadline's error
		flags, text = s.next()
	}
	if flags != 2 || !strings.Contains(text, "deadline_exceeded") && text != "{}" {
		t.Errorf("%d %s", flags, text)
	}
	if _, end := follower.rest(); end["status"] != "signal: killed" || end["exitCode"] != float64(-1) {
		t.Errorf("%v", end)
	}
	gone := openStream(t, d, "process.Process/Start", `{"process":{"cmd":"sleep","args":["1000"]},"tag":"u"}`, "Connect-Timeout-Ms", "300")
	gone.started()
	follower = openStream(t, d, "process.Process/Connect", `{"process":{"tag":"u"}}`)
	gone.cancel()
	follower.started()
	if _, end := follower.rest(); end["status"] != "signal: killed" {
		t.Errorf("%v", end)
	}
}

func TestWireKeepalive(t *testing.T) {
	d := sandboxdtest.Start(t)
	s := openStream(t, d, "process.Process/Start", `{"process":{"cmd":"cat"}}`, "Keepalive-Ping-Interval", "1")
	s.started()
	begin := time.Now()
	if kind, _ := s.event(); kind != "keepalive" || time.Since(begin) < 900*time.Millisecond {
		t.Errorf("%s after %v", kind, time.Since(begin))
	}
}

func TestWireEndWaitsForWhoHoldsTheOutput(t *testing.T) {
	d := sandboxdtest.Start(t)
	s := openStream(t, d, "process.Process/Start", `{"process":{"cmd":"sh","args":["-c","(sleep 0.3; echo late) & echo early"]}}`)
	s.started()
	if output, _ := s.rest(); output["stdout"] != "early\nlate\n" {
		t.Errorf("%q", output)
	}
}

func TestWireWatch(t *testing.T) {
	d := sandboxdtest.Start(t)
	s := openStream(t, d, "filesystem.Filesystem/WatchDir", `{"path":"`+d.Home+`","recursive":true,"includeEntry":true}`)
	if kind, _ := s.change(); kind != "start" {
		t.Fatalf("first is %s", kind)
	}
	expect := func(kind, name string) map[string]any {
		t.Helper()
		for {
			_, fields := s.change()
			if fields["type"] == "EVENT_TYPE_"+kind && fields["name"] == name {
				return fields
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(d.Home+"/a/b", 0o755))
	expect("CREATE", "a")
	expect("CREATE", "a/b")
	must(os.WriteFile(d.Home+"/a/b/f", []byte("text"), 0o644))
	expect("CREATE", "a/b/f")
	if entry := expect("WRITE", "a/b/f")["entry"].(map[string]any); entry["size"] != "4" || entry["type"] != "FILE_TYPE_FILE" {
		t.Errorf("%v", entry)
	}
	must(os.Chmod(d.Home+"/a/b/f", 0o600))
	expect("CHMOD", "a/b/f")
	must(os.Rename(d.Home+"/a/b/f", d.Home+"/g"))
	if fields := expect("RENAME", "a/b/f"); fields["entry"] != nil {
		t.Errorf("%v", fields)
	}
	expect("CREATE", "g")
	must(os.Remove(d.Home + "/g"))
	expect("REMOVE", "g")
}

func TestWirePolledWatch(t *testing.T) {
	d := sandboxdtest.Start(t)
	_, answer := rpc(t, d, "filesystem.Filesystem/CreateWatcher", `{"path":"`+d.Home+`"}`)
	id := fmt.Sprintf(`{"watcher_id":%q}`, answer["watcherId"]) // snake case is accepted too
	if err := os.WriteFile(d.Home+"/f", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	var seen string
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(seen, "EVENT_TYPE_CREATE"); {
		if time.Now().After(deadline) {
			t.Fatalf("no event: %s", seen)
		}
		_, answer := rpc(t, d, "filesystem.Filesystem/GetWatcherEvents", id)
		seen += fmt.Sprint(answer)
	}
	if status, _ := rpc(t, d, "filesystem.Filesystem/RemoveWatcher", id); status != 200 {
		t.Errorf("%d", status)
	}
	if status, _ := rpc(t, d, "filesystem.Filesystem/RemoveWatcher", id); status != 404 {
		t.Errorf("%d", status)
	}
}

func TestWireEntry(t *testing.T) {
	d := sandboxdtest.Start(t)
	if err := os.WriteFile(d.Home+"/f", []byte("text"), 0o640); err != nil {
		t.Fatal(err)
	}
	when := time.Date(2020, 1, 2, 3, 4, 5, 678000000, time.UTC)
	if err := os.Chtimes(d.Home+"/f", when, when); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("f", d.Home+"/link"); err != nil {
		t.Fatal(err)
	}
	_, answer := rpc(t, d, "filesystem.Filesystem/Stat", `{"path":"`+d.Home+`/link"}`)
	want := map[string]any{
		"name": "link", "type": "FILE_TYPE_FILE", "path": d.Home + "/link", "size": "4", "mode": 416.0, "permissions": "-rw-r-----",
		"owner": "root", "group": "root", "modifiedTime": "2020-01-02T03:04:05.678Z", "symlinkTarget": d.Home + "/f",
	}
	if fmt.Sprint(answer["entry"]) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", answer["entry"], want)
	}
	if err := os.MkdirAll(d.Home+"/1/2/3", 0o755); err != nil {
		t.Fatal(err)
	}
	for depth, count := range map[int]int{0: 3, 1: 3, 2: 4, 9: 5} {
		_, answer := rpc(t, d, "filesystem.Filesystem/ListDir", fmt.Sprintf(`{"path":%q,"depth":%d}`, d.Home, depth))
		if entries := answer["entries"].([]any); len(entries) != count {
			t.Errorf("depth %d: %d entries, want %d", depth, len(entries), count)
		}
	}
}
