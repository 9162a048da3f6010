package api

import (
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

func TestCaptureAndQuota(t *testing.T) {
	ts := newTestServer(t, nil)
	ts.templates.byName["mine"] = &kiln.Template{Name: "mine"}
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/v1/templates/capture", `{"name":"new","sandbox":"ibox","description":"d"}`, 202, `"name":"new"`},
		{"POST", "/v1/templates/capture", `{"name":"new","sandbox":"igone"}`, 404, "igone"},
		{"POST", "/v1/templates/capture", `{"name":"capture","sandbox":"ibox"}`, 400, "reserved"},
		{"POST", "/v1/templates/capture", `{"name":"","sandbox":"ibox"}`, 400, "no name"},
		{"PATCH", "/v1/templates/mine/quota", `{"bandwidth_mbps":100,"ops_per_sec":50}`, 200, `"bandwidth_mbps":100`},
		{"PATCH", "/v1/templates/mine/quota", `{"ops_per_sec":0,"disk_size_mb":2048}`, 200, `{"disk_size_mb":2048,"limits":{"bandwidth_mbps":100}}`},
		{"PATCH", "/v1/templates/mine/quota", `{"ops_per_sec":0,"colour":1}`, 200, "bandwidth_mbps"},
		{"PATCH", "/v1/templates/mine/quota", `{"burst_ops":5}`, 400, "burst_ops"},
		{"PATCH", "/v1/templates/mine/quota", `{"disk_mb":-5}`, 400, "disk_size_mb"},
		{"PATCH", "/v1/templates/mine/quota", `{}`, 400, "disk_size_mb"},
		{"PATCH", "/v1/templates/gone/quota", `{"burst_ops":5}`, 404, "gone"},
	} {
		status, answer := ts.do(t, c.method, c.path, "application/json", strings.NewReader(c.body))
		if status != c.status || !strings.Contains(answer, c.want) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, status, answer)
		}
	}
}
