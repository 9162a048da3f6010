package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/span"
	"github.com/kilnvm/kiln/internal/telemetry/telemetrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// still is a host with a fixed state.
type still struct{}

func (still) Counts() map[kiln.SandboxStatus]int {
	return map[kiln.SandboxStatus]int{kiln.SandboxRunning: 3}
}

func (still) NetworkSlots() kiln.NetworkSlots { return kiln.NetworkSlots{Used: 3, Free: 8, Limit: 31} }
func (still) Traffic() kiln.NetworkUse        { return kiln.NetworkUse{SentBytes: 7, RefusedPackets: 2} }

func (still) Warm() []kiln.WarmShelf {
	return []kiln.WarmShelf{
		{Template: "python", TemplateID: "tmpl_p", Version: 2, Size: "s", Set: 2, Ready: 1},
		{Template: "python", TemplateID: "tmpl_p", Version: 1, Size: "s", Ready: 4, Spawned: 3},
		{Template: "own", TemplateID: "tmpl_o", OrgID: "org", Version: 1, Size: "s", Demand: 1},
	}
}

// read returns what the handler answers, by the names of the families.
func read(t *testing.T, m *Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// value returns the value of a series, or how much a histogram has counted, and -1 when
// there is no such series.
func value(families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	for _, s := range families[name].GetMetric() {
		var has []string
		for _, l := range s.GetLabel() {
			has = append(has, l.GetName()+"="+l.GetValue())
		}
		slices.Sort(labels)
		if !slices.Equal(has, labels) {
			continue
		}
		switch {
		case s.GetCounter() != nil:
			return s.GetCounter().GetValue()
		case s.GetHistogram() != nil:
			return float64(s.GetHistogram().GetSampleCount())
		}
		return s.GetGauge().GetValue()
	}
	return -1
}

func TestMetrics(t *testing.T) {
	m := NewMetrics("v1")
	m.Watch(still{})
	builtIn, own := &kiln.Template{ID: "tmpl_p", Name: "python"}, &kiln.Template{ID: "tmpl_o", OrgID: "org", Name: "secret-project"}
	m.Started(builtIn, kiln.BootWarm, 30*time.Millisecond)
	m.Started(own, kiln.BootSnapshot, 60*time.Millisecond)
	m.GuestRestarted()
	m.StartFailed(own)
	m.Claimed(builtIn, true)
	m.Claimed(own, false)
	m.Refused(kiln.Errorf(kiln.CodeLimit, "too many"))
	m.Refused(kiln.Errorf(kiln.CodeExhausted, "no memory"))
	m.Refused(errors.New("something else"))
	m.Command()
	m.StageDone(kiln.StageResult{Stage: kiln.StageImage, Duration: time.Second})
	m.StageDone(kiln.StageResult{Stage: kiln.StageImage, Cached: true})
	m.BuildReady()
	m.BuildCancelled()
	m.BuildFailed(kiln.StageImage, false)
	m.BuildFailed(kiln.StageSnapshot, true)

	got := read(t, m)
	for _, c := range []struct {
		name   string
		want   float64
		labels []string
	}{
		{"kiln_build_info", 1, []string{"version=v1"}},
		{"kiln_boot_seconds", 1, []string{"path=warm", "template=python"}},
		{"kiln_boot_seconds", 1, []string{"path=snapshot", "template=tmpl_o"}},
		{"kiln_start_failures_total", 1, []string{"template=tmpl_o"}},
		{"kiln_guest_restarts_total", 1, nil},
		{"kiln_warm_claims_total", 1, []string{"result=hit", "template=python"}},
		{"kiln_warm_claims_total", 1, []string{"result=miss", "template=tmpl_o"}},
		{"kiln_admission_refused_total", 1, []string{"status=429"}},
		{"kiln_admission_refused_total", 1, []string{"status=507"}},
		{"kiln_execs_total", 1, nil},
		{"kiln_stage_seconds", 1, []string{"cached=false", "stage=image"}},
		{"kiln_stage_cache_total", 1, []string{"result=hit", "stage=image"}},
		{"kiln_builds_total", 1, []string{"outcome=ready"}},
		{"kiln_builds_total", 1, []string{"outcome=cancelled"}},
		{"kiln_builds_total", 2, []string{"outcome=failed"}},
		{"kiln_build_failures_total", 1, []string{"fault=user", "stage=image"}},
		{"kiln_build_failures_total", 1, []string{"fault=server", "stage=snapshot"}},
		{"kiln_build_failures_total", 0, []string{"fault=server", "stage=image"}},
		{"kiln_sandboxes", 3, []string{"state=running"}},
		{"kiln_sandboxes", 0, []string{"state=paused"}},
		{"kiln_warm_slots", 5, []string{"size=s", "template=python"}},
		{"kiln_spawned_vmms", 3, []string{"size=s", "template=python"}},
		{"kiln_warm_slots_target", 2, []string{"size=s", "template=python"}},
		{"kiln_warm_slots_target", 1, []string{"size=s", "template=tmpl_o"}},
		{"kiln_network_bytes_total", 7, []string{"direction=sent"}},
		{"kiln_network_slots", 8, []string{"state=free"}},
		{"kiln_network_slots_limit", 31, nil},
		{"kiln_network_denied_total", 2, []string{"kind=packet"}},
	} {
		if v := value(got, c.name, c.labels...); v != c.want {
			t.Errorf("%s%v is %v, want %v", c.name, c.labels, v, c.want)
		}
	}
	if value(got, "go_goroutines") < 1 || value(got, "process_open_fds") < 1 {
		t.Error("nothing is told of the Go runtime and the process")
	}
}

// However many templates there are, the number of series is bounded, and built-in ones keep
// theirs.
func TestTemplatesAreBounded(t *testing.T) {
	m := NewMetrics("v1")
	for i := range 3 * MaxTemplates {
		m.Claimed(&kiln.Template{ID: fmt.Sprintf("tmpl_%d", i), OrgID: "org"}, false)
	}
	m.Claimed(&kiln.Template{ID: "tmpl_p", Name: "python"}, true)
	got := read(t, m)
	if n := len(got["kiln_warm_claims_total"].GetMetric()); n != MaxTemplates+2 {
		t.Errorf("%d series", n)
	}
	if v := value(got, "kiln_warm_claims_total", "result=miss", "template=other"); v != 2*MaxTemplates {
		t.Errorf("%v claims of other templates", v)
	}
	if v := value(got, "kiln_warm_claims_total", "result=hit", "template=python"); v != 1 {
		t.Errorf("%v claims of a built-in template", v)
	}
}

func TestTracesArrive(t *testing.T) {
	for _, protocol := range []string{"", ProtocolHTTP, ProtocolGRPC} {
		t.Run(protocol, func(t *testing.T) {
			c := telemetrytest.New(t)
			endpoint := c.HTTP
			if protocol == ProtocolGRPC {
				endpoint = c.GRPC
			}
			traces, err := OpenTraces(t.Context(), TraceOptions{Endpoint: endpoint, Protocol: protocol, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			const parent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
			ctx, end := span.Begin(span.WithParent(t.Context(), parent), traces.Provider(), "request", trace.SpanKindServer)
			if got := span.Parent(ctx); len(got) != len(parent) || got[:36] != parent[:36] || got == parent {
				t.Errorf("the request is known to others as %q", got)
			}
			err = span.Do(ctx, "step", func(ctx context.Context) error {
				return span.Do(ctx, "part", func(context.Context) error { return io.ErrUnexpectedEOF })
			})
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("step: %v", err)
			}
			end(nil)
			if err := traces.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			spans, err := c.Await(t.Context(), "0123456789abcdef0123456789abcdef", "request")
			if err != nil {
				t.Fatal(err)
			}
			request, step := telemetrytest.Find(t, spans, "request"), telemetrytest.Find(t, spans, "step")
			part := telemetrytest.Find(t, spans, "part")
			if request.Parent != "0123456789abcdef" || step.Parent != request.ID || part.Parent != step.ID {
				t.Errorf("no tree: %+v", spans)
			}
			if request.Failed || !step.Failed || !part.Failed {
				t.Errorf("failures: %+v", spans)
			}
		})
	}
	if _, err := OpenTraces(t.Context(), TraceOptions{Protocol: "pigeon"}); err == nil {
		t.Error("an unknown protocol was accepted")
	}
}

// Without somebody to send to, a step is just called.
func TestStepsWithoutTraces(t *testing.T) {
	var traces *Traces
	ctx, end := span.Begin(t.Context(), traces.Provider(), "request", trace.SpanKindServer)
	ran := false
	if err := span.Do(ctx, "step", func(context.Context) error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("ran %v, %v", ran, err)
	}
	end(nil)
	if p := span.Parent(ctx); p != "" {
		t.Errorf("there is a span %s", p)
	}
	if n := testing.AllocsPerRun(100, func() {
		_ = span.Do(ctx, "step", func(context.Context) error { return nil })
	}); n > 0 {
		t.Errorf("a step costs %v allocations", n)
	}
	if err := traces.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
