package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/cgroup"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/orphan"
	"github.com/kilnvm/kiln/internal/ready"
	"github.com/kilnvm/kiln/internal/scratch"
	"github.com/kilnvm/kiln/internal/span"
	"github.com/kilnvm/kiln/internal/vmm"
)

// entropyBytes are given to every clone before anything runs in it.
const entropyBytes = 64

// start brings the sandbox up and lets it live.
func (m *Manager) start(ctx context.Context, b *box, requested time.Time) error {
	defer m.warm.wake()
	if err := m.startVM(ctx, b, requested); err != nil {
		return err
	}
	err := span.Do(ctx, "post_restore", func(ctx context.Context) error {
		return ready.Restored(ctx, b.client, b.plan.spec, m.opts.Ready)
	})
	if err != nil {
		return err
	}
	if err := b.run(func() { m.expire(b) }, func() { m.becomeIdle(b) }); err != nil {
		return err
	}
	return m.save(ctx, b)
}

// startVM takes the fastest path there is. A warm slot that fails makes way for the next.
func (m *Manager) startVM(ctx context.Context, b *box, requested time.Time) error {
	if b.claimed != nil {
		err := m.startWarm(ctx, b, requested)
		if err == nil || ctx.Err() != nil {
			return err
		}
		m.log.Error("slot failed", "sandbox", b.id, "spawned", b.spawned, "template", b.plan.template.Name, "error", err)
		if err := m.strip(b); err != nil {
			return err
		}
	}
	done, err := m.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	// Until the VM has them open.
	ctx, release := m.opts.Blobs.Hold(ctx)
	defer release()

	if err := os.Mkdir(b.dir, 0o700); err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	if err := m.checkBlobs(ctx, b.plan.spec.Rootfs); err != nil {
		return fmt.Errorf("template %q version %d: %w", b.plan.template.Name, b.plan.version.Number, err)
	}
	var snap *kiln.Snapshot
	err = span.Do(ctx, "find snapshot", func(ctx context.Context) error {
		snap, err = m.chooseStart(ctx, b)
		return err
	})
	if err != nil {
		return err
	}
	if snap != nil {
		return m.restore(ctx, b, snap, requested)
	}
	if err := m.connect(ctx, b); err != nil {
		return err
	}
	if err := m.permit(ctx, b); err != nil {
		return err
	}
	return m.bootCold(ctx, b, requested)
}

// turn waits for a turn to start a VM.
func (m *Manager) turn(ctx context.Context) (done func(), err error) {
	err = span.Do(ctx, "wait for a turn", func(ctx context.Context) error {
		done, err = m.admission.begin(ctx)
		return err
	})
	return done, err
}

// chooseStart returns the snapshot to start b from, or nil for a cold boot. A path that the
// request insists on and that there is not is an error.
func (m *Manager) chooseStart(ctx context.Context, b *box) (*kiln.Snapshot, error) {
	switch b.plan.bootMode {
	case kiln.BootCold:
		return nil, nil
	case kiln.BootWarm:
		return nil, kiln.Errorf(kiln.CodeConflict, "no warm slot of template %q at size %s is ready", b.plan.template.Name, b.plan.size.Name).
			WithHint("`kiln pool set %s --slots N` keeps some; `kiln pool list` shows them", b.plan.template.Name)
	case kiln.BootSpawned:
		return nil, kiln.Errorf(kiln.CodeConflict, "no VMM was started ahead for template %q at size %s", b.plan.template.Name, b.plan.size.Name).
			WithHint("pool.spawn_ahead in the server's configuration starts some for what was asked for lately: try again in some seconds")
	}
	snap, err := m.usableSnapshot(ctx, b)
	if err == nil && snap == nil && b.plan.bootMode == kiln.BootSnapshot {
		return nil, kiln.Errorf(kiln.CodeConflict, "template %q has no usable snapshot at size %s on this host",
			b.plan.template.Name, b.plan.size.Name).WithHint("one is being made: try again in some seconds, or without boot_mode")
	}
	return snap, err
}

// usableSnapshot returns the golden snapshot made on a host like this one by a VMM like
// this one, if there is one and it is whole. If not it asks for one and returns nil.
func (m *Manager) usableSnapshot(ctx context.Context, b *box) (*kiln.Snapshot, error) {
	snap, err := m.opts.Store.Snapshot(ctx, m.opts.SnapshotKey(b.plan.spec))
	if kiln.CodeOf(err) == kiln.CodeNotFound {
		m.opts.RequestBake(b.plan.version, b.plan.size, nil)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up snapshot: %w", err)
	}
	if err := m.checkBlobs(ctx, snap.Memory, snap.VMState, snap.Scratch); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		m.log.Error("snapshot refused", "template", b.plan.template.Name, "key", snap.Key, "error", err)
		m.opts.RequestBake(b.plan.version, b.plan.size, err)
		return nil, nil
	}
	return snap, nil
}

// checkBlobs makes sure that no guest is ever given a file that is not what its name
// promises.
func (m *Manager) checkBlobs(ctx context.Context, blobs ...kiln.Blob) error {
	for _, blob := range blobs {
		if err := m.opts.Blobs.Check(ctx, blob); err != nil {
			return fmt.Errorf("%s: %w", blob.Role, err)
		}
	}
	return nil
}

// restore makes b a clone of snap.
func (m *Manager) restore(ctx context.Context, b *box, snap *kiln.Snapshot, requested time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, m.opts.Limits.RestoreTimeout)
	defer cancel()

	machine, err := m.clone(ctx, b, snap)
	if err != nil {
		return err
	}
	m.adopt(b, machine)
	if err := m.awaken(ctx, b, machine); err != nil {
		return err
	}
	b.change(func(s *kiln.Sandbox) { s.BootMode, s.BootTime = kiln.BootSnapshot, time.Since(requested) })
	return nil
}

// clone starts a VM from snap, with a network slot and a scratch disk of its own, which are
// made at the same time. It is paused.
func (m *Manager) clone(ctx context.Context, b *box, snap *kiln.Snapshot) (vmm.Machine, error) {
	var parts errgroup.Group
	parts.Go(func() error { return m.connect(ctx, b) })
	parts.Go(func() error {
		err := span.Do(ctx, "scratch disk", func(ctx context.Context) error {
			return artifact.CopySparse(ctx, scratchIn(b.dir), m.opts.Blobs.Path(snap.Scratch.Digest))
		})
		if err != nil {
			return fmt.Errorf("scratch disk: %w", err)
		}
		return nil
	})
	if err := parts.Wait(); err != nil {
		return nil, err
	}
	return m.restoreVM(ctx, b, vmm.State{Memory: m.opts.Blobs.Path(snap.Memory.Digest), State: m.opts.Blobs.Path(snap.VMState.Digest)})
}

// restoreVM starts a VM from a saved state on b's disk. It is paused, and b's policy is in
// force when it returns.
func (m *Manager) restoreVM(ctx context.Context, b *box, state vmm.State) (machine vmm.Machine, err error) {
	permitted := make(chan error, 1)
	go func() { permitted <- m.permit(ctx, b) }()
	err = span.Do(ctx, "restore", func(ctx context.Context) error {
		machine, err = m.opts.Driver.Restore(ctx, m.config(b), state)
		return err
	})
	if err != nil {
		err = fmt.Errorf("restore: %w", err)
	}
	if err = errors.Join(err, <-permitted); err != nil && machine != nil {
		return nil, errors.Join(err, machine.Kill())
	}
	return machine, err
}

// awaken lets a paused clone run and become itself. The identity is on its way before the
// guest runs, so that it finds it there.
func (m *Manager) awaken(ctx context.Context, b *box, machine vmm.Machine) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	identified := make(chan error, 1)
	go func() {
		identified <- span.Do(ctx, "identity", func(ctx context.Context) error { return b.client.SetIdentity(ctx, b.identity()) })
	}()
	if err := span.Do(ctx, "resume", machine.Resume); err != nil {
		cancel()
		<-identified
		return fmt.Errorf("resume: %w", err)
	}
	if err := <-identified; err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return nil
}

// bootCold boots a kernel and does what the snapshot stage would have done before the
// capture.
func (m *Manager) bootCold(ctx context.Context, b *box, requested time.Time) error {
	bootCtx, cancel := context.WithTimeout(ctx, m.opts.Limits.BootTimeout)
	defer cancel()
	if err := scratch.Make(bootCtx, scratchIn(b.dir), b.plan.spec.ScratchMB); err != nil {
		return err
	}
	cfg := m.config(b)
	cfg.Memory = filepath.Join(b.dir, "memory") // so that it can be paused
	var machine vmm.Machine
	err := span.Do(bootCtx, "boot", func(ctx context.Context) (err error) {
		machine, err = m.opts.Driver.Boot(ctx, cfg)
		return err
	})
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	m.adopt(b, machine)
	if err := span.Do(bootCtx, "daemon", b.client.WaitReady); err != nil {
		return fmt.Errorf("the guest daemon does not answer: %w", err)
	}
	b.change(func(s *kiln.Sandbox) { s.BootMode, s.BootTime = kiln.BootCold, time.Since(requested) })
	if err := ready.Configure(bootCtx, b.client, b.plan.spec); err != nil {
		return err
	}
	err = span.Do(bootCtx, "identity", func(ctx context.Context) error { return b.client.SetIdentity(ctx, b.identity()) })
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return span.Do(ctx, "ready", func(ctx context.Context) error {
		return ready.Reach(ctx, b.client, b.plan.spec, m.opts.Ready, kiln.DiscardProgress)
	})
}

// adopt makes a started machine part of b and watches it. Should it end during the
// start, the start is given up at once.
func (m *Manager) adopt(b *box, machine vmm.Machine) {
	process, err := orphan.Identify(machine.PID())
	if err != nil { // it has ended already, and the watch will say so
		m.log.Warn("VM process", "sandbox", b.id, "error", err)
	}
	b.adopt(machine, guest.Of(machine), process)
	go m.watch(b, machine)
}

func (m *Manager) config(b *box) vmm.Config {
	return vmm.Config{
		ID: b.id, Dir: b.dir, Boot: m.opts.Boot, Size: b.plan.size, Disk: b.plan.spec.Disk,
		Rootfs: m.opts.Blobs.Path(b.plan.spec.Rootfs.Digest), Scratch: scratchIn(b.dir), Network: b.network(),
		Confine: m.confine(b.id, cgroup.For(b.plan.size)), Init: b.plan.spec.Init,
	}
}

// identity makes what distinguishes b from every other clone.
func (b *box) identity() kiln.Identity {
	s := b.snapshot()
	return kiln.Identity{
		SandboxID: s.ID, Hostname: s.ID, Entropy: entropy(), AccessToken: s.AccessToken, Env: s.Env,
	}
}
