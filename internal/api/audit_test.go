package api

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/kilnvm/kiln"
)

// auditLog is an Access of which only the log is asked for.
type auditLog struct {
	Access
	mu     sync.Mutex
	events []string
}

func (l *auditLog) RecordAudit(_ context.Context, e kiln.AuditEvent) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, fmt.Sprintf("%s %v", e.Action, e.Detail))
	return nil
}

func (l *auditLog) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := strings.Join(l.events, "; ")
	l.events = nil
	return all
}

// unchanged are templates of which every build would change nothing.
type unchanged struct{ Templates }

func (u unchanged) Rebuild(ctx context.Context, orgID string, req NewVersion) (Queued, error) {
	q, err := u.Templates.Rebuild(ctx, orgID, req)
	q.Unchanged = true
	return q, err
}

// TestDetailsOfChanges looks for what the log says of builds and networks, and for what it
// does not hold because it changes nothing.
func TestDetailsOfChanges(t *testing.T) {
	log := &auditLog{}
	ts := newTestServer(t, func(o *Options) { o.Access = log })
	idle := newTestServer(t, func(o *Options) { o.Access, o.Templates = log, unchanged{o.Templates} })
	for _, s := range []*testServer{ts, idle} {
		kind, body := form(t, part{name: "name", body: "a"}, part{name: "dockerfile", body: "FROM x"})
		if status, answer := s.do(t, "POST", "/v1/templates/build", kind, body); status != 202 {
			t.Fatalf("build: %d %s", status, answer)
		}
	}
	_, answer := ts.do(t, "POST", "/v1/sandboxes", "application/json", strings.NewReader(`{"template":"hello"}`))
	var sb Sandbox
	if err := json.Unmarshal([]byte(answer), &sb); err != nil || sb.ID == "" {
		t.Fatalf("sandbox: %s", answer)
	}
	sandbox := "/v1/sandboxes/" + sb.ID
	if got, want := log.take(), "buildTemplate map[template:a version:1]"; !strings.HasPrefix(got, want+"; "+want+"; createSandbox map[sandbox:"+sb.ID) {
		t.Errorf("builds: %s", got)
	}
	for _, c := range []struct {
		server             *testServer
		method, path, body string
		want               string
	}{
		{ts, "POST", "/v1/templates/a/rebuild", "", "rebuildTemplate map[template:a version:2]"},
		{idle, "POST", "/v1/templates/a/rebuild", "", ""},
		{ts, "PUT", sandbox + "/egress", `{"allow_cidrs":["192.0.2.1"],"allow_ports":[1,2]}`, "setEgress map[allow_cidrs:192.0.2.1 allow_ports:1,2 mode:deny_all]"},
		{ts, "POST", sandbox + "/keepalive", "", ""},
	} {
		if status, answer := c.server.do(t, c.method, c.path, "application/json", strings.NewReader(c.body)); status >= 300 {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, answer)
		}
		if got := log.take(); got != c.want {
			t.Errorf("%s %s: recorded %q, want %q", c.method, c.path, got, c.want)
		}
	}
}
