package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Protocols that traces are sent by, as OTEL_EXPORTER_OTLP_PROTOCOL names them.
const (
	ProtocolHTTP = "http/protobuf"
	ProtocolGRPC = "grpc"
)

// TraceOptions say where traces go.
type TraceOptions struct {
	// Endpoint is a collector's URL, "http://host:4318" or "https://…", without the path of
	// its traces; "" means the standard environment variables, OTEL_EXPORTER_OTLP_ENDPOINT
	// and its like.
	Endpoint string
	Protocol string // ProtocolHTTP if empty
	Version  string // of this program
	Log      *slog.Logger
}

// Traces sends traces until it is closed.
type Traces struct{ provider *sdktrace.TracerProvider }

// OpenTraces returns what sends traces. It does not wait for the collector: what cannot be
// sent is dropped, and the log says so. Sampling, batches, headers, certificates and further
// attributes of the resource follow the standard OTEL_* environment.
func OpenTraces(ctx context.Context, o TraceOptions) (*Traces, error) {
	client, err := o.client()
	if err != nil {
		return nil, err
	}
	exporter, err := otlptrace.New(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "kiln"), attribute.String("service.version", o.Version)),
		resource.WithHost(), resource.WithFromEnv(), resource.WithTelemetrySDK(),
	)
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, errors.Join(fmt.Errorf("traces: %w", err), exporter.Shutdown(ctx))
	}
	// The library knows one handler per program.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { o.Log.Warn("traces are lost", "error", err) }))
	return &Traces{sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))}, nil
}

func (o TraceOptions) client() (otlptrace.Client, error) {
	switch o.Protocol {
	case "", ProtocolHTTP:
		var opts []otlptracehttp.Option
		if o.Endpoint != "" {
			opts = append(opts, otlptracehttp.WithEndpointURL(strings.TrimSuffix(o.Endpoint, "/")+"/v1/traces"))
		}
		return otlptracehttp.NewClient(opts...), nil
	case ProtocolGRPC:
		var opts []otlptracegrpc.Option
		if o.Endpoint != "" {
			opts = append(opts, otlptracegrpc.WithEndpointURL(o.Endpoint))
		}
		return otlptracegrpc.NewClient(opts...), nil
	}
	return nil, fmt.Errorf("traces: protocol %q is neither %s nor %s", o.Protocol, ProtocolHTTP, ProtocolGRPC)
}

// Provider is where traces begin. That of nil is nil, which records nothing.
func (t *Traces) Provider() trace.TracerProvider {
	if t == nil {
		return nil
	}
	return t.provider
}

// Close sends what is left.
func (t *Traces) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}
