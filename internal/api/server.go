package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/span"
)

// Options is what a server is made of. Templates, Versions, Diffs, Sandboxes, Auth, Access,
// Garbage and SpoolDir are required.
type Options struct {
	Templates Templates
	Versions  Versions
	Diffs     Diffs
	Sandboxes Sandboxes
	Observer  Observer
	Networks  Networks
	// Domain is the parent of sandbox host names; "" means LocalDomain.
	Domain  string
	Pool    Pool
	Auth    Authenticator
	Access  Access
	Garbage Garbage
	// Ready says why the server cannot serve yet or any more; nil means always ready.
	Ready func() error
	// Version is the program's, for /healthz and the OpenAPI document.
	Version string
	// SpoolDir is an existing folder for uploads on their way to the pipeline.
	SpoolDir string
	// MaxContextBytes bounds an uploaded build context; 0 means 2 GiB.
	MaxContextBytes int64
	// RequestTimeout bounds requests that neither stream nor run a command; 0 means 30 s.
	RequestTimeout time.Duration
	// DefaultTTL is the life of a sandbox whose request names none; 0 means kiln.DefaultTTL.
	DefaultTTL time.Duration
	// Sizes are this server's.
	Sizes kiln.SizeTable
	// Metrics answers GET /metrics to the operator; nil means that there are none.
	Metrics http.Handler
	// Traces takes the traces of requests, which go on with those that their header
	// traceparent names; nil records none.
	Traces trace.TracerProvider
	Log    *slog.Logger // nil discards
}

// Server answers /v1, /openapi.json, /healthz and /readyz.
type Server struct {
	opts Options
	log  *slog.Logger
	mux  *http.ServeMux
	api  huma.API
}

// New returns a server for opts.
func New(opts Options) *Server {
	useOwnErrors()
	if opts.MaxContextBytes == 0 {
		opts.MaxContextBytes = 2 << 30
	}
	if opts.RequestTimeout == 0 {
		opts.RequestTimeout = 30 * time.Second
	}
	if opts.DefaultTTL == 0 {
		opts.DefaultTTL = kiln.DefaultTTL
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: opts, log: opts.Log, mux: http.NewServeMux()}
	s.api = humago.New(s.mux, apiConfig(opts.Version))
	s.registerTemplates()
	s.registerVersions()
	s.registerCapture()
	s.registerDiff()
	s.registerBuilds()
	s.registerSandboxes()
	s.registerUsage()
	s.registerEgress()
	s.registerPool()
	s.registerPorts()
	s.registerExec()
	s.registerFiles()
	s.registerAccess()
	s.registerHealth()
	if opts.Metrics != nil {
		s.mux.Handle("GET /metrics", s.forOperator(opts.Metrics))
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, newError(kiln.CodeNotFound, "no such route: "+r.Method+" "+r.URL.Path, "the API is described at /openapi.json"))
	})
	return s
}

// apiConfig describes the API in OpenAPI 3.1. It starts from nothing rather than from
// huma's defaults, which add links and a page that loads scripts from a public host.
func apiConfig(version string) huma.Config {
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Kiln", Version: version,
				Description: "Templates are built from Dockerfiles; sandboxes are private clones of their snapshots.",
				License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Components: &huma.Components{
				Schemas: schemas,
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"token": {Type: "http", Scheme: "bearer", Description: "The local server's token is in <data dir>/token."},
				},
			},
			Security: []map[string][]string{{"token": {}}},
		},
		OpenAPIPath:   "/openapi",
		Formats:       map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat: "application/json",
	}
}

// Handler returns the HTTP handler: authentication around every route that needs it.
func (s *Server) Handler() http.Handler {
	return s.recovering(s.authenticated(s.mux))
}

// OpenAPI returns the description of the API as indented JSON.
func (s *Server) OpenAPI() ([]byte, error) { return openAPIDocument(s.api.OpenAPI()) }

// recovering keeps one broken request from ending the server.
func (s *Server) recovering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(v) // cut the connection: the answer is not whole
			}
			s.log.ErrorContext(r.Context(), "panic", "request", r.Method+" "+r.URL.Path, "panic", v, "stack", string(debug.Stack()))
			writeError(w, newError(kiln.CodeInternal, "internal error", "the server's log says more"))
		}()
		next.ServeHTTP(w, r)
	})
}

// forOperator passes the operator's requests on and refuses all others.
func (s *Server) forOperator(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := operatorOnly(r.Context()); err != nil {
			writeError(w, errorFor(r.Context(), s.log, r.Method+" "+r.URL.Path, err))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// route is an operation with what huma does not know about it.
type route struct {
	huma.Operation
	// unbounded routes stream or run a command and bound themselves.
	unbounded bool
	// body describes a request body that the handler reads itself, as a stream.
	body *huma.RequestBody
}

// maxJSONBody bounds every JSON request body.
const maxJSONBody = 4 << 20

// register adds one operation. Every error it returns passes through errorFor here and
// nowhere else.
func register[I, O any](s *Server, rt route, handler func(context.Context, *I) (*O, error)) {
	op := rt.Operation
	op.MaxBodyBytes = maxJSONBody
	op.BodyReadTimeout = 15 * time.Second
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	op.Responses["default"] = &huma.Response{
		Description: "Error",
		Content: map[string]*huma.MediaType{
			"application/json": {Schema: huma.SchemaFromType(s.api.OpenAPI().Components.Schemas, typeOf[Error]())},
		},
	}
	what := op.Method + " " + op.Path
	handler = audited(s, op, handler)
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		if !rt.unbounded {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, s.opts.RequestTimeout)
			defer cancel()
		}
		ctx, end := span.Begin(span.WithParent(ctx, callerOf(ctx).traceparent), s.opts.Traces, what, trace.SpanKindServer)
		out, err := handler(ctx, in)
		end(err)
		if err != nil {
			return nil, errorFor(ctx, s.log, what, err)
		}
		return out, nil
	})
	if rt.body != nil {
		// After the registration: huma would read and validate a body it knows of.
		documented(s.api.OpenAPI().Paths[op.Path], op.Method).RequestBody = rt.body
	}
}

func documented(item *huma.PathItem, method string) *huma.Operation {
	if method == http.MethodPut {
		return item.Put
	}
	return item.Post
}
