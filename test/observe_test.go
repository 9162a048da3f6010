package test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/kilnvm/kiln/internal/telemetry/telemetrytest"
)

// request sends a request to the API with the server's token, if it has one, and one more
// header.
func (s *server) request(token, method, path, body, header, value string) *http.Response {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, readServer(s.t, s.dataDir)+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if header != "" {
		req.Header.Set(header, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (s *server) token() string {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dataDir, "token"))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// checkMetrics scrapes a server that has built a template and started sandboxes from it.
func checkMetrics(t *testing.T, s *server, template string) {
	t.Helper()
	for _, token := range []string{"", "wrong"} {
		if resp := s.request(token, http.MethodGet, "/metrics", "", "", ""); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("with token %q: %s", token, resp.Status)
		}
	}
	s.must("orgs", "create", "acme")
	foreign := strings.TrimSpace(s.must("tokens", "create", "scraper", "--org", "acme", "--scope", "admin"))
	if resp := s.request(foreign, http.MethodGet, "/metrics", "", "", ""); resp.StatusCode != http.StatusForbidden {
		t.Errorf("an administrator of another organisation: %s", resp.Status)
	}
	resp := s.request(s.token(), http.MethodGet, "/metrics", "", "", "")
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	got, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var shown struct{ ID string }
	if err := json.Unmarshal([]byte(s.must("templates", "show", template, "-o", "json")), &shown); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		least  float64
		labels []string
	}{
		{"kiln_boot_seconds", 5, []string{"template=" + shown.ID}},
		{"kiln_warm_claims_total", 5, []string{"template=" + shown.ID}},
		{"kiln_execs_total", 10, nil},
		{"kiln_builds_total", 1, []string{"outcome=ready"}},
		{"kiln_stage_seconds", 1, []string{"stage=image"}},
		{"kiln_stage_seconds", 1, []string{"stage=snapshot"}},
		{"kiln_stage_seconds", 1, []string{"stage=promote"}},
		{"kiln_stage_cache_total", 1, []string{"stage=rootfs", "result=miss"}},
		{"kiln_network_bytes_total", 0, []string{"direction=sent"}},
		{"kiln_network_slots", 1, []string{"state=free"}},
		{"kiln_warm_slots_target", 0, []string{"template=" + shown.ID}},
		{"go_goroutines", 1, nil},
		{"process_cpu_seconds_total", 0, nil},
	} {
		if sum, found := sumOf(got[c.name], c.labels); !found || sum < c.least {
			t.Errorf("%s%v is %v (there: %v), want at least %v", c.name, c.labels, sum, found, c.least)
		}
	}
}

// sumOf adds up the series with those labels, counting what a histogram has counted.
func sumOf(f *dto.MetricFamily, labels []string) (sum float64, found bool) {
	for _, s := range f.GetMetric() {
		var has []string
		for _, l := range s.GetLabel() {
			has = append(has, l.GetName()+"="+l.GetValue())
		}
		if slices.ContainsFunc(labels, func(l string) bool { return !slices.Contains(has, l) }) {
			continue
		}
		found = true
		sum += s.GetCounter().GetValue() + s.GetGauge().GetValue() + float64(s.GetHistogram().GetSampleCount())
	}
	return sum, found
}

// checkTraces looks at the trace of the build, and asks for a sandbox as a client that has
// a trace of its own.
func checkTraces(t *testing.T, s *server, c *telemetrytest.Collector, template string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	spans, err := c.Await(ctx, "", "build")
	if err != nil {
		t.Fatalf("%v: %+v", err, spans)
	}
	build := telemetrytest.Find(t, spans, "build")
	if got, want := telemetrytest.Under(spans, build.ID), []string{"image", "promote", "rootfs", "snapshot", "source"}; !slices.Equal(got, want) {
		t.Errorf("stages %v, want %v", got, want)
	}
	if root := telemetrytest.Find(t, spans, "POST /v1/templates/build"); build.Parent != root.ID {
		t.Errorf("the build is not below the request for it: %+v", spans)
	}
	for stage, want := range map[string]string{"image": "instructions", "rootfs": "write", "snapshot": "boot"} {
		if got := telemetrytest.Under(spans, telemetrytest.Find(t, spans, stage).ID); !slices.Contains(got, want) {
			t.Errorf("steps of stage %s: %v, want %s among them", stage, got, want)
		}
	}

	const client, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	resp := s.request(s.token(), http.MethodPost, "/v1/sandboxes", `{"template":"`+template+`","boot_mode":"snapshot"}`,
		"traceparent", "00-"+client+"-"+parent+"-01")
	var created struct{ ID string }
	if err := json.NewDecoder(resp.Body).Decode(&created); err != nil || created.ID == "" {
		t.Fatalf("%s, %v", resp.Status, err)
	}
	defer s.must("sandbox", "destroy", created.ID)
	const request = "POST /v1/sandboxes"
	if spans, err = c.Await(ctx, client, request); err != nil {
		t.Fatalf("%v: %+v", err, spans)
	}
	root := telemetrytest.Find(t, spans, request)
	if root.Parent != parent || root.Attributes["kiln.sandbox"] != created.ID || root.Attributes["kiln.path"] != "snapshot" {
		t.Errorf("root %+v", root)
	}
	steps := telemetrytest.Under(spans, root.ID)
	for _, want := range []string{"plan", "admit", "network slot", "network policy", "scratch disk", "restore", "resume", "identity", "post_restore"} {
		if !slices.Contains(steps, want) {
			t.Errorf("steps %v, want %q among them", steps, want)
		}
	}
	inner := telemetrytest.Under(spans, telemetrytest.Find(t, spans, "restore").ID)
	if want := []string{"greet VMM", "load state", "spawn VMM"}; !slices.Equal(inner, want) {
		t.Errorf("steps of the restore: %v, want %v", inner, want)
	}

	// Commands come through the proxy.
	s.must("sandbox", "pause", created.ID)
	s.must("sandbox", "exec", created.ID, "--", "true")
	if spans, err = c.Await(ctx, "", "wake"); err != nil {
		t.Fatalf("%v: %+v", err, spans)
	}
	trace := telemetrytest.Find(t, spans, "wake").Trace
	if spans, err = c.Await(ctx, trace, "sandbox daemon"); err != nil {
		t.Fatalf("%v: %+v", err, spans)
	}
	command := telemetrytest.Find(t, spans, "sandbox daemon")
	if a := command.Attributes; a["kiln.sandbox"] != created.ID || !strings.HasPrefix(a["kiln.template"], "tmpl_") || a["url.path"] != "/process.Process/Start" {
		t.Errorf("the command's span %+v", command)
	}
	if steps := telemetrytest.Under(spans, command.ID); !slices.Equal(steps, []string{"wake"}) {
		t.Errorf("steps of the command: %v", steps)
	}
}
