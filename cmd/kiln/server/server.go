package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/config"
	"github.com/kilnvm/kiln/internal/proxy"
	"github.com/kilnvm/kiln/internal/telemetry"
)

// Options is what Run needs to know.
type Options struct {
	Config  config.Config // valid
	Version string
	Log     *slog.Logger
	// LookupEnv finds the standard variables that say where traces go.
	LookupEnv func(string) (string, bool)
}

// blobsDir is where blobs are below the data directory.
const blobsDir = "blobs"

// BlobPath returns where a blob of a data directory is, for looking at it.
func BlobPath(dataDir string, d kiln.Digest) string {
	return filepath.Join(dataDir, blobsDir, "sha256", d.Hex()[:2], d.Hex())
}

// Run serves until ctx ends and then stops within the configured time. Its error is nil
// for an orderly stop; what the host lacks is a *kiln.Error that says how to mend it.
func Run(ctx context.Context, opts Options) (err error) {
	if uid := os.Geteuid(); uid != 0 {
		return kiln.Errorf(kiln.CodeForbidden, "kiln serve must run as root, not as user %d", uid).
			WithHint("builds need mounts and namespaces: use sudo, or a system service")
	}
	dir, err := openDataDir(opts.Config.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	listener, err := listen(ctx, opts.Config.Listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	s := &serving{opts: opts, log: opts.Log, dir: dir, gate: &gate{version: opts.Version}, metrics: telemetry.NewMetrics(opts.Version)}
	if s.traces, err = openTraces(ctx, opts); err != nil {
		return err
	}
	defer closeTraces(s.traces, opts)
	stopMetrics, err := s.serveMetrics(ctx)
	if err != nil {
		return err
	}
	defer stopMetrics()
	return s.run(ctx, listener)
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "cannot listen on %s: %w", address, err).
			WithHint("another program may use the port: give another with --listen HOST:PORT")
	}
	return l, nil
}

// serving is one run of the server.
type serving struct {
	opts Options
	log  *slog.Logger
	dir  *dataDir
	gate *gate
	node *node

	metrics *telemetry.Metrics
	traces  *telemetry.Traces // nil when none are made
}

func (s *serving) run(ctx context.Context, listener net.Listener) error {
	// Requests end with requests, not with ctx: at a stop they first see what they use
	// come to an orderly end.
	requests, endRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer endRequests()
	web := &http.Server{
		Handler:           s.gate,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	url := "http://" + reachable(listener.Addr().String())
	err := s.dir.writeInfo(Info{URL: url, PID: os.Getpid(), Version: s.opts.Version})
	if err == nil {
		s.log.Info("listening", "url", url, "data", s.dir.path)
		err = s.open(ctx)
	}
	if err == nil {
		s.log.Info("ready", "url", url)
		select {
		case <-ctx.Done():
			s.log.Info("stopping")
		case err = <-served:
			err = fmt.Errorf("serve: %w", err)
		}
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil // stopped while it started
	}
	return errors.Join(err, s.stop(web, endRequests))
}

// reachable replaces an address that means "all of this host's" by one to connect to.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// open makes the node and lets requests through to it.
func (s *serving) open(ctx context.Context) error {
	n, err := startNode(ctx, s, s.gate.say)
	if err != nil {
		return err
	}
	s.node = n
	s.metrics.Watch(n.sandboxes)
	spool := s.dir.join("uploads")
	if err := errors.Join(os.RemoveAll(spool), os.MkdirAll(spool, 0o700)); err != nil {
		return fmt.Errorf("uploads: %w", err)
	}
	s.gate.open(s.handler(n, spool))
	return nil
}

// handler answers requests with what a node has. spool is a folder for uploads.
func (s *serving) handler(n *node, spool string) http.Handler {
	c := s.opts.Config
	rest := api.New(api.Options{
		Templates: templates{n.pipeline, sandboxes{n.sandboxes, n.pipeline}, n.store}, Versions: versions{n.pipeline}, Diffs: diffs{n.store, n.blobs}, Sandboxes: sandboxes{n.sandboxes, n.pipeline},
		Observer: sandboxes{n.sandboxes, n.pipeline}, Networks: networks{n.sandboxes}, Domain: c.Domain, Pool: warmPool{n.sandboxes, n.store}, Auth: n.store, Access: n.store, Garbage: n.garbage,
		Version: s.opts.Version, SpoolDir: spool, MaxContextBytes: int64(c.Build.MaxContextMB) << 20,
		RequestTimeout: time.Duration(c.API.RequestTimeout), DefaultTTL: time.Duration(c.Sandbox.DefaultTTL),
		Sizes: c.SizeTable(), Metrics: s.metrics.Handler(s.log), Traces: s.traces.Provider(), Log: s.log,
	})
	return proxy.Handler(proxy.Options{
		Sandboxes: daemons{n.sandboxes}, Auth: n.store, Domain: or(c.Domain, api.LocalDomain), Next: rest.Handler(),
		Traces: s.traces.Provider(), Log: s.log,
	})
}

// stop ends everything within the configured time. New requests are refused at once;
// those that run end with what they use, the stubborn ones with the listener.
func (s *serving) stop(web *http.Server, endRequests context.CancelFunc) error {
	limit := time.Duration(s.opts.Config.API.ShutdownTimeout)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	quiet := make(chan error, 1)
	go func() { quiet <- web.Shutdown(ctx) }()
	var err error
	if s.node != nil {
		err = s.node.close(ctx)
	}
	endRequests()
	if waitErr := <-quiet; waitErr != nil {
		err = errors.Join(err, web.Close())
	}
	if err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	s.log.Info("stopped")
	return nil
}
