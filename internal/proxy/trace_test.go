package proxy_test

import (
	"io"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/kilnvm/kiln/internal/proxy"
	"github.com/kilnvm/kiln/internal/telemetry"
	"github.com/kilnvm/kiln/internal/telemetry/telemetrytest"
)

// Every request for a sandbox has a span, which tells nothing that was not to be told.
func TestTraces(t *testing.T) {
	const id = "0af7651916cd43dd8448eb211c80319c"
	for _, c := range []struct {
		name, path, port string
		header           map[string]string
		span             string // "" means that there is none
		status           string // "" of an answer that was cut off
		url              string
		own              bool // the span is part of the client's trace
		failed           bool
	}{
		{"the daemon, its owner", "/process.Process/Start?hidden", "49983", map[string]string{"X-API-Key": "kiln_good"}, "sandbox daemon", "200", "/process.Process/Start", true, false},
		{"the daemon, by its own token", "/files?hidden", "49983", map[string]string{"X-Access-Token": "hidden"}, "sandbox daemon", "200", "/files", false, false},
		{"a service, its owner", "/hidden?hidden", "8080", map[string]string{"Authorization": "Bearer kiln_good"}, "sandbox port", "200", "", true, false},
		{"a service, a stranger", "/hidden?hidden", "8080", map[string]string{"Authorization": "Bearer hidden"}, "sandbox port", "200", "", false, false},
		{"by path without a token", below + "/hidden", "", nil, "sandbox port", "401", "", false, false},
		{"another organisation", "/files", "49983", map[string]string{"X-API-Key": "kiln_foreign"}, "sandbox daemon", "502", "/files", true, true},
		{"an answer that is cut off", "/cut", "8080", map[string]string{"X-API-Key": "kiln_good"}, "sandbox port", "", "", true, true},
		{"no sandbox", "/v1/templates", "", map[string]string{"X-API-Key": "kiln_good"}, "", "200", "", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			collector := telemetrytest.New(t)
			traces, err := telemetry.OpenTraces(t.Context(), telemetry.TraceOptions{Endpoint: collector.HTTP, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			s := startTraced(t, traces.Provider())
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+c.path, strings.NewReader("hidden"))
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			if c.port != "" {
				req.Header.Set(proxy.HeaderSandboxID, "ibox")
				req.Header.Set(proxy.HeaderSandboxPort, c.port)
			}
			req.Header.Set("traceparent", "00-"+id+"-b7ad6b7169203331-01")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, cut := io.ReadAll(resp.Body)
			resp.Body.Close()
			if (cut != nil) != (c.status == "") {
				t.Errorf("reading the answer: %v", cut)
			}
			s.Close() // the span ends after its request
			if err := traces.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			spans := collector.Spans()
			if c.span == "" {
				if len(spans) > 0 {
					t.Errorf("spans %+v", spans)
				}
				return
			}
			if len(spans) != 1 {
				t.Fatalf("spans %+v", spans)
			}
			got := spans[0]
			port := c.port
			if port == "" {
				port = "8080"
			}
			want := map[string]string{"kiln.sandbox": "ibox", "kiln.port": port, "http.request.method": "POST"}
			if c.status != "" {
				want["http.response.status_code"] = c.status
			}
			if c.url != "" {
				want["url.path"] = c.url
			}
			if got.Name != c.span || !maps.Equal(got.Attributes, want) || (got.Trace == id) != c.own || got.Failed != c.failed {
				t.Errorf("span %+v, want %s with %v, the client's %v, failed %v", got, c.span, want, c.own, c.failed)
			}
			if seen := resp.Header.Get("Seen-Trace"); c.span == "sandbox port" && resp.StatusCode == http.StatusOK && seen != "00-"+got.Trace+"-"+got.ID+"-01" {
				t.Errorf("the service is part of %q, not of %+v", seen, got)
			}
		})
	}
}
