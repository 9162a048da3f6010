package api

import (
	"bufio"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUsageAndLogs(t *testing.T) {
	ts := newTestServer(t, nil)
	id := ts.sandbox(t)
	if status, body := ts.do(t, "GET", "/v1/usage", "", nil); status != 200 || !strings.Contains(body, `"memory_bytes":7`) || !strings.Contains(body, `"cpu_ms":1500`) {
		t.Errorf("usage: %d %s", status, body)
	}
	ts.sandboxes.console, ts.sandboxes.ended = filepath.Join(t.TempDir(), "log"), make(chan struct{})
	write := func(flags int, text string) {
		t.Helper()
		f, err := os.OpenFile(ts.sandboxes.console, os.O_CREATE|os.O_WRONLY|flags, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	write(0, "one\r\ntwo\nthr")
	if status, body := ts.do(t, "GET", "/v1/sandboxes/"+id+"/logs", "", nil); status != 200 || body != "one\r\ntwo\nthr" {
		t.Errorf("logs: %d %q", status, body)
	}
	if status, body := ts.do(t, "GET", "/v1/sandboxes/inone/logs", "", nil); status != 404 {
		t.Errorf("logs of nothing: %d %q", status, body)
	}

	req, err := http.NewRequest(http.MethodGet, ts.URL+"/v1/sandboxes/"+id+"/logs?follow=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testToken)
	resp, err := ts.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func(want string) {
		t.Helper()
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				if data != `{"line":"`+want+`"}` {
					t.Errorf("got %s, want %s", data, want)
				}
				return
			}
		}
		t.Fatalf("the stream ended before %s", want)
	}
	next("one")
	next("two")
	write(os.O_APPEND, "ee\n")
	next("three")
	write(os.O_TRUNC, "new\nlast") // the log was cut
	next("new")
	close(ts.sandboxes.ended)
	next("last")
	if lines.Scan(); lines.Scan() {
		t.Errorf("after the end: %q", lines.Text())
	}
}
