package api

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"

	"github.com/kilnvm/kiln"
)

func TestSandboxListInPages(t *testing.T) {
	ts := newTestServer(t, nil)
	want := map[string]bool{}
	for range 5 {
		want[ts.sandbox(t)] = true
	}
	const filter = "/v1/sandboxes?status=running,paused&template=x&metadata=a%3Db&metadata=c%3Dd%3De&limit=2"
	seen := map[string]bool{}
	for token, pages := "", 1; ; pages++ {
		r := httptest.NewRequest(http.MethodGet, filter+"&next_token="+token, nil)
		r.Header.Set("Authorization", "Bearer "+testToken)
		w := httptest.NewRecorder()
		ts.Config.Handler.ServeHTTP(w, r)
		var page []Sandbox
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
			t.Fatalf("%v: %s", err, w.Body)
		}
		for _, sb := range page {
			if seen[sb.ID] {
				t.Errorf("%s is listed twice", sb.ID)
			}
			seen[sb.ID] = true
		}
		if token = w.Header().Get("X-Next-Token"); token == "" {
			if pages != 3 {
				t.Errorf("%d pages, want 3", pages)
			}
			break
		}
	}
	if !reflect.DeepEqual(seen, want) {
		t.Errorf("listed %v, want %v", seen, want)
	}
	f := ts.sandboxes.filter
	if f.Template != "x" || !reflect.DeepEqual(f.Statuses, []kiln.SandboxStatus{kiln.SandboxRunning, kiln.SandboxPaused}) ||
		!reflect.DeepEqual(f.Metadata, map[string]string{"a": "b", "c": "d=e"}) {
		t.Errorf("filter %+v", f)
	}
}
