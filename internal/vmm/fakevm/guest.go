package fakevm

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/kilnvm/kiln/internal/sandboxd"
	"github.com/kilnvm/kiln/internal/vmm"
)

// Guests runs the real guest daemon in every fake machine and records what it would do
// to the machine as a whole. Commands run on the host. The zero value is ready to use.
type Guests struct {
	// Connections is what every guest says is open when it is asked to quiesce.
	Connections []string

	mu     sync.Mutex
	guests map[string]*Guest // by the machine's folder
}

// Guest is what the daemon of one machine was told.
type Guest struct {
	connections []string

	mu       sync.Mutex
	entropy  [][]byte
	clocks   []time.Time
	hostname string
	bootID   string
}

// Serve is a [Driver.Serve].
func (g *Guests) Serve(ctx context.Context, cfg vmm.Config, l net.Listener) error {
	guest := &Guest{connections: g.Connections}
	g.mu.Lock()
	if g.guests == nil {
		g.guests = map[string]*Guest{}
	}
	g.guests[cfg.Dir] = guest
	g.mu.Unlock()
	root := filepath.Join(cfg.Dir, "root")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	return sandboxd.New(sandboxd.Options{System: guest, Root: root}).Serve(ctx, l)
}

// All returns the guests so far.
func (g *Guests) All() []*Guest {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []*Guest
	for _, guest := range g.guests {
		all = append(all, guest)
	}
	return all
}

// In returns the guest of the machine with that folder, or nil.
func (g *Guests) In(dir string) *Guest {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.guests[dir]
}

// Entropy returns what the guest's random state was fed with.
func (g *Guest) Entropy() [][]byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.entropy)
}

// Hostname returns the guest's name.
func (g *Guest) Hostname() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.hostname
}

// AddEntropy implements sandboxd.System, as do the methods below.
func (g *Guest) AddEntropy(b []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.entropy = append(g.entropy, slices.Clone(b))
	return nil
}

func (g *Guest) Prepare() error { return nil }

func (g *Guest) SetClock(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clocks = append(g.clocks, t)
	return nil
}

func (g *Guest) SetHostname(name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hostname = name
	return nil
}

func (g *Guest) SetBootID(id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bootID = id
	return nil
}

func (g *Guest) Reload(string, string) error            { return nil }
func (g *Guest) Connections() ([]string, error)         { return g.connections, nil }
func (g *Guest) Sync()                                  {}
func (g *Guest) DropCaches() error                      { return nil }
func (g *Guest) EndProcesses(ctx context.Context) error { return nil }
