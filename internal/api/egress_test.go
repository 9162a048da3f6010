package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

// fakeNetworks changes the policies of fakeSandboxes.
type fakeNetworks struct{ *fakeSandboxes }

func (f fakeNetworks) SetEgress(ctx context.Context, org, id string, policy kiln.EgressPolicy) (*kiln.Sandbox, error) {
	sb, err := f.Get(ctx, org, id)
	if err == nil {
		sb.Egress = policy
	}
	return sb, err
}

func (f fakeNetworks) NetworkUse(ctx context.Context, org, id string) (kiln.NetworkUse, error) {
	_, err := f.Get(ctx, org, id)
	return kiln.NetworkUse{SentBytes: 7}, err
}

func (f fakeNetworks) Denials(ctx context.Context, org, id string) ([]kiln.Denial, error) {
	_, err := f.Get(ctx, org, id)
	return nil, err
}

func TestEgressRoutes(t *testing.T) {
	ts := newTestServer(t, nil)
	put := func(path string, body any) (int, string) {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		return ts.do(t, http.MethodPut, path, "application/json", strings.NewReader(string(b)))
	}
	status, body := ts.do(t, http.MethodPost, "/v1/sandboxes", "application/json",
		strings.NewReader(`{"template":"hello","egress":{"allow_cidrs":["10.0.0.0/40"]}}`))
	if status != 400 || !strings.Contains(body, "10.0.0.0/40") {
		t.Errorf("create with a wrong range: %d %s", status, body)
	}
	status, body = ts.do(t, http.MethodPost, "/v1/sandboxes", "application/json",
		strings.NewReader(`{"template":"hello","egress":{"allow_cidrs":["198.51.100.0/24"]}}`))
	var sb Sandbox
	if err := json.Unmarshal([]byte(body), &sb); status != 201 || err != nil || sb.Egress.EffectiveMode() != kiln.EgressDenyAll {
		t.Fatalf("create: %d %s (%v)", status, body, err)
	}
	path := "/v1/sandboxes/" + sb.ID
	if strings.Contains(body, `"network"`) {
		t.Errorf("what passed was not asked, and told: %s", body)
	}
	if status, body := ts.do(t, http.MethodGet, path+"/egress", "", nil); status != 200 || !strings.Contains(body, `"mode":"deny_all","allow_cidrs":["198.51.100.0/24"],"deny_cidrs":[]`) {
		t.Errorf("show: %d %s", status, body)
	}
	if status, body := put(path+"/egress", map[string]any{"mode": "allow_all", "deny_cidrs": []string{"203.0.113.0/24"}}); status != 200 || !strings.Contains(body, `"allow_all"`) {
		t.Errorf("set: %d %s", status, body)
	}
	many := make([]string, 100_000)
	for i := range many {
		many[i] = "198.51.100.0/24"
	}
	for want, bad := range map[string]any{
		"100000 CIDRs":       map[string]any{"allow_cidrs": many},
		"allow-port 0":       map[string]any{"allow_cidrs": []string{"0.0.0.0/0"}, "allow_ports": []int{0}},
		"allow-port 70000":   map[string]any{"allow_cidrs": []string{"0.0.0.0/0"}, "allow_ports": []int{70000}},
		"without allow-cidr": map[string]any{"allow_ports": []int{443}},
		"IPv6":               map[string]any{"deny_cidrs": []string{"2001:db8::/32"}},
		"contradicts":        map[string]any{"mode": "allow_all", "allow_domains": []string{"a.example"}},
	} {
		if status, body := put(path+"/egress", bad); status != 400 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.200s", want, status, body)
		}
	}
	if status, body := ts.do(t, http.MethodGet, path+"/network", "", nil); status != 200 || !strings.Contains(body, `"sent_bytes":7`) {
		t.Errorf("use: %d %s", status, body)
	}
	if status, body := ts.do(t, http.MethodGet, path, "", nil); status != 200 || !strings.Contains(body, `"network":{"sent_bytes":7,`) {
		t.Errorf("status: %d %s", status, body)
	}
	if status, body := ts.do(t, http.MethodGet, path+"/denials", "", nil); status != 200 || strings.TrimSpace(body) != "[]" {
		t.Errorf("denials: %d %s", status, body)
	}
	if status, body := ts.do(t, http.MethodGet, path+"/ports/8080", "", nil); status != 200 || !strings.Contains(body, `"host":"8080-`+sb.ID+`.localhost"`) ||
		!strings.Contains(body, `"path":"/v1/sandboxes/`+sb.ID+`/ports/8080/"`) {
		t.Errorf("port: %d %s", status, body)
	}
	for _, port := range []string{"0", "70000", "x"} {
		if status, _ := ts.do(t, http.MethodGet, path+"/ports/"+port, "", nil); status != 400 && status != 422 {
			t.Errorf("port %s: %d", port, status)
		}
	}
	for _, what := range []string{"/ports/8080", "/egress", "/network", "/denials"} {
		if status, _ := ts.do(t, http.MethodGet, "/v1/sandboxes/inone"+what, "", nil); status != 404 {
			t.Errorf("%s of no sandbox: %d", what, status)
		}
	}
}
