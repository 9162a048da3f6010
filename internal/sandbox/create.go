package sandbox

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/span"
)

// Create starts a sandbox and returns when it can be used. When it fails, or ctx ends,
// nothing is left but a row that says so.
func (m *Manager) Create(ctx context.Context, req CreateRequest) (*kiln.Sandbox, error) {
	requested := time.Now()
	var p *plan
	err := span.Do(ctx, "plan", func(ctx context.Context) (err error) {
		p, err = m.plan(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	var b *box
	var started context.Context
	err = span.Do(ctx, "admit", func(context.Context) (err error) {
		b, started, err = m.register(ctx, p, req, requested)
		return err
	})
	if kiln.CodeOf(err) == kiln.CodeConflict && m.overtaken(ctx, p, req) {
		return m.Create(ctx, req)
	}
	if err != nil {
		return nil, err
	}
	ctx = started
	span.Note(ctx, attribute.String("kiln.sandbox", b.id), attribute.String("kiln.template", p.template.ID),
		attribute.Int("kiln.version", p.version.Number), attribute.String("kiln.size", p.size.Name))
	err = m.start(ctx, b, requested)
	close(b.started)
	if err != nil {
		told := startError(ctx, b, err)
		m.opts.Meter.StartFailed(p.template)
		m.end(b, kiln.SandboxFailed, "did not start: "+err.Error())
		return nil, told
	}
	s := b.snapshot()
	m.opts.Meter.Started(p.template, s.BootMode, s.BootTime)
	span.Note(ctx, attribute.String("kiln.path", string(s.BootMode)))
	m.log.Info("sandbox runs", "sandbox", b.id, "template", s.Template, "version", s.Version,
		"size", s.Size, "boot_mode", s.BootMode, "boot", s.BootTime)
	return &s, nil
}

// overtaken reports whether another version has been promoted since p was made. The files
// of p's may be gone already.
func (m *Manager) overtaken(ctx context.Context, p *plan, req CreateRequest) bool {
	now, err := m.plan(ctx, req)
	return err == nil && now.version.Number != p.version.Number
}

// register admits a sandbox, writes its row and makes it known. The context it returns
// ends with the request or when the box is destroyed.
func (m *Manager) register(ctx context.Context, p *plan, req CreateRequest, now time.Time) (*box, context.Context, error) {
	view := p.sandbox(req, now)
	b, err := m.claim(p, view)
	if err != nil {
		return nil, nil, err
	}
	if b != nil {
		return m.enter(ctx, b)
	}
	release, err := m.reserve(view.OrgID, p.size)
	if err != nil {
		return nil, nil, err
	}
	if b := m.claimSpawned(p); b != nil {
		b.become(view, p, release)
		return m.enter(ctx, b)
	}
	return m.enter(ctx, m.newBox(view, p, release))
}

// admit is register for a sandbox that is described already, without a warm slot.
func (m *Manager) admit(ctx context.Context, p *plan, view kiln.Sandbox) (*box, context.Context, error) {
	release, err := m.reserve(view.OrgID, p.size)
	if err != nil {
		return nil, nil, err
	}
	return m.enter(ctx, m.newBox(view, p, release))
}

// enter writes the row of a sandbox that was admitted, and makes it known.
func (m *Manager) enter(ctx context.Context, b *box) (*box, context.Context, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	b.cancelStart = cancel
	view := b.snapshot()
	if err := m.opts.Store.CreateSandbox(ctx, &view); err != nil {
		cancel(nil)
		m.discard(b)
		return nil, nil, err
	}
	if err := m.add(b); err != nil {
		close(b.started)
		m.end(b, kiln.SandboxFailed, err.Error())
		return nil, nil, err
	}
	return b, ctx, nil
}

// startError turns why a start failed into what the requester is told.
func startError(ctx context.Context, b *box, err error) error {
	var known *kiln.Error
	var build *kiln.BuildError
	var ended endedCause
	switch cause := context.Cause(ctx); {
	case errors.As(cause, &ended):
		code := kiln.CodeCanceled
		if ended.final == kiln.SandboxFailed {
			code = kiln.CodeUnavailable
		}
		return &kiln.Error{Code: code, Message: "sandbox " + b.id + " ended while it started: " + ended.reason, Err: err}
	case errors.As(err, &known), errors.As(err, &build):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return &kiln.Error{Code: kiln.CodeTimeout, Message: "sandbox " + b.id + " did not start in time",
			Hint: "the host may be overloaded; try again", Err: err}
	case errors.Is(err, context.Canceled):
		return &kiln.Error{Code: kiln.CodeCanceled, Message: "the request for sandbox " + b.id + " was given up", Err: err}
	}
	return &kiln.Error{Code: kiln.CodeUnavailable, Message: "sandbox " + b.id + " did not start: " + err.Error(),
		Hint: "the server's log says more", Err: err}
}
