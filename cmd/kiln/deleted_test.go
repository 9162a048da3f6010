package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A template that is deleted takes along the build that somebody waits for.
func TestBuildOfADeletedTemplate(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusAccepted)
			fmt.Fprint(w, `{"id":"b1","name":"hello","version":2,"status":"queued"}`)
			return
		}
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"error":"build \"b1\" does not exist","code":"not_found"}`)
	}))
	defer server.Close()
	r := runKiln(map[string]string{"KILN_SERVER": server.URL, "KILN_TOKEN": "x"}, "templates", "rebuild", "hello")
	if r.code != exitNotFound || !strings.Contains(r.stderr, "template hello was deleted; its build was cancelled") {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
}
