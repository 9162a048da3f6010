// Package telemetrytest is an OpenTelemetry collector for tests: real OTLP over gRPC and
// HTTP, which keeps what it is sent.
package telemetrytest

import (
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Span is a span as it arrived.
type Span struct {
	Trace, ID, Parent string // hexadecimal
	Name              string
	Attributes        map[string]string
	Failed            bool
}

// Collector is a collector that runs until the end of its test.
type Collector struct {
	// GRPC and HTTP are its URLs.
	GRPC, HTTP string

	mu    sync.Mutex
	spans []Span
	news  chan struct{} // closed and replaced when spans have come
}

// New starts a collector.
func New(t *testing.T) *Collector {
	t.Helper()
	c := &Collector{news: make(chan struct{})}
	byGRPC, byHTTP := listen(t), listen(t)
	c.GRPC, c.HTTP = "http://"+byGRPC.Addr().String(), "http://"+byHTTP.Addr().String()
	g := grpc.NewServer()
	collector.RegisterTraceServiceServer(g, &service{c: c})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", c.post)
	h := &http.Server{Handler: mux}
	var done sync.WaitGroup
	done.Go(func() { _ = g.Serve(byGRPC) })
	done.Go(func() { _ = h.Serve(byHTTP) })
	t.Cleanup(func() {
		g.Stop()
		_ = h.Close()
		done.Wait()
	})
	return c
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

type service struct {
	collector.UnimplementedTraceServiceServer
	c *Collector
}

// Export implements the OTLP trace service.
func (s *service) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.c.add(req.GetResourceSpans())
	return &collector.ExportTraceServiceResponse{}, nil
}

func (c *Collector) post(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var req collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &req)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.add(req.GetResourceSpans())
}

func (c *Collector) add(resources []*otlp.ResourceSpans) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range resources {
		for _, scope := range r.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, spanOf(s))
			}
		}
	}
	close(c.news)
	c.news = make(chan struct{})
}

func spanOf(s *otlp.Span) Span {
	attributes := map[string]string{}
	for _, a := range s.GetAttributes() {
		attributes[a.GetKey()] = valueOf(a.GetValue())
	}
	return Span{
		Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
		Name: s.GetName(), Attributes: attributes, Failed: s.GetStatus().GetCode() == otlp.Status_STATUS_CODE_ERROR,
	}
}

func valueOf(v *common.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *common.AnyValue_StringValue:
		return v.StringValue
	case *common.AnyValue_IntValue:
		return strconv.FormatInt(v.IntValue, 10)
	case *common.AnyValue_BoolValue:
		return strconv.FormatBool(v.BoolValue)
	}
	return v.String()
}

// Spans returns all spans that have come.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Await returns all spans of a trace as soon as there is one of that name among them, which
// has ended after its children. trace "" means the first trace that has such a span.
func (c *Collector) Await(ctx context.Context, trace, name string) ([]Span, error) {
	for {
		c.mu.Lock()
		spans, news := slices.Clone(c.spans), c.news
		c.mu.Unlock()
		i := slices.IndexFunc(spans, func(s Span) bool { return s.Name == name && (trace == "" || s.Trace == trace) })
		if i >= 0 {
			of := spans[i].Trace
			return slices.DeleteFunc(spans, func(s Span) bool { return s.Trace != of }), nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return spans, context.Cause(ctx)
		}
	}
}

// Under returns the names of the spans directly below one, in order.
func Under(spans []Span, id string) []string {
	var names []string
	for _, s := range spans {
		if s.Parent == id {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Find returns the span of that name, the last if there are several.
func Find(t *testing.T, spans []Span, name string) Span {
	t.Helper()
	for _, s := range slices.Backward(spans) {
		if s.Name == name {
			return s
		}
	}
	var names []string
	for _, s := range spans {
		names = append(names, s.Name)
	}
	t.Fatalf("no span %q among %q", name, names)
	return Span{}
}
