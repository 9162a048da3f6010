package sandbox

import (
	"context"
	"net/http"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// change is one change of a box's status that is under way: a pause, a wake or a fork.
type change struct {
	cancel context.CancelCauseFunc
	over   chan struct{}
}

// beginChange takes a box from one status to another while nothing else changes it: it
// waits for the change that is under way. allowed, if not nil, is asked last, and refuses
// by an error. The context that it returns outlives the request, and ends when the box is
// destroyed.
func (b *box) beginChange(ctx context.Context, from, during kiln.SandboxStatus, allowed func() error) (context.Context, error) {
	for {
		b.mu.Lock()
		under := b.under
		if under == nil || b.ending {
			break
		}
		b.mu.Unlock()
		select {
		case <-under.over:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	defer b.mu.Unlock()
	if err := b.mayBegin(from, allowed); err != nil {
		return nil, err
	}
	long, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	b.under = &change{cancel: cancel, over: make(chan struct{})}
	b.view.Status = during
	return long, nil
}

func (b *box) mayBegin(from kiln.SandboxStatus, allowed func() error) error {
	switch {
	case b.ending:
		return errEnding(b.id)
	case b.view.Status == kiln.SandboxCreating:
		return errStarting(b.id)
	case b.view.Status != from:
		return kiln.Errorf(kiln.CodeConflict, "sandbox %s is %s already", b.id, b.view.Status)
	case allowed != nil:
		return allowed()
	}
	return nil
}

// endChange ends the change with a status, unless the box began to end meanwhile.
func (b *box) endChange(status kiln.SandboxStatus, apply func(s *kiln.Sandbox)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ending {
		b.view.Status = status
		if apply != nil {
			apply(&b.view)
		}
	}
	b.under.cancel(nil)
	close(b.under.over)
	b.under = nil
}

// abandonChange ends the change under way, if any, for a reason, and waits for its end.
// No other one can begin, because the box is ending.
func (b *box) abandonChange(why error) {
	b.mu.Lock()
	under := b.under
	b.mu.Unlock()
	if under != nil {
		under.cancel(why)
		<-under.over
	}
}

// leavePaused makes a paused box one that this manager has nothing more to do with.
func (b *box) leavePaused() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ending || b.under != nil || b.view.Status != kiln.SandboxPaused {
		return false
	}
	b.ending = true
	return true
}

// use returns the transport to a running sandbox's daemon and counts as use until leave is
// called. If the sandbox does not run, it returns its status and what is changing it.
func (b *box) use() (transport http.RoundTripper, leave func(), status kiln.SandboxStatus, under *change, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ending:
		return nil, nil, b.view.Status, nil, errEnding(b.id)
	case b.view.Status == kiln.SandboxCreating:
		return nil, nil, b.view.Status, nil, errStarting(b.id)
	case b.view.Status != kiln.SandboxRunning:
		return nil, nil, b.view.Status, b.under, nil
	}
	b.users++
	return b.client.Anonymous(), b.leave, b.view.Status, nil, nil
}

// leave ends one use.
func (b *box) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.users--
	b.lastUse = time.Now()
	if b.users == 0 && b.idle != nil {
		b.idle.Reset(b.view.IdleTimeout)
	}
}

// detach takes the machine from a box that goes on without one, so that its end is not the
// box's.
func (b *box) detach() *guest.Client {
	b.mu.Lock()
	defer b.mu.Unlock()
	client := b.client
	b.machine, b.client, b.view.Process = nil, nil, kiln.Process{}
	return client
}

// startClocks begins the sandbox's time and its idle time.
func (b *box) startClocks(expire, idle func()) {
	b.lastUse = time.Now()
	b.expiry = time.AfterFunc(time.Until(b.view.ExpiresAt), expire)
	b.watchIdle(idle)
}

// stopClocks lets the sandbox's time stand still.
func (b *box) stopClocks() {
	for _, timer := range []*time.Timer{b.expiry, b.idle} {
		if timer != nil {
			timer.Stop()
		}
	}
	b.expiry, b.idle = nil, nil
}

func errStarting(id string) error {
	return kiln.Errorf(kiln.CodeConflict, "sandbox %s is still starting", id)
}
