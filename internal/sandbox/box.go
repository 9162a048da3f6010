package sandbox

import (
	"context"
	"maps"
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
	release     func()        // gives the promised memory back
	saving      sync.Mutex    // orders the writes of the row

	mu      sync.Mutex
	view    kiln.Sandbox
	machine vmm.Machine
	client  *guest.Client
	slot    *network.Slot // nil without a network
	expiry  *time.Timer
	ending  bool
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
}

// run makes the sandbox a running one. It fails when the box began to end meanwhile.
func (b *box) run(expire func()) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ending {
		return errEnding(b.id)
	}
	b.view.Status = kiln.SandboxRunning
	b.expiry = time.AfterFunc(time.Until(b.view.ExpiresAt), expire)
	return nil
}

func (b *box) runningClient() (*guest.Client, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.view.Status {
	case kiln.SandboxRunning:
		return b.client, nil
	case kiln.SandboxCreating:
		return nil, kiln.Errorf(kiln.CodeConflict, "sandbox %s is still starting", b.id)
	default:
		return nil, errEnding(b.id)
	}
}

// prolong sets the end of the sandbox's life to ttl from now.
func (b *box) prolong(ttl time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ending {
		return errEnding(b.id)
	}
	b.view.ExpiresAt = time.Now().Add(ttl)
	if b.expiry != nil { // else the start is under way and sets the timer at its end
		b.expiry.Reset(ttl)
	}
	return nil
}

// expired reports whether the sandbox's time is really over: a timer may fire at the
// moment in which its sandbox is prolonged.
func (b *box) expired() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.ending && !time.Now().Before(b.view.ExpiresAt)
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
