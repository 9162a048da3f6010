package server

import (
	"context"
	"net/http"
	"time"

	"github.com/kilnvm/kiln/internal/telemetry"
)

// openTraces returns what sends traces, or nil when nobody said where to.
func openTraces(ctx context.Context, opts Options) (*telemetry.Traces, error) {
	set := func(name string) string {
		if opts.LookupEnv == nil {
			return ""
		}
		value, _ := opts.LookupEnv(name)
		return value
	}
	endpoint := opts.Config.Telemetry.Endpoint
	wanted := endpoint != "" || set("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" ||
		set("OTEL_TRACES_EXPORTER") == "otlp"
	if !wanted || set("OTEL_SDK_DISABLED") == "true" || set("OTEL_TRACES_EXPORTER") == "none" {
		return nil, nil
	}
	protocol := or(opts.Config.Telemetry.Protocol, or(set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), set("OTEL_EXPORTER_OTLP_PROTOCOL")))
	return telemetry.OpenTraces(ctx, telemetry.TraceOptions{Endpoint: endpoint, Protocol: protocol, Version: opts.Version, Log: opts.Log})
}

// flushTime bounds the sending of the last traces.
const flushTime = 5 * time.Second

// closeTraces sends what is left. That the collector does not take it is no failure of the
// server's.
func closeTraces(t *telemetry.Traces, opts Options) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	if err := t.Close(ctx); err != nil {
		opts.Log.Warn("traces are lost", "error", err)
	}
}

// serveMetrics answers GET /metrics at the address for it, if there is one, until stop.
func (s *serving) serveMetrics(ctx context.Context) (stop func(), err error) {
	address := s.opts.Config.Metrics.Listen
	if address == "" {
		return func() {}, nil
	}
	l, err := listen(ctx, address)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.metrics.Handler(s.log))
	web := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = web.Serve(l) }() // until it is closed
	s.log.Info("metrics", "url", "http://"+reachable(l.Addr().String())+"/metrics")
	return func() { _ = web.Close() }, nil
}
