package sandboxd

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/kilnvm/kiln/internal/guestapi/filesystem/filesystemconnect"
	"github.com/kilnvm/kiln/internal/guestapi/process/processconnect"
	"github.com/kilnvm/kiln/internal/sandboxd/reap"
)

// Options configure a [Server].
type Options struct {
	// System carries out what affects the whole machine. Required.
	System System
	// Children starts every command. PID 1 passes the registry that its reaper uses; nil
	// means one of the server's own.
	Children *reap.Registry
	// Root is the folder below which the daemon looks for /etc (accounts, host name,
	// machine ID, SSH keys) and /var; "" means "/". Paths in requests are not affected.
	Root string
	// PowerOff is called once, after POST /shutdown has been answered. It should end the
	// context of Serve. nil means that nothing more happens.
	PowerOff func()
	// Log may be nil.
	Log *slog.Logger
}

// Server is the daemon. Make it with [New].
type Server struct {
	system    System
	root      string
	powerOff  func()
	log       *slog.Logger
	accounts  accounts
	settings  settings
	processes processTable
	watchers  watcherTable
	cpu       cpuMeter
	initMu    sync.Mutex // one POST /init at a time; guards what follows
	plates    plates
	// identified is set once the machine has a name of its own.
	identified bool
	shutdown   sync.Once
}

// maxMessage bounds one RPC message in bytes: a client sends standard input in one piece.
const maxMessage = 64 << 20

// New returns a daemon that is not serving yet.
func New(o Options) *Server {
	s := &Server{system: o.System, root: o.Root, powerOff: o.PowerOff, log: o.Log}
	if s.root == "" {
		s.root = "/"
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	children := o.Children
	if children == nil {
		children = &reap.Registry{}
	}
	s.accounts = accounts{root: s.root}
	s.processes = newProcessTable(children, s.log)
	s.watchers = watcherTable{running: map[string]*watcher{}}
	s.cpu.sample()
	return s
}

// Handler returns the daemon's HTTP interface.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /files", rest(s.getFile))
	mux.HandleFunc("POST /files", rest(s.postFiles))
	mux.HandleFunc("POST /files/compose", rest(s.composeFile))
	mux.HandleFunc("GET /envs", rest(s.getEnv))
	mux.HandleFunc("GET /metrics", rest(s.getMetrics))
	mux.HandleFunc("POST /init", rest(s.postInit))
	mux.HandleFunc("POST /quiesce", rest(s.postQuiesce))
	mux.HandleFunc("GET /root", rest(s.getRoot))
	mux.HandleFunc("POST /shutdown", rest(s.postShutdown))
	limit := connect.WithReadMaxBytes(maxMessage)
	mux.Handle(processconnect.NewProcessHandler(&processService{server: s}, limit))
	mux.Handle(filesystemconnect.NewFilesystemHandler(&filesystemService{server: s}, limit))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, errorf(connect.CodeNotFound, "no such endpoint: %s %s", r.Method, r.URL.Path))
	})
	return s.forwardPorts(s.authenticate(mux))
}

// lastWords is how long answers that are under way may take when serving ends.
const lastWords = time.Second

// Serve answers requests on ln until ctx ends. Then it kills the commands that are still
// running, tells those who follow them, and returns nil.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	// Requests live on for a moment, to hear how their commands have ended.
	requests, endRequests := context.WithCancel(context.WithoutCancel(ctx))
	server := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return requests },
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	s.processes.killAll()
	s.watchers.close()
	endRequests()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	_ = server.Shutdown(grace)
	_ = server.Close()
	return err
}
