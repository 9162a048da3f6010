package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/ready"
	"github.com/kilnvm/kiln/internal/span"
)

// MaxForks bounds how many copies one request makes.
const MaxForks = 100

// ForkRequest asks for copies of a sandbox.
type ForkRequest struct {
	Count    int               // 1 to MaxForks
	TTL      time.Duration     // 0 means the parent's
	Metadata map[string]string // nil means the parent's
}

// Forked is one copy, or why there is none.
type Forked struct {
	Sandbox *kiln.Sandbox
	Err     error
}

// Fork makes running copies of a sandbox, paused or running: each begins where the parent
// is, with an identity of its own. A running parent is saved once and goes on from what was
// saved, like its copies, which share that memory until they change it; connections to it
// are cut. The result has one element per copy.
func (m *Manager) Fork(ctx context.Context, id string, req ForkRequest) ([]Forked, error) {
	requested := time.Now()
	if err := m.checkFork(req); err != nil {
		return nil, err
	}
	b, err := m.livingBox(ctx, id)
	if err != nil {
		return nil, err
	}
	children, err := m.registerForks(ctx, b, req, requested)
	if err != nil {
		return nil, err
	}
	if err := m.shareState(ctx, b, children); err != nil {
		m.endForks(children, err)
		return nil, err
	}
	forked := make([]Forked, len(children))
	var wg sync.WaitGroup
	for i, c := range children {
		wg.Go(func() { forked[i] = m.startFork(ctx, c, requested) })
	}
	wg.Wait()
	return forked, nil
}

func (m *Manager) checkFork(req ForkRequest) error {
	if req.Count < 1 || req.Count > MaxForks {
		return kiln.Errorf(kiln.CodeInvalid, "a fork of %d copies", req.Count).WithHint("count is between 1 and %d", MaxForks)
	}
	if req.TTL != 0 {
		if _, err := m.checkTTL(req.TTL); err != nil {
			return err
		}
	}
	return kiln.CheckPairs("metadata", req.Metadata)
}

// fork is a copy in the making. What it gets from its parent lies in a folder of its own.
type fork struct {
	*box
	ctx context.Context
}

// registerForks admits the copies before anything happens to the parent.
func (m *Manager) registerForks(ctx context.Context, parent *box, req ForkRequest, now time.Time) ([]fork, error) {
	var children []fork
	for range req.Count {
		view := parent.childView(req, now)
		b, startCtx, err := m.admit(ctx, parent.plan, view)
		if err != nil {
			m.endForks(children, err)
			return nil, err
		}
		children = append(children, fork{b, startCtx})
	}
	return children, nil
}

// childView returns the sandbox that a copy of b is.
func (b *box) childView(req ForkRequest, now time.Time) kiln.Sandbox {
	v := b.snapshot()
	v.Parent, v.ID = v.ID, kiln.NewSandboxID()
	v.Status, v.Reason, v.Process, v.BootMode, v.BootTime = kiln.SandboxCreating, "", kiln.Process{}, "", 0
	v.AccessToken = kiln.NewID("") + kiln.NewID("")
	v.PausedAt, v.Network = time.Time{}, kiln.NetworkUse{}
	if req.TTL > 0 {
		v.TTL = req.TTL
	}
	if req.Metadata != nil {
		v.Metadata = maps.Clone(req.Metadata)
	}
	v.CreatedAt, v.ExpiresAt = now, now.Add(v.TTL)
	return v
}

func (m *Manager) endForks(children []fork, why error) {
	for _, c := range children {
		close(c.started)
		m.end(c.box, kiln.SandboxFailed, "did not start: "+why.Error())
	}
}

// shareState gives every child the parent's saved state and a copy of its disk. A parent
// that ran is saved for that and then runs again.
func (m *Manager) shareState(ctx context.Context, parent *box, children []fork) error {
	ran := true
	long, err := parent.beginChange(ctx, kiln.SandboxRunning, kiln.SandboxPausing, nil)
	if kiln.CodeOf(err) == kiln.CodeConflict && parent.snapshot().Status == kiln.SandboxPaused {
		ran = false
		long, err = parent.beginChange(ctx, kiln.SandboxPaused, kiln.SandboxPaused, nil)
	}
	if err != nil {
		return err
	}
	long, cancel := context.WithTimeout(long, m.opts.Limits.SaveTimeout)
	defer cancel()
	if ran {
		if err := m.suspend(long, parent); err != nil {
			return m.notPaused(long, parent, err)
		}
	}
	shared := m.share(long, parent, children)
	parent.endChange(kiln.SandboxPaused, nil)
	if !ran {
		return shared
	}
	err = m.save(context.WithoutCancel(long), parent)
	if werr := m.wake(context.WithoutCancel(ctx), parent); werr != nil && kiln.CodeOf(werr) != kiln.CodeConflict {
		m.log.Warn("the parent of a fork stays paused", "sandbox", parent.id, "error", werr)
	}
	return errors.Join(shared, err)
}

func (m *Manager) share(ctx context.Context, parent *box, children []fork) error {
	for _, c := range children {
		if err := os.Mkdir(c.dir, 0o700); err != nil {
			return fmt.Errorf("folder: %w", err)
		}
		if err := shareSaved(ctx, c.dir, parent.dir); err != nil {
			return fmt.Errorf("saved state: %w", err)
		}
		if err := artifact.CopySparse(ctx, scratchIn(c.dir), scratchIn(parent.dir)); err != nil {
			return fmt.Errorf("scratch disk: %w", err)
		}
	}
	return nil
}

// startFork makes a copy run.
func (m *Manager) startFork(ctx context.Context, c fork, requested time.Time) Forked {
	err := span.Do(c.ctx, "fork", func(ctx context.Context) error {
		span.Note(ctx, attribute.String("kiln.sandbox", c.id))
		return m.bringUp(ctx, c.box, requested)
	})
	close(c.started)
	if err != nil {
		told := startError(ctx, c.box, err)
		m.opts.Meter.StartFailed(c.plan.template)
		m.end(c.box, kiln.SandboxFailed, "did not start: "+err.Error())
		return Forked{Err: told}
	}
	s := c.snapshot()
	m.opts.Meter.Started(c.plan.template, s.BootMode, s.BootTime)
	m.log.Info("sandbox runs", "sandbox", c.id, "parent", s.Parent, "boot", s.BootTime)
	return Forked{Sandbox: &s}
}

// bringUp restores a copy and makes it itself. Its daemon still asks for the token of the
// parent.
func (m *Manager) bringUp(ctx context.Context, b *box, requested time.Time) error {
	done, err := m.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, m.opts.Limits.RestoreTimeout)
	defer cancel()
	parentToken, err := m.tokenOf(ctx, b.snapshot().Parent)
	if err != nil {
		return err
	}
	machine, err := m.restoreSaved(ctx, b)
	if err != nil {
		return err
	}
	if err := span.Do(ctx, "resume", machine.Resume); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	err = span.Do(ctx, "identity", func(ctx context.Context) error { return b.client.ReplaceIdentity(ctx, parentToken, b.identity()) })
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	b.change(func(s *kiln.Sandbox) { s.BootMode, s.BootTime = kiln.BootSnapshot, time.Since(requested) })
	if err := ready.Restored(ctx, b.client, b.plan.spec, m.opts.Ready); err != nil {
		return err
	}
	if err := b.run(func() { m.expire(b) }, func() { m.becomeIdle(b) }); err != nil {
		return err
	}
	return m.save(ctx, b)
}

func (m *Manager) tokenOf(ctx context.Context, id string) (string, error) {
	s, err := m.Get(ctx, id)
	if err != nil {
		return "", err
	}
	return s.AccessToken, nil
}
