// Package span marks what the stages of a build and the steps of a start do, for traces.
// It records below the span that a context carries, and only there: whoever begins a trace
// (a request, a build) decides whether and where it is kept, and without one a step costs
// nothing. It needs nothing but OpenTelemetry's interface.
package span

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// scope names this program as the source of its spans.
const scope = "github.com/kilnvm/kiln"

// Do runs a step within a span of that name. A step that fails marks its span.
func Do(ctx context.Context, name string, step func(context.Context) error) error {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return step(ctx)
	}
	ctx, s := parent.TracerProvider().Tracer(scope).Start(ctx, name)
	return finish(s, step(ctx))
}

// Begin begins a trace, or goes on with the one of another process that ctx carries. end
// takes how it ended. traces nil records nothing.
func Begin(ctx context.Context, traces trace.TracerProvider, name string, kind trace.SpanKind, attrs ...attribute.KeyValue) (_ context.Context, end func(error)) {
	if traces == nil {
		traces = noop.NewTracerProvider()
	}
	ctx, s := traces.Tracer(scope).Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(attrs...))
	return ctx, func(err error) { _ = finish(s, err) }
}

// Note adds facts to the span of ctx.
func Note(ctx context.Context, attrs ...attribute.KeyValue) {
	trace.SpanFromContext(ctx).SetAttributes(attrs...)
}

// Under returns ctx with the span that from carries, for work that outlives from.
func Under(ctx, from context.Context) context.Context {
	return trace.ContextWithSpan(ctx, trace.SpanFromContext(from))
}

func finish(s trace.Span, err error) error {
	if err != nil {
		s.RecordError(err)
		s.SetStatus(codes.Error, err.Error())
	}
	s.End()
	return err
}

// Header is the name of the only header that a trace travels in, as the W3C has it.
const Header = "traceparent"

// Parent returns what names the span of ctx to another process, in the form of the W3C's
// header traceparent; "" when there is none.
func Parent(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[Header]
}

// WithParent returns ctx with the span that a traceparent names. One that is no traceparent
// names none.
func WithParent(ctx context.Context, parent string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{Header: parent})
}
