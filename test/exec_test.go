package test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
)

// checkCommands has a warm slot kept and claimed, and has `kiln bench exec` run streams,
// which it compares by checksums, and 200 commands at once in one sandbox.
func checkCommands(t *testing.T, s *server, template string) {
	t.Helper()
	if out := s.must("pool", "set", template, "--slots", "1"); out != template+" shared-cpu-1x: 1 slots\n" {
		t.Errorf("pool set printed %q", out)
	}
	shelf := func() kiln.WarmShelf {
		t.Helper()
		var list []kiln.WarmShelf
		if err := json.Unmarshal([]byte(s.must("pool", "list", "-o", "json")), &list); err != nil {
			t.Fatal(err)
		}
		for _, w := range list {
			if w.Template == template {
				return w
			}
		}
		return kiln.WarmShelf{}
	}
	for deadline := time.Now().Add(time.Minute); shelf().Ready == 0; time.Sleep(200 * time.Millisecond) { // nothing tells a client
		if time.Now().After(deadline) {
			t.Fatalf("no slot: %+v\n%s", shelf(), s.logText())
		}
	}
	if out := s.must("pool", "list"); !strings.Contains(out, template) || !strings.Contains(out, "HITS") {
		t.Errorf("pool list printed %q", out)
	}
	id := strings.TrimSpace(s.must("sandbox", "create", "-t", template, "--boot-mode", "warm"))
	if w := shelf(); w.Set != 1 || w.Hits == 0 {
		t.Errorf("after a claim: %+v", w)
	}
	s.must("sandbox", "destroy", id)
	if r := s.kiln("pool", "set", "no-such-template", "--slots", "1"); r.code != 3 {
		t.Errorf("slots of no template: exit code %d, %s", r.code, r.stderr)
	}

	var report struct {
		Rows   []struct{ What string }
		Ratios []struct{ What string }
	}
	out := s.must("bench", "exec", "-t", template, "--rounds", "1", "--megabytes", "8", "--paced", "1s", "--concurrent", "200", "-o", "json")
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Rows) != 7 || len(report.Ratios) != 15 {
		t.Errorf("bench exec: %v\n%s", err, out)
	}
	if w := shelf(); w.Set != 0 {
		t.Errorf("the benchmark leaves %+v", w)
	}
}
