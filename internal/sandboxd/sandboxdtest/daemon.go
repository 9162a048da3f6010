// Package sandboxdtest runs the real guest daemon on this machine, for tests: commands and
// files are real, what would change the machine itself is recorded.
package sandboxdtest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kilnvm/kiln/internal/sandboxd"
)

// Accounts of every [Daemon].
const (
	AgentName = "agent"
	AgentUID  = 12345
	AgentGID  = 12346
	ExtraGID  = 12347 // the agent is also a member of this group, called "extra"
)

// Daemon is a running daemon.
type Daemon struct {
	URL    string // "http://127.0.0.1:…"
	Root   string // its Options.Root
	Home   string // of the agent; root's is Root+"/root"
	System *System
	// PoweredOff is closed when the daemon has been told to shut down.
	PoweredOff <-chan struct{}

	address string
	server  *sandboxd.Server
	stop    func()
}

// Start runs a daemon until the test ends. It needs root, to run commands as other users.
func Start(t testing.TB) *Daemon {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test runs commands as other users: run it as root")
	}
	d := &Daemon{Root: rootDir(t), System: &System{}}
	d.Home = filepath.Join(d.Root, "home/agent")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	off := make(chan struct{})
	d.PoweredOff = off
	d.address = listener.Addr().String()
	d.URL = "http://" + d.address
	ctx, cancel := context.WithCancel(context.Background())
	d.server = sandboxd.New(sandboxd.Options{System: d.System, Root: d.Root, PowerOff: func() { close(off); cancel() }})
	served := make(chan error, 1)
	go func() { served <- d.server.Serve(ctx, listener) }()
	d.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("daemon: %v", err)
		}
	})
	t.Cleanup(d.stop)
	return d
}

// Stop ends the daemon in order. It may be called more than once.
func (d *Daemon) Stop() { d.stop() }

// Dial connects to the daemon.
func (d *Daemon) Dial(ctx context.Context) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", d.address)
}

// Call sends the daemon a request by the short way that emulated machines have.
func (d *Daemon) Call(_ context.Context, request []byte) (reply []byte, err error) {
	return d.server.Identify(request), nil
}

// rootDir makes a root whose accounts every user of this machine can reach.
func rootDir(t testing.TB) string {
	t.Helper()
	root, err := os.MkdirTemp("", "kiln-sandboxd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	home := filepath.Join(root, "home/agent")
	for path, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:" + root + "/root:/bin/sh\nagent:x:12345:12346::" + home + ":/bin/sh\n",
		"etc/group":  "root:x:0:\nagents:x:12346:\nextra:x:12347:other,agent\n",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{root + "/root", home} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, AgentUID, AgentGID); err != nil {
		t.Fatal(err)
	}
	return root
}

// System records what a daemon wants done to its machine.
type System struct {
	mu    sync.Mutex
	calls Calls
	open  []string
}

// Calls are the arguments of all calls so far, in their order.
type Calls struct {
	Entropy   [][]byte
	Clocks    []time.Time
	Hostnames []string
	BootIDs   []string
	Reloads   []string
	Syncs     int
	Drops     int
	Order     []string // of all of them, by name of the method
}

// Calls returns what was recorded.
func (s *System) Calls() Calls {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// Open sets the connections that are reported as open.
func (s *System) Open(connections ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = connections
}

func (s *System) record(name string, change func(*Calls)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.calls)
	s.calls.Order = append(s.calls.Order, name)
	return nil
}

// Prepare implements [sandboxd.System].
func (s *System) Prepare() error { return nil }

// AddEntropy implements [sandboxd.System].
func (s *System) AddEntropy(b []byte) error {
	return s.record("AddEntropy", func(c *Calls) { c.Entropy = append(c.Entropy, slices.Clone(b)) })
}

// SetClock implements [sandboxd.System].
func (s *System) SetClock(t time.Time) error {
	return s.record("SetClock", func(c *Calls) { c.Clocks = append(c.Clocks, t) })
}

// SetHostname implements [sandboxd.System].
func (s *System) SetHostname(name string) error {
	return s.record("SetHostname", func(c *Calls) { c.Hostnames = append(c.Hostnames, name) })
}

// SetBootID implements [sandboxd.System].
func (s *System) SetBootID(id string) error {
	return s.record("SetBootID", func(c *Calls) { c.BootIDs = append(c.BootIDs, id) })
}

// Reload implements [sandboxd.System].
func (s *System) Reload(_, command string) error {
	return s.record("Reload", func(c *Calls) { c.Reloads = append(c.Reloads, command) })
}

// Connections implements [sandboxd.System].
func (s *System) Connections() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open, nil
}

// Sync implements [sandboxd.System].
func (s *System) Sync() { _ = s.record("Sync", func(c *Calls) { c.Syncs++ }) }

// DropCaches implements [sandboxd.System].
func (s *System) DropCaches() error {
	return s.record("DropCaches", func(c *Calls) { c.Drops++ })
}
