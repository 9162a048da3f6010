package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/grpcerrors"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// Process is a running child. It is safe for concurrent use.
type Process struct {
	cfg     Config
	cmd     *exec.Cmd
	client  *client.Client
	handoff *handoffConn
	stderr  *tail
	done    chan struct{}
	err     error // valid once done is closed

	mu      sync.Mutex
	waiting map[string]chan *os.File
}

// Start starts a child. ctx bounds the start, not the life of the child. It fails when
// another process uses the state folder ([ErrBusy]).
func Start(ctx context.Context, cfg Config) (*Process, error) {
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockState(ctx, cfg.StateDir)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // the child keeps its copy
	removeCgroups(cfg)

	apiParent, apiChild, err := socketPair(unix.SOCK_STREAM, "build API")
	if err != nil {
		return nil, err
	}
	defer apiChild.Close()
	api, err := fileConn(apiParent)
	if err != nil {
		return nil, err
	}
	handoffParent, handoffChild, err := socketPair(unix.SOCK_SEQPACKET, "handoff")
	if err != nil {
		api.Close()
		return nil, err
	}
	defer handoffChild.Close()
	handoff, err := newHandoffConn(handoffParent)
	if err != nil {
		api.Close()
		return nil, err
	}
	p := &Process{
		cfg: cfg, handoff: handoff, stderr: newTail(), done: make(chan struct{}),
		waiting: map[string]chan *os.File{},
	}
	if err := p.spawn([]*os.File{apiChild, handoffChild, lock}); err != nil {
		api.Close()
		handoff.close()
		return nil, err
	}
	if err := p.connect(ctx, api); err != nil {
		api.Close()
		return nil, errors.Join(err, p.Close())
	}
	go p.receive()
	return p, nil
}

// spawn starts the program again. The thread that starts a child must outlive it: the
// kernel sends the parent-death signal when that thread ends.
func (p *Process) spawn(files []*os.File) error {
	arg, err := p.cfg.encode()
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own program: %w", err)
	}
	p.cmd = exec.Command(exe, ChildArg, arg)
	p.cmd.ExtraFiles = files
	p.cmd.Stderr = p.stderr
	p.cmd.Dir = "/"
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true,
	}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := p.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		err := p.cmd.Wait()
		removeCgroups(p.cfg)
		p.err = p.exitError(err)
		close(p.done)
	}()
	if err := <-started; err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("start builder in its own namespaces: %w (root is needed)", err)
		}
		return fmt.Errorf("start builder: %w", err)
	}
	return nil
}

func (p *Process) exitError(err error) error {
	if err == nil {
		err = errors.New("ended")
	}
	if text := p.stderr.String(); text != "" {
		return fmt.Errorf("builder process: %w: %s", err, text)
	}
	return fmt.Errorf("builder process: %w", err)
}

// connect waits until the child serves and makes the API client.
func (p *Process) connect(ctx context.Context, api net.Conn) error {
	started := make(chan error, 1)
	go func() {
		m, _, err := p.handoff.receive()
		if err == nil && !m.Started {
			err = errors.New("unexpected first packet")
		}
		started <- err
	}()
	select {
	case err := <-started:
		if err != nil {
			<-p.done
			return p.err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	conns := make(chan net.Conn, 1)
	conns <- api
	c, err := client.New(ctx, "passthrough:///kiln-builder", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		select {
		case conn := <-conns:
			return conn, nil
		default:
			return nil, errors.New("the builder process has ended")
		}
	}))
	if err != nil {
		return fmt.Errorf("build API: %w", err)
	}
	p.client = c
	return nil
}

// Client returns the client of BuildKit's API.
func (p *Process) Client() *client.Client { return p.client }

// Done is closed when the child has ended; Err then says why.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says why the child ended. It may be called once Done is closed.
func (p *Process) Err() error { return p.err }

// brokenWait is how long after its connection broke the end of a child may take to be
// noticed.
const brokenWait = 2 * time.Second

// Explain replaces an error that only says that the connection to the child broke by
// the reason why the child ended.
func (p *Process) Explain(err error) error {
	if err == nil || grpcerrors.Code(err) != codes.Unavailable {
		return err
	}
	timer := time.NewTimer(brokenWait)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.err
	case <-timer.C:
		return err
	}
}

// Result is a root filesystem on its way from the child.
type Result struct {
	p     *Process
	token string
	dir   chan *os.File
}

// Expect announces a result. Its Attrs go into the export entry of the build. Release
// it in any case.
func (p *Process) Expect(token string) *Result {
	r := &Result{p: p, token: token, dir: make(chan *os.File, 1)}
	p.mu.Lock()
	p.waiting[token] = r.dir
	p.mu.Unlock()
	return r
}

// Attrs are the attributes of the exporter [ExporterName].
func (r *Result) Attrs() map[string]string { return map[string]string{tokenAttr: r.token} }

// Dir returns the root directory of the mounted result once the build has succeeded.
// It is the caller's to close.
func (r *Result) Dir(ctx context.Context) (*os.File, error) {
	select {
	case dir := <-r.dir:
		return dir, nil
	case <-r.p.done:
		return nil, r.p.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Release lets the child unmount the result. Descriptors below Dir should be closed.
func (r *Result) Release() error {
	r.p.mu.Lock()
	delete(r.p.waiting, r.token)
	r.p.mu.Unlock()
	select {
	case dir := <-r.dir:
		dir.Close()
	default:
	}
	err := r.p.handoff.send(handoffMessage{Release: r.token}, nil)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, net.ErrClosed) {
		return nil // the child has ended, and its mounts with it
	}
	return err
}

// receive routes root filesystems to those who expect them, until the child ends.
func (p *Process) receive() {
	for {
		m, dir, err := p.handoff.receive()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				slog.Debug("builder handoff", "error", err)
			}
			return
		}
		if dir == nil {
			continue
		}
		p.mu.Lock()
		expected := p.waiting[m.Ready]
		delete(p.waiting, m.Ready)
		if expected != nil {
			expected <- dir
		}
		p.mu.Unlock()
		if expected == nil {
			dir.Close()
			p.handoff.send(handoffMessage{Release: m.Ready}, nil)
		}
	}
}

// Close ends the child and waits for its end. Builds that still run fail.
func (p *Process) Close() error {
	var errs []error
	if p.client != nil {
		errs = append(errs, p.client.Close())
	}
	errs = append(errs, p.handoff.close())
	timer := time.NewTimer(stopTimeout + time.Second)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		errs = append(errs, p.cmd.Process.Kill())
		<-p.done
	}
	return errors.Join(errs...)
}

// ErrBusy says that another process uses the state folder.
var ErrBusy = errors.New("in use by another process")

// lockWait is how long a lock may be held by a child that is just ending.
const lockWait = 3 * time.Second

// lockState takes the lock of a state folder. Parent and child share it: it is free
// again when both have closed it or ended.
func lockState(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		select { // the kernel has no event for a lock that becomes free, short of blocking
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			f.Close()
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, fmt.Errorf("build state folder %s: %w", dir, ErrBusy)
			}
			return nil, context.Cause(ctx)
		}
	}
}

// Sweep removes what a child that was killed left in its state folder and among the
// control groups. [Start] does so too; a server that may start none for a long time calls
// it. It does nothing while a child uses the folder.
func Sweep(ctx context.Context, cfg Config) error {
	lock, err := lockState(ctx, cfg.StateDir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	// The last processes of a killed child end a moment after it has let go of the lock.
	deadline := time.Now().Add(lockWait)
	for removeCgroups(cfg) && time.Now().Before(deadline) {
		select { // version 1 tells nobody when a group has become empty
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return removeFiles(cfg)
}

// tail keeps the last lines that the child wrote to its standard error.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 8 << 10

func newTail() *tail { return &tail{} }

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if len(t.buf) > tailBytes {
		t.buf = bytes.Clone(t.buf[len(t.buf)-tailBytes:])
	}
	slog.Debug("builder", "stderr", strings.TrimSpace(string(b)))
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}
