package sandbox

import (
	"context"
	"maps"
	"path/filepath"
	"sync"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/vmm"
)

// box is one living sandbox: what it is and what it holds.
type box struct {
	id   string
	dir  string
	plan *plan
	// cancelStart ends the start, if it is still under way, with a cause.
	cancelStart context.CancelCauseFunc
	started     chan struct{} // closed when the start is over, however it went
	ended       chan struct{} // closed when everything is released
	saving      sync.Mutex    // orders the writes of the row
	// front is the client that others are given. It wakes the sandbox and counts as its
	// use, as long as the box lives; client belongs to the machine of the moment.
	front *guest.Client
	// claimed is nil but for a warm slot, and closed when it stops being one.
	claimed   chan struct{}
	claimOnce func()
	// spawned is true for a slot that has not run yet: a VMM that was started ahead.
	spawned bool
	traffic *traffic

	mu      sync.Mutex
	view    kiln.Sandbox
	machine vmm.Machine
	client  *guest.Client
	slot    *network.Slot // nil without a network
	ledger  ledger
	release func() // gives the promised memory back; nil when none is promised
	expiry  *time.Timer
	idle    *time.Timer // nil without an idle timeout
	users   int         // requests and others that use it now
	lastUse time.Time
	under   *change // nil while nothing changes its status
	ending  bool
	console string // name of the console log in dir; "" before the first VM
}

// newBox returns a box that nothing has been acquired for but a promise of memory.
func (m *Manager) newBox(view kiln.Sandbox, p *plan, release func()) *box {
	b := &box{
		id: view.ID, dir: m.dir(view.ID), plan: p, view: view, release: release, cancelStart: func(error) {},
		started: make(chan struct{}), ended: make(chan struct{}), traffic: m.traffic,
	}
	b.front = guest.NewHTTP(guest.BaseURL, &visitor{m, b})
	b.front.UseToken(view.AccessToken)
	return b
}

// promise makes sure that the box has memory promised to it.
func (b *box) promise(reserve func(orgID string, size kiln.Size) (release func(), err error)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.release != nil {
		return nil
	}
	var err error
	b.release, err = reserve(b.view.OrgID, b.plan.size)
	return err
}

// giveBack gives the promised memory back, if there is any.
func (b *box) giveBack() {
	b.mu.Lock()
	release := b.release
	b.release = nil
	b.mu.Unlock()
	if release != nil {
		release()
	}
}

// snapshot returns a copy of the sandbox as it is now.
func (b *box) snapshot() kiln.Sandbox {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.view
	s.Metadata, s.Env = maps.Clone(s.Metadata), maps.Clone(s.Env)
	return s
}

// change applies f to the sandbox.
func (b *box) change(f func(s *kiln.Sandbox)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.view)
}

// adopt takes over a machine, so that ending the box kills it.
func (b *box) adopt(machine vmm.Machine, client *guest.Client, p kiln.Process) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.machine, b.client, b.view.Process = machine, client, p
	b.console = filepath.Base(machine.ConsoleLog())
}

// has reports whether machine is the one that the box lives on.
func (b *box) has(machine vmm.Machine) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.machine == machine
}

// run makes the sandbox a running one. It fails when the box began to end meanwhile.
func (b *box) run(expire, idle func()) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ending {
		return errEnding(b.id)
	}
	b.view.Status = kiln.SandboxRunning
	b.startClocks(expire, idle)
	return nil
}

// frontClient returns the client for others.
func (b *box) frontClient() (*guest.Client, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ending:
		return nil, errEnding(b.id)
	case b.view.Status == kiln.SandboxCreating:
		return nil, errStarting(b.id)
	}
	return b.front, nil
}

// expired reports whether the sandbox's time is really over: a timer may fire at the
// moment in which its sandbox is prolonged.
func (b *box) expired() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.ending && b.expiry != nil && !time.Now().Before(b.view.ExpiresAt)
}

// beginEnding decides who ends the box: it returns true to the first caller only.
func (b *box) beginEnding(reason string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ending {
		return false
	}
	b.ending = true
	b.view.Status, b.view.Reason = kiln.SandboxStopping, reason
	return true
}

func errEnding(id string) error {
	return kiln.Errorf(kiln.CodeConflict, "sandbox %s is being destroyed", id)
}
