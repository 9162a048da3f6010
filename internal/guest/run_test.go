package guest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/sandboxd/sandboxdtest"
)

func start(t testing.TB) (*guest.Client, *sandboxdtest.Daemon) {
	t.Helper()
	d := sandboxdtest.Start(t)
	c := guest.New(d.Dial)
	t.Cleanup(c.Close)
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c, d
}

// sh runs a shell command and returns its output.
func sh(t testing.TB, c *guest.Client, script string, change ...func(*guest.Command)) string {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := guest.Command{Args: []string{"/bin/sh", "-c", script}, Stdout: &out, Stderr: &errOut}
	for _, f := range change {
		f(&cmd)
	}
	exit, err := c.Run(t.Context(), cmd)
	if err != nil || exit.Code != 0 {
		t.Fatalf("%s: %+v, %v, stderr %q", script, exit, err, errOut.String())
	}
	return out.String()
}

func TestRunExit(t *testing.T) {
	c, _ := start(t)
	for _, test := range []struct {
		script string
		want   guest.Exit
	}{
		{"exit 0", guest.Exit{}},
		{"exit 7", guest.Exit{Code: 7}},
		{"exit 255", guest.Exit{Code: 255}},
		{"kill -KILL $$", guest.Exit{Code: 137, Signal: "SIGKILL"}},
		{"kill -TERM $$", guest.Exit{Code: 143, Signal: "SIGTERM"}},
		{"ulimit -c 0; kill -SEGV $$", guest.Exit{Code: 139, Signal: "SIGSEGV"}},
	} {
		got, err := c.Run(t.Context(), guest.Command{Args: []string{"sh", "-c", test.script}})
		if err != nil || got != test.want {
			t.Errorf("%s: %+v, %v; want %+v", test.script, got, err, test.want)
		}
	}
}

func TestRunWhatCannotStart(t *testing.T) {
	c, d := start(t)
	write := func(name, text string, mode os.FileMode) string {
		path := d.Root + "/" + name
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, test := range []struct {
		name    string
		command guest.Command
		code    int
		text    string
	}{
		{"missing", guest.Command{Args: []string{"no-such-command"}}, 127, `"no-such-command" was not found`},
		{"missing path", guest.Command{Args: []string{"/no/such"}}, 127, `"/no/such" was not found`},
		{"no interpreter", guest.Command{Args: []string{write("a", "#!/no/shell\n", 0o755)}}, 127, "interpreter"},
		{"not executable", guest.Command{Args: []string{write("b", "#!/bin/sh\n", 0o644)}}, 126, "permission denied"},
		{"directory", guest.Command{Args: []string{d.Root}}, 126, "permission denied"},
		{"no program", guest.Command{Args: []string{write("c", "just text\n", 0o755)}}, 126, "#! line"},
		{"not for this user", guest.Command{Args: []string{write("d", "#!/bin/sh\n", 0o700)}, User: "agent"}, 126, "by user agent"},
		{"empty PATH", guest.Command{Args: []string{"sh"}, Env: map[string]string{"PATH": ""}}, 127, "was not found"},
	} {
		var out bytes.Buffer
		test.command.Stderr = &out
		exit, err := c.Run(t.Context(), test.command)
		if err != nil || exit.Code != test.code || !strings.Contains(out.String(), test.text) {
			t.Errorf("%s: %+v, %v, %q; want code %d and %q", test.name, exit, err, out.String(), test.code, test.text)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	c, _ := start(t)
	for _, test := range []struct {
		name    string
		command guest.Command
		text    string
	}{
		{"no command", guest.Command{}, "no command"},
		{"unknown user", guest.Command{Args: []string{"true"}, User: "nobody-here"}, `user "nobody-here" does not exist`},
		{"unknown group", guest.Command{Args: []string{"true"}, User: "root:nope"}, `group "nope" does not exist`},
		{"missing directory", guest.Command{Args: []string{"true"}, Dir: "/no/dir"}, `"/no/dir": no such file`},
		{"directory is a file", guest.Command{Args: []string{"true"}, Dir: "/etc/passwd"}, "not a directory"},
		{"bad variable", guest.Command{Args: []string{"true"}, Env: map[string]string{"A=B": "c"}}, "A=B"},
		{"NUL", guest.Command{Args: []string{"true"}, Dir: "/a\x00b"}, "NUL"},
	} {
		_, err := c.Run(t.Context(), test.command)
		if kiln.CodeOf(err) != kiln.CodeInvalid || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v (%s), want %q", test.name, err, kiln.CodeOf(err), test.text)
		}
	}
}

func TestRunAs(t *testing.T) {
	c, d := start(t)
	as := func(user string) func(*guest.Command) { return func(cmd *guest.Command) { cmd.User = user } }
	for _, test := range []struct{ user, want string }{
		{"", "0 0 0 root " + d.Root + "/root"},
		{"agent", "12345 12346 12346,12347 agent " + d.Home},
		{"12345", "12345 12346 12346,12347 agent " + d.Home},
		{"agent:extra", "12345 12347 12347 agent " + d.Home},
		{"agent:77", "12345 77 77 agent " + d.Home},
		{"4242", "4242 0 0 4242 /"},
		{"4242:4243", "4242 4243 4243 4242 /"},
	} {
		got := sh(t, c, `echo "$(id -u) $(id -g) $(id -G | tr ' ' ,) $USER $HOME"; test "$LOGNAME" = "$USER"; cd; test "$PWD" = "$HOME"`, as(test.user))
		if strings.TrimSpace(got) != test.want {
			t.Errorf("user %q: %q, want %q", test.user, strings.TrimSpace(got), test.want)
		}
	}
}

func TestEnvironmentLayers(t *testing.T) {
	c, d := start(t)
	if err := c.Configure(t.Context(), guest.Setup{
		Env: []string{"A=image", "B=image", "C=image", "PATH=/usr/bin:/bin", "D=a=b"}, User: "agent", WorkingDir: d.Root,
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.SetIdentity(t.Context(), kiln.Identity{Env: map[string]string{"B": "sandbox", "C": "sandbox"}}); err != nil {
		t.Fatal(err)
	}
	got := sh(t, c, `echo $A $B $C $D $PATH $USER; pwd`, func(cmd *guest.Command) { cmd.Env = map[string]string{"C": "request"} })
	if want := "image sandbox request a=b /usr/bin:/bin agent\n" + d.Root + "\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := c.Configure(t.Context(), guest.Setup{User: "no-such-user"}); kiln.CodeOf(err) != kiln.CodeInvalid {
		t.Errorf("unknown default user: %v", err)
	}
}

// Each piece of a dialogue comes back before the next is sent, whatever came before, and also
// where something on the way keeps a request until its end.
func TestRunStreamsAsItComes(t *testing.T) {
	c, _ := start(t)
	for name, test := range map[string]struct {
		client *guest.Client
		first  string
	}{
		"lines":                     {c, "line\n"},
		"lines after a large piece": {c, strings.Repeat("much\n", 20_000)},
		"lines through a keeper":    {guest.NewHTTP(guest.BaseURL, keeper{c.Anonymous()}), "line\n"},
	} {
		t.Run(name, func(t *testing.T) {
			stdin, feed := io.Pipe()
			out, show := io.Pipe()
			result := make(chan error, 1)
			go func() {
				exit, err := test.client.Run(t.Context(), guest.Command{Args: []string{"cat"}, Stdin: stdin, Stdout: show})
				if exit.Code != 0 {
					err = errors.Join(err, fmt.Errorf("exit %+v", exit))
				}
				result <- err
				show.Close()
			}()
			for i, text := range []string{test.first, "line 1\n", "line 2\n", "line 3\n"} {
				if _, err := io.WriteString(feed, text); err != nil {
					t.Fatal(err)
				}
				back := make([]byte, len(text))
				if n, err := io.ReadFull(out, back); err != nil || string(back) != text {
					t.Fatalf("piece %d: %d bytes came back, %v", i, n, err)
				}
			}
			feed.Close()
			if err := <-result; err != nil {
				t.Error(err)
			}
		})
	}
}

// keeper passes a request on when it has all of it.
type keeper struct{ next http.RoundTripper }

func (k keeper) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		whole, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(whole))
	}
	return k.next.RoundTrip(r)
}

func TestRunKeepsEveryByte(t *testing.T) {
	c, _ := start(t)
	all := make([]byte, 256*1024)
	for i := range all {
		all[i] = byte(i ^ i>>8)
	}
	var out, errOut bytes.Buffer
	exit, err := c.Run(t.Context(), guest.Command{
		Args: []string{"sh", "-c", "tee /dev/stderr"}, Stdin: bytes.NewReader(all), Stdout: &out, Stderr: &errOut,
	})
	if err != nil || exit.Code != 0 || !bytes.Equal(out.Bytes(), all) || !bytes.Equal(errOut.Bytes(), all) {
		t.Errorf("%+v, %v, %d and %d bytes", exit, err, out.Len(), errOut.Len())
	}
}

// slowHash reads slower than the command writes, for a while.
type slowHash struct {
	hash.Hash
	size int
}

func (s *slowHash) Write(b []byte) (int, error) {
	if s.size == 0 {
		time.Sleep(200 * time.Millisecond) // all buffers on the way fill up
	}
	s.size += len(b)
	return s.Hash.Write(b)
}

func TestBigOutputIsComplete(t *testing.T) {
	c, _ := start(t)
	const size = 300 << 20
	out := &slowHash{Hash: sha256.New()}
	begin := time.Now()
	exit, err := c.Run(t.Context(), guest.Command{Args: []string{"head", "-c", strconv.Itoa(size), "/dev/zero"}, Stdout: out})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	want := sha256.New()
	_, _ = io.CopyN(want, zeros{}, size)
	if out.size != size || !bytes.Equal(out.Sum(nil), want.Sum(nil)) {
		t.Errorf("%d of %d bytes", out.size, size)
	}
	t.Logf("%.0f MB/s", size/1e6/time.Since(begin).Seconds())
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestStdinThatNobodyReads(t *testing.T) {
	c, _ := start(t)
	exit, err := c.Run(t.Context(), guest.Command{Args: []string{"true"}, Stdin: zeros{}})
	if err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
	if got := sh(t, c, "readlink /proc/self/fd/0"); got != "/dev/null\n" {
		t.Errorf("without input it reads %q", got)
	}
}

func TestTerminal(t *testing.T) {
	c, d := start(t)
	in, feed := io.Pipe()
	out, show := io.Pipe()
	resize := make(chan guest.TTYSize)
	result := make(chan error, 1)
	go func() {
		_, err := c.Run(t.Context(), guest.Command{
			Args: []string{"sh", "-c", `stty size; test -O $(tty) && id -un; trap 'stty size; exit 0' WINCH; echo ready; while read x; do echo "got $x"; done`},
			User: "agent", Dir: d.Home, Env: map[string]string{"PS1": ""},
			Stdin: in, Stdout: show, TTY: &guest.TTY{Size: guest.TTYSize{Cols: 100, Rows: 30}, Resize: resize},
		})
		result <- err
		show.Close()
	}()
	expect := newExpecter(out)
	expect.until(t, "30 100\r\n")
	expect.until(t, "ready\r\n")
	if _, err := io.WriteString(feed, "hello\n"); err != nil {
		t.Fatal(err)
	}
	expect.until(t, "got hello\r\n")
	resize <- guest.TTYSize{Cols: 132, Rows: 43}
	// The shell runs its trap when read returns.
	expect.untilFed(t, feed, "43 132\r\n")
	if err := <-result; err != nil {
		t.Error(err)
	}
	feed.Close()
}

// expecter waits for text in a stream.
type expecter struct {
	mu   sync.Mutex
	more *sync.Cond
	text strings.Builder
	end  bool
}

func newExpecter(r io.Reader) *expecter {
	e := &expecter{}
	e.more = sync.NewCond(&e.mu)
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := r.Read(buffer)
			e.mu.Lock()
			e.text.Write(buffer[:n])
			e.end = err != nil
			e.more.Broadcast()
			e.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return e
}

func (e *expecter) until(t *testing.T, want string) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	for !strings.Contains(e.text.String(), want) {
		if e.end {
			t.Fatalf("the stream ended without %q: %q", want, e.text.String())
		}
		e.more.Wait()
	}
}

// untilFed sends lines until want appears.
func (e *expecter) untilFed(t *testing.T, feed io.Writer, want string) {
	t.Helper()
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				_, _ = io.WriteString(feed, "x\n")
			}
		}
	}()
	e.until(t, want)
	close(stop)
}

func TestHundredCommandsAtOnce(t *testing.T) {
	c, _ := start(t)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			var out bytes.Buffer
			exit, err := c.Run(t.Context(), guest.Command{
				Args: []string{"sh", "-c", fmt.Sprintf("cat; echo %d; exit %d", i, i)}, Stdin: strings.NewReader("in "), Stdout: &out,
			})
			if err != nil || exit.Code != i || out.String() != fmt.Sprintf("in %d\n", i) {
				t.Errorf("command %d: %+v, %v, %q", i, exit, err, out.String())
			}
		})
	}
	wg.Wait()
}

func TestContextEndsCommandAndItsGroup(t *testing.T) {
	c, _ := start(t)
	for _, test := range []struct {
		name string
		end  func(ctx context.Context, printed <-chan struct{}) (context.Context, context.CancelFunc)
		code kiln.ErrorCode
	}{
		{"timeout", func(ctx context.Context, _ <-chan struct{}) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 2*time.Second) // long enough for a busy host to start it
		}, kiln.CodeTimeout},
		{"cancel", func(ctx context.Context, printed <-chan struct{}) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			go func() { <-printed; cancel() }()
			return ctx, cancel
		}, kiln.CodeCanceled},
	} {
		out := firstWrite{written: make(chan struct{})}
		ctx, cancel := test.end(t.Context(), out.written)
		_, err := c.Run(ctx, guest.Command{Args: []string{"sh", "-c", "sleep 1000 & echo $!; wait"}, Stdout: &out})
		cancel()
		if kiln.CodeOf(err) != test.code {
			t.Errorf("%s: %v", test.name, err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
		if err != nil {
			t.Fatalf("%s: output %q", test.name, out.String())
		}
		if err := ended(pid); err != nil {
			t.Errorf("%s: process %d of the group still runs: %v", test.name, pid, err)
		}
	}
}

// firstWrite tells when something was written.
type firstWrite struct {
	bytes.Buffer
	once    sync.Once
	written chan struct{}
}

func (w *firstWrite) Write(b []byte) (int, error) {
	defer w.once.Do(func() { close(w.written) })
	return w.Buffer.Write(b)
}

// ended waits until a process has ended, reaped or not: here nobody but this machine's init
// reaps orphans.
func ended(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	if err == nil && n == 0 {
		return errors.New("not within 10 s")
	}
	return err
}

func TestWriteErrorKills(t *testing.T) {
	c, _ := start(t)
	r, w := io.Pipe()
	r.CloseWithError(errors.New("nobody listens"))
	_, err := c.Run(t.Context(), guest.Command{Args: []string{"yes"}, Stdout: w})
	if err == nil || !strings.Contains(err.Error(), "nobody listens") {
		t.Errorf("%v", err)
	}
}

func TestDetachedCommandRunsOn(t *testing.T) {
	c, d := start(t)
	fifo := d.Root + "/fifo"
	if err := unix.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	p, err := c.Start(t.Context(), guest.Command{Args: []string{"sh", "-c", "echo out; read x <" + fifo + "; echo $x >" + d.Root + "/result; echo done > " + fifo}})
	if err != nil {
		t.Fatal(err)
	}
	p.Detach()
	c.Close()
	if got := sh(t, c, "echo word >"+fifo+"; cat "+fifo+" "+d.Root+"/result"); got != "done\nword\n" {
		t.Errorf("%q", got)
	}
}

func TestProcessSignals(t *testing.T) {
	c, _ := start(t)
	out, show := io.Pipe()
	p, err := c.Start(t.Context(), guest.Command{Args: []string{"sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"}, Stdout: show})
	if err != nil {
		t.Fatal(err)
	}
	newExpecter(out).until(t, "ready")
	if err := p.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit, err := p.Wait(t.Context()); err != nil || exit.Code != 5 {
		t.Errorf("%+v, %v", exit, err)
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Errorf("kill after the end: %v", err)
	}
}

// cable is a connection to a daemon that can be cut, as the end of its VM does.
type cable struct {
	daemon *sandboxdtest.Daemon
	mu     sync.Mutex
	conns  []net.Conn
	cut    bool
}

func (c *cable) dial(ctx context.Context) (net.Conn, error) {
	conn, err := c.daemon.Dial(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return nil, errors.New("the machine is off")
	}
	c.conns = append(c.conns, conn)
	return conn, err
}

func (c *cable) pull() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	for _, conn := range c.conns {
		conn.Close()
	}
}

func TestGoneSandbox(t *testing.T) {
	cable := &cable{daemon: sandboxdtest.Start(t)}
	c := guest.New(cable.dial)
	out, show := io.Pipe()
	p, err := c.Start(t.Context(), guest.Command{Args: []string{"sh", "-c", "echo up; sleep 1000"}, Stdout: show})
	if err != nil {
		t.Fatal(err)
	}
	newExpecter(out).until(t, "up")
	cable.pull()
	_, waitErr := p.Wait(t.Context())
	_, runErr := c.Run(t.Context(), guest.Command{Args: []string{"true"}})
	_, readErr := c.ReadFile(t.Context(), "/etc/hostname")
	_, statErr := c.Stat(t.Context(), "/etc/hostname")
	for name, err := range map[string]error{"wait": waitErr, "run": runErr, "read": readErr, "stat": statErr} {
		if !errors.Is(err, guest.ErrGone) || kiln.CodeOf(err) != kiln.CodeUnavailable || !strings.Contains(err.Error(), "sandbox is gone") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWaitReady(t *testing.T) {
	d := sandboxdtest.Start(t)
	var attempts int
	c := guest.New(func(ctx context.Context) (net.Conn, error) {
		if attempts++; attempts < 5 {
			return nil, errors.New("not yet")
		}
		return d.Dial(ctx)
	})
	defer c.Close()
	if err := c.WaitReady(t.Context()); err != nil || attempts != 5 {
		t.Errorf("%v after %d attempts", err, attempts)
	}
	never := guest.New(func(context.Context) (net.Conn, error) { return nil, errors.New("never") })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := never.WaitReady(ctx); kiln.CodeOf(err) != kiln.CodeTimeout {
		t.Errorf("%v", err)
	}
}
