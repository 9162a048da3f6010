package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/orphan"
	"github.com/kilnvm/kiln/internal/ready"
	"github.com/kilnvm/kiln/internal/span"
	"github.com/kilnvm/kiln/internal/vmm/idle"
)

// lookAround is how often the pool is compared with what the store says of its templates,
// beside the moments in which it is told of a change.
const lookAround = 15 * time.Second

// KeepWarm looks after the warm pool until ctx ends, and then ends all slots. It is called
// once, after Reconcile.
//
// One slot is made at a time, and none while the host is busy with starts. A slot counts in
// the memory that the host may promise, and gives way to a sandbox that needs it. A VMM that
// is started ahead is a slot whose guest has not run: it counts in no memory, because it
// shares all of its guest's with the snapshot until it is claimed.
func (m *Manager) KeepWarm(ctx context.Context) {
	defer func() {
		for _, b := range m.warm.close() {
			m.discard(b)
		}
	}()
	for ctx.Err() == nil {
		again := time.Now().Add(lookAround)
		if err := m.aimPool(ctx); err != nil && ctx.Err() == nil {
			m.log.Error("warm pool", "error", err)
		}
		lacking, retry := m.warm.next(time.Now(), m.warmMemory())
		switch {
		case lacking != nil && m.admission.calm():
			m.addSlot(ctx, lacking)
			continue
		case !retry.IsZero() && retry.Before(again):
			again = retry
		}
		select {
		case <-m.warm.news:
		case <-time.After(time.Until(again)):
		case <-ctx.Done():
		}
	}
}

// WarmTarget returns the target that a request describes, checked and with its defaults.
// Built-in templates are everybody's, and their slots are the operator's to set.
func (m *Manager) WarmTarget(ctx context.Context, who kiln.Principal, template, size string, slots int) (kiln.WarmTarget, error) {
	name, err := kiln.ParseWholeTemplate(template, "pool set", "slots are of the current version")
	if err != nil {
		return kiln.WarmTarget{}, err
	}
	t, _, err := m.opts.Store.ResolveTemplate(ctx, who.OrgID, kiln.TemplateRef{NameOrID: name})
	if err != nil {
		return kiln.WarmTarget{}, err
	}
	if t.BuiltIn && !who.Operator() {
		return kiln.WarmTarget{}, kiln.Errorf(kiln.CodeForbidden, "template %q is built-in and its warm slots are the server's", t.Name).
			WithHint("set them for a template of your own")
	}
	p, err := m.warmPlan(ctx, who.OrgID, name, size)
	if err != nil {
		return kiln.WarmTarget{}, err
	}
	return kiln.WarmTarget{OrgID: p.template.OrgID, TemplateID: p.template.ID, Size: p.size.Name, Slots: slots}, nil
}

// WarmChanged tells the pool that a target, or the promoted version of a template, may have
// changed.
func (m *Manager) WarmChanged() { m.warm.wake() }

// warmMemory is how much may be promised to slots, in MiB.
func (m *Manager) warmMemory() int {
	if limit := m.warm.limits.MaxMemoryMiB; limit > 0 {
		return limit
	}
	budget, err := m.admission.budget()
	if err != nil {
		m.log.Error("warm pool", "error", err)
		return 0
	}
	return budget / 4
}

// aimPool sets the targets by what is asked for and which versions are promoted now.
func (m *Manager) aimPool(ctx context.Context) error {
	set, err := m.warmTargets(ctx)
	if err != nil {
		return err
	}
	current := map[shelfKey]bool{}
	for _, p := range m.warm.plans() {
		now, err := m.warmPlan(ctx, viewer(p.template.OrgID), p.template.ID, p.size.Name)
		if err != nil && kiln.CodeOf(err) == kiln.CodeInternal {
			return err
		}
		current[p.shelf()] = err == nil && now.shelf() == p.shelf()
	}
	for key := range set {
		current[key] = true
	}
	for _, b := range m.warm.aim(set, func(p *plan) bool { return current[p.shelf()] }, time.Now()) {
		m.discard(b)
	}
	return nil
}

// warmTargets returns the targets that are set; one set by request goes before the
// configuration's.
func (m *Manager) warmTargets(ctx context.Context) (map[shelfKey]aim, error) {
	set := map[shelfKey]aim{}
	for ref, slots := range m.warm.limits.Targets {
		template, size, _ := strings.Cut(ref, "/")
		p, err := m.warmPlan(ctx, kiln.LocalOrgID, template, size)
		if err == nil {
			set[p.shelf()] = aim{plan: p, slots: slots}
		} else if kiln.CodeOf(err) == kiln.CodeInternal {
			return nil, err
		} // else there is no such template yet, or it is not built
	}
	targets, err := m.opts.Store.WarmTargets(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range targets {
		p, err := m.warmPlan(ctx, viewer(t.OrgID), t.TemplateID, t.Size)
		if err == nil {
			set[p.shelf()] = aim{plan: p, slots: t.Slots}
		} else if kiln.CodeOf(err) == kiln.CodeInternal {
			return nil, err
		}
	}
	return set, nil
}

func (m *Manager) warmPlan(ctx context.Context, orgID, ref, size string) (*plan, error) {
	return m.plan(ctx, CreateRequest{OrgID: orgID, Template: ref, Size: size})
}

// viewer is an organisation that sees the templates of owner, "" for built-in ones.
func viewer(owner string) string {
	if owner == "" {
		return kiln.LocalOrgID
	}
	return owner
}

// addSlot makes one slot and puts it into the pool.
func (m *Manager) addSlot(ctx context.Context, l *lack) {
	p, start := l.plan, m.newSlot
	if l.spawned {
		start = m.spawn
	}
	b, err := start(ctx, p)
	if err != nil {
		if ctx.Err() == nil {
			m.warm.failed(p, err)
			m.log.Warn("no slot", "spawned", l.spawned, "template", p.template.Name, "version", p.version.Number, "size", p.size.Name, "error", err)
		}
		return
	}
	go m.watchSlot(b)
	if !m.warm.put(b) {
		m.discard(b)
	}
}

// claim takes a seat and a warm slot for a sandbox. It returns nil when there is none.
func (m *Manager) claim(p *plan, view kiln.Sandbox) (*box, error) {
	if p.bootMode != "" && p.bootMode != kiln.BootWarm {
		return nil, nil
	}
	leave, err := m.admission.seat(view.OrgID)
	if err != nil {
		m.opts.Meter.Refused(err)
		return nil, err
	}
	b := m.warm.claim(p, time.Now())
	m.opts.Meter.Claimed(p.template, b != nil)
	if b == nil {
		leave()
		return nil, nil
	}
	giveBack := b.release
	b.become(view, p, func() { leave(); giveBack() })
	return b, nil
}

// claimSpawned takes a VMM that was started ahead. It returns nil when there is none.
func (m *Manager) claimSpawned(p *plan) *box {
	if p.bootMode != "" && p.bootMode != kiln.BootSpawned {
		return nil
	}
	return m.warm.claimSpawned(p, time.Now())
}

// reserve takes a seat and a promise of memory for a sandbox.
func (m *Manager) reserve(orgID string, size kiln.Size) (release func(), err error) {
	defer func() {
		if err != nil {
			m.opts.Meter.Refused(err)
		}
	}()
	leave, err := m.admission.seat(orgID)
	if err != nil {
		return nil, err
	}
	giveBack, err := m.promise(size)
	if err != nil {
		leave()
		return nil, err
	}
	return func() { leave(); giveBack() }, nil
}

// promise promises memory to a sandbox. Slots give theirs to it.
func (m *Manager) promise(size kiln.Size) (release func(), err error) {
	for {
		release, err := m.admission.promise(size)
		if kiln.CodeOf(err) != kiln.CodeExhausted {
			return release, err
		}
		b := m.warm.spare()
		if b == nil {
			return nil, err
		}
		m.discard(b)
	}
}

// become makes a slot the sandbox that was asked for. It keeps its name, which is in the
// names of everything that it holds. release gives back what is promised to it.
func (b *box) become(view kiln.Sandbox, p *plan, release func()) {
	b.claimOnce()
	b.mu.Lock()
	defer b.mu.Unlock()
	view.ID, view.Process = b.id, b.view.Process
	b.plan, b.view, b.release = p, view, release
	b.front.UseToken(view.AccessToken)
}

// newSlot makes a slot: a clone of the golden snapshot that has run until its daemon had
// answered and come to rest, and that is paused. It has no identity, and its policy lets
// nothing out. Its folder is its record: what a server leaves in Dir the next one ends.
func (m *Manager) newSlot(ctx context.Context, p *plan) (*box, error) {
	release, err := m.admission.promise(p.size)
	if err != nil {
		return nil, err
	}
	return m.makeSlot(ctx, m.slotBox(p, release), "warm slot", m.warmUp)
}

// spawn starts a VMM ahead of its request: a slot whose guest has not run since its capture.
func (m *Manager) spawn(ctx context.Context, p *plan) (*box, error) {
	b := m.slotBox(p, nil)
	b.spawned = true
	return m.makeSlot(ctx, b, "start VMM ahead", m.restoreSlot)
}

// slotBox returns the box of a slot. Its policy lets nothing out.
func (m *Manager) slotBox(p *plan, release func()) *box {
	view := kiln.Sandbox{ID: kiln.NewSandboxID(), Egress: kiln.EgressPolicy{Mode: kiln.EgressDenyAll}}
	b := m.newBox(view, p, release)
	b.claimed = make(chan struct{})
	b.claimOnce = sync.OnceFunc(func() { close(b.claimed) })
	return b
}

// makeSlot has the slot b made. If that fails nothing is left of it.
func (m *Manager) makeSlot(ctx context.Context, b *box, what string, do func(context.Context, *box) error) (*box, error) {
	ctx, cancel := context.WithTimeout(ctx, m.opts.Limits.RestoreTimeout)
	defer cancel()
	p := b.plan
	ctx, end := span.Begin(ctx, m.opts.Traces, what, trace.SpanKindInternal, attribute.String("kiln.sandbox", b.id),
		attribute.String("kiln.template", p.template.ID), attribute.Int("kiln.version", p.version.Number), attribute.String("kiln.size", p.size.Name))
	err := m.inTurn(ctx, b, do)
	end(err)
	if err != nil {
		m.discard(b)
		return nil, err
	}
	return b, nil
}

// inTurn waits for a turn to start a VM, does it, and ends the turn.
func (m *Manager) inTurn(ctx context.Context, b *box, do func(context.Context, *box) error) error {
	done, err := m.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	return do(ctx, b)
}

var errNoSnapshot = errors.New("its golden snapshot is still being made")

// restoreSlot restores the clone of a slot. It is paused.
func (m *Manager) restoreSlot(ctx context.Context, b *box) error {
	ctx, release := m.opts.Blobs.Hold(ctx) // until the VM has them open
	defer release()
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	if err := m.checkBlobs(ctx, b.plan.spec.Rootfs); err != nil {
		return err
	}
	snap, err := m.usableSnapshot(ctx, b)
	if err != nil {
		return err
	}
	if snap == nil {
		return errNoSnapshot
	}
	machine, err := m.clone(ctx, b, snap)
	if err != nil {
		return err
	}
	process, err := orphan.Identify(machine.PID())
	if err != nil {
		return errors.Join(err, machine.Kill())
	}
	b.adopt(machine, guest.Of(machine), process)
	return nil
}

// warmUp restores the clone of a slot and has it run until it is warm. It is paused again.
func (m *Manager) warmUp(ctx context.Context, b *box) error {
	if err := m.restoreSlot(ctx, b); err != nil {
		return err
	}
	machine := b.machine
	if err := machine.Resume(ctx); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	err := span.Do(ctx, "rehearse", func(ctx context.Context) error { return rehearse(ctx, b.client) })
	if err != nil {
		return fmt.Errorf("the guest daemon: %w", err)
	}
	err = span.Do(ctx, "come to rest", func(ctx context.Context) error { return idle.Await(ctx, machine.PID()) })
	if err != nil {
		return err
	}
	if err := machine.Pause(ctx); err != nil {
		return err
	}
	return b.waits()
}

// rehearse has the clone do what its user will want first. What it runs sees the random state
// of the snapshot and leaves nothing behind.
func rehearse(ctx context.Context, client *guest.Client) error {
	if err := client.WaitReady(ctx); err != nil {
		return err
	}
	return ready.Use(ctx, client)
}

// watchSlot drops a slot whose VM ends while it waits.
func (m *Manager) watchSlot(b *box) {
	select {
	case <-b.machine.Done():
		if m.warm.take(b) {
			m.log.Warn("slot ended", "sandbox", b.id, "spawned", b.spawned, "template", b.plan.template.Name, "error", b.machine.Err())
			m.discard(b)
			m.warm.wake()
		}
	case <-b.claimed:
	}
}

// discard gives back what a box without a row holds.
func (m *Manager) discard(b *box) {
	if b.claimed != nil {
		b.claimOnce()
	}
	ctx, cancel := context.WithTimeout(context.Background(), m.opts.Limits.EndTimeout)
	defer cancel()
	if err := m.releaseAll(ctx, b); err != nil {
		m.log.Error("release warm slot", "sandbox", b.id, "error", err)
	}
}

// startWarm makes a claimed slot the sandbox that was asked for: its policy comes into
// force, then it runs, then it becomes itself.
func (m *Manager) startWarm(ctx context.Context, b *box, requested time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, m.opts.Limits.RestoreTimeout)
	defer cancel()
	machine := b.machine
	if err := m.permit(ctx, b); err != nil {
		return err
	}
	if err := m.awaken(ctx, b, machine); err != nil {
		return err
	}
	mode := kiln.BootWarm
	if b.spawned {
		mode = kiln.BootSnapshot
		span.Note(ctx, attribute.Bool("kiln.spawned_ahead", true))
	}
	b.change(func(s *kiln.Sandbox) { s.BootMode, s.BootTime = mode, time.Since(requested) })
	go m.watch(b, machine)
	return nil
}

// strip takes a slot's VM and all that belongs to it from a box that goes on without it.
func (m *Manager) strip(b *box) error {
	b.mu.Lock()
	machine, client := b.machine, b.client
	b.machine, b.client, b.view.Process = nil, nil, kiln.Process{}
	b.mu.Unlock()
	client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), m.opts.Limits.EndTimeout)
	defer cancel()
	return errors.Join(machine.Kill(), b.disconnect(), m.dropGroup(ctx, b.id), os.RemoveAll(b.dir))
}
