package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// Descriptors that the child inherits.
const (
	fdAPI     = 3
	fdHandoff = 4
	fdLock    = 5
)

// stopTimeout bounds an orderly end of the child.
const stopTimeout = 5 * time.Second

// Main is the program of the child: it serves BuildKit to its parent until the parent
// closes the handoff socket or ends. args follow [ChildArg]. It returns the exit code.
func Main(args []string) int {
	if err := runChild(args); err != nil {
		fmt.Fprintln(os.Stderr, "builder:", err)
		return 1
	}
	return 0
}

func runChild(args []string) error {
	if len(args) != 1 {
		return errors.New("this command is internal: it is started by the build stage")
	}
	cfg, err := decodeConfig(args[0])
	if err != nil {
		return err
	}
	unix.CloseOnExec(fdLock)
	api, err := fileConn(os.NewFile(fdAPI, "build API"))
	if err != nil {
		return err
	}
	handoff, err := newHandoffConn(os.NewFile(fdHandoff, "handoff"))
	if err != nil {
		return err
	}
	if err := prepareChild(cfg); err != nil {
		return err
	}
	return serveChild(cfg, api, handoff)
}

// prepareChild makes the namespaces usable and removes what a killed child left.
func prepareChild(cfg Config) error {
	logrus.SetLevel(logrus.WarnLevel)
	if err := isolateMounts(); err != nil {
		return err
	}
	if err := removeFiles(cfg); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.tmpDir(), 0o700); err != nil {
		return err
	}
	if cfg.CABundle != "" {
		if err := prepareCA(cfg.caDir(), cfg.CABundle); err != nil {
			return err
		}
	}
	return os.Setenv("TMPDIR", cfg.tmpDir())
}

func serveChild(cfg Config, api net.Conn, handoff *handoffConn) error {
	results := newResults(handoff)
	controller, err := newController(cfg, results)
	if err != nil {
		return fmt.Errorf("start BuildKit: %w", err)
	}
	server := grpc.NewServer(
		grpc.UnaryInterceptor(grpcerrors.UnaryServerInterceptor),
		grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
	controller.Register(server)
	listener := newSingleListener(api)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	if err := handoff.send(handoffMessage{Started: true}, nil); err != nil {
		return fmt.Errorf("report start: %w", err)
	}
	followParent(handoff, results)

	// The parent is done or gone. RUN steps still running end with this process at the
	// latest, so an orderly end gets a bounded time only.
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	stopped := make(chan error, 1)
	go func() {
		server.Stop()
		<-served
		stopped <- errors.Join(results.releaseAll(), controller.Close())
	}()
	select {
	case err := <-stopped:
		return err
	case <-ctx.Done():
		return fmt.Errorf("stop BuildKit: %w", ctx.Err())
	}
}

// followParent releases results as the parent asks, until the parent is gone.
func followParent(handoff *handoffConn, results *results) {
	for {
		m, dir, err := handoff.receive()
		if dir != nil {
			dir.Close()
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				logrus.WithError(err).Warn("handoff socket")
			}
			return
		}
		if m.Release == "" {
			continue
		}
		if err := results.release(m.Release); err != nil {
			logrus.WithError(err).Warn("release root filesystem")
		}
	}
}

// isolateMounts makes the new mount namespace match the new PID namespace. Mounts of
// the host stay visible (and go when they go there); none made here is seen outside.
func isolateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// runc's record of running containers: on a file system of our own, so that it
	// vanishes with them.
	if err := os.MkdirAll(runcStateDir, 0o711); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", runcStateDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=711"); err != nil {
		return fmt.Errorf("mount %s: %w", runcStateDir, err)
	}
	return nil
}

const runcStateDir = "/run/runc"

// removeFiles removes what a child that was killed left in its state folder.
func removeFiles(cfg Config) error {
	leftovers, err := filepath.Glob(filepath.Join(cfg.StateDir, "runc-*", "executor", "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range append(leftovers, cfg.tmpDir()) {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}

// singleListener hands out one connection, then waits to be closed.
type singleListener struct {
	conns  chan net.Conn
	closed chan struct{}
	addr   net.Addr
}

func newSingleListener(c net.Conn) *singleListener {
	l := &singleListener{conns: make(chan net.Conn, 1), closed: make(chan struct{}), addr: c.LocalAddr()}
	l.conns <- c
	return l
}

func (l *singleListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close is called once, by the server that owns the listener.
func (l *singleListener) Close() error {
	close(l.closed)
	return nil
}

func (l *singleListener) Addr() net.Addr { return l.addr }
