package proxy

import (
	"errors"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnvm/kiln/internal/span"
)

var errCutOff = errors.New("the answer was cut off")

// traced has serve answer a request within a span. The span says which sandbox the request
// is for and how it was answered, and of the request no more than its method and, of the
// daemon's, the path: queries, headers, bodies and paths of services are not Kiln's to tell.
// Only whoever is known chooses the trace that the span is part of.
func (h *handler) traced(w http.ResponseWriter, r *http.Request, to target, known bool, serve http.HandlerFunc) {
	name := "sandbox port"
	attrs := []attribute.KeyValue{
		attribute.String("kiln.sandbox", to.id), attribute.String("kiln.port", to.port), attribute.String("http.request.method", r.Method),
	}
	if to.port == DaemonPort {
		name = "sandbox daemon"
		attrs = append(attrs, attribute.String("url.path", r.URL.Path))
	}
	ctx := r.Context()
	if known {
		ctx = span.WithParent(ctx, r.Header.Get(span.Header))
	}
	ctx, end := span.Begin(ctx, h.Traces, name, trace.SpanKindServer, attrs...)
	// A panic is how the reverse proxy cuts an answer off.
	outcome := errCutOff
	defer func() { end(outcome) }()
	a := &answer{ResponseWriter: w, status: http.StatusSwitchingProtocols}
	serve(a, r.WithContext(ctx))
	span.Note(ctx, attribute.Int("http.response.status_code", a.status))
	outcome = nil
	if a.status >= http.StatusInternalServerError {
		outcome = errors.New(http.StatusText(a.status))
	}
}

// answer keeps the status of an answer, which is not written here when a connection is
// taken over.
type answer struct {
	http.ResponseWriter
	status int
}

func (a *answer) WriteHeader(status int) {
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

// Unwrap lets an [http.ResponseController] find what the writer below can do.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
