package sandbox

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guestapi/process/processconnect"
)

// Use wakes a sandbox if it is paused, and counts as use of it, so that it does not become
// idle, until leave is called. Whatever reaches into a sandbox comes through here: clients
// of [Manager.Guest] do so with every request.
func (m *Manager) Use(ctx context.Context, id string) (leave func(), err error) {
	b, err := m.livingBox(ctx, id)
	if err != nil {
		return nil, err
	}
	_, leave, err = m.use(ctx, b)
	return leave, err
}

func (m *Manager) use(ctx context.Context, b *box) (http.RoundTripper, func(), error) {
	for {
		transport, leave, status, under, err := b.use()
		switch {
		case err != nil || transport != nil:
			return transport, leave, err
		case under != nil: // being paused or woken
			select {
			case <-under.over:
			case <-ctx.Done():
				return nil, nil, context.Cause(ctx)
			}
		case status == kiln.SandboxPaused:
			if err := m.wake(ctx, b); err != nil && kiln.CodeOf(err) != kiln.CodeConflict {
				return nil, nil, err // of a conflict another round tells more: somebody else woke it
			}
		}
	}
}

// visitor carries the requests of those who use a sandbox to its daemon.
type visitor struct {
	manager *Manager
	box     *box
}

// RoundTrip implements [http.RoundTripper]. The use ends with the body of the answer.
func (v *visitor) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path == processconnect.ProcessStartProcedure {
		v.manager.opts.Meter.Command()
	}
	transport, leave, err := v.manager.use(r.Context(), v.box)
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		leave()
		return nil, err
	}
	body := &visitedBody{ReadCloser: resp.Body, leave: sync.OnceFunc(leave)}
	resp.Body = body
	if w, ok := body.ReadCloser.(io.Writer); ok { // the connection itself, after 101 Switching Protocols
		resp.Body = struct {
			*visitedBody
			io.Writer
		}{body, w}
	}
	return resp, nil
}

type visitedBody struct {
	io.ReadCloser
	leave func()
}

func (b *visitedBody) Close() error {
	defer b.leave()
	return b.ReadCloser.Close()
}

// becomeIdle pauses or ends a box that nobody has used for its idle timeout.
func (m *Manager) becomeIdle(b *box) {
	b.mu.Lock()
	timeout, persistent := b.view.IdleTimeout, b.view.Persistent
	left := timeout - time.Since(b.lastUse)
	switch {
	case b.users > 0 || b.idle == nil:
		b.mu.Unlock()
		return // it is used: the end of that sets the timer
	case left > 0:
		b.idle.Reset(left)
		b.mu.Unlock()
		return
	}
	b.mu.Unlock()
	reason := "idle for " + timeout.String()
	if !persistent {
		m.end(b, kiln.SandboxDeleted, reason)
		return
	}
	m.pauseAlone(b, reason, b.unused)
}

// unused refuses while the box is used. The lock is held.
func (b *box) unused() error {
	if b.users > 0 {
		return kiln.Errorf(kiln.CodeConflict, "sandbox %s is in use", b.id)
	}
	return nil
}
