package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/span"
)

// bakes runs the snapshot stage at most once at a time per key, however many ask.
type bakes struct {
	ctx   context.Context
	opts  Options
	slots chan struct{}

	mu   sync.Mutex
	byID map[kiln.Digest]*bake
	all  sync.WaitGroup
}

// bake is one run. It goes on as long as anybody waits for it.
type bake struct {
	done    chan struct{}
	snap    kiln.Snapshot
	err     error
	waiters int
	cancel  context.CancelCauseFunc
	// release lets go of the blobs that were made, when the last waiter has stored that
	// it has them.
	release func()
}

func newBakes(ctx context.Context, opts Options) *bakes {
	return &bakes{ctx: ctx, opts: opts, slots: make(chan struct{}, opts.Parallel), byID: map[kiln.Digest]*bake{}}
}

// find returns the stored snapshot for key if its files are there and undamaged.
func (b *bakes) find(ctx context.Context, key kiln.Digest) (kiln.Snapshot, bool, error) {
	snap, err := b.opts.Store.Snapshot(ctx, key)
	if kiln.CodeOf(err) == kiln.CodeNotFound {
		return kiln.Snapshot{}, false, nil
	}
	if err != nil {
		return kiln.Snapshot{}, false, err
	}
	for _, blob := range []kiln.Blob{snap.Memory, snap.VMState, snap.Scratch} {
		if err := b.opts.Blobs.Check(ctx, blob); err != nil {
			return kiln.Snapshot{}, false, ctx.Err()
		}
	}
	return *snap, true, nil
}

// ensure returns the snapshot of a version at a size, baking it if need be, and records
// that the version has it.
func (b *bakes) ensure(ctx context.Context, v *kiln.Version, size kiln.Size, progress kiln.Progress) (_ kiln.Snapshot, cached bool, err error) {
	ctx, release := b.opts.Blobs.Hold(ctx)
	defer release()
	spec := v.VMSpec(size)
	key := b.opts.Snapshots.Key(spec)
	snap, cached, err := b.find(ctx, key)
	if err != nil {
		return kiln.Snapshot{}, false, err
	}
	if !cached {
		var leave func()
		if snap, leave, err = b.join(ctx, key, spec, progress); err != nil {
			return kiln.Snapshot{}, false, err
		}
		defer leave()
	}
	return snap, cached, b.opts.Store.PutSnapshot(ctx, v.TemplateID, v.Number, snap)
}

// join waits for the bake of key, starting it if nobody has. The files stay at least until
// the caller leaves.
func (b *bakes) join(ctx context.Context, key kiln.Digest, spec kiln.VMSpec, progress kiln.Progress) (_ kiln.Snapshot, leave func(), err error) {
	b.mu.Lock()
	k := b.byID[key]
	if k == nil {
		bakeCtx, cancel := context.WithCancelCause(b.ctx)
		bakeCtx, release := b.opts.Blobs.Hold(span.Under(bakeCtx, ctx))
		k = &bake{done: make(chan struct{}), cancel: cancel, release: release}
		b.byID[key] = k
		b.all.Go(func() { b.run(bakeCtx, k, key, spec, progress) })
	} else {
		progress.Log(kiln.StageSnapshot, "waiting for the same snapshot, which is being made already")
	}
	k.waiters++
	b.mu.Unlock()

	select {
	case <-k.done:
		if k.err != nil {
			b.leave(k, key)
			return kiln.Snapshot{}, nil, k.err
		}
		return k.snap, func() { b.leave(k, key) }, nil
	case <-ctx.Done():
	}
	if b.leave(k, key) {
		// Nobody wants it any more. It is waited for, so that what it took is released
		// when the caller says that the build has ended.
		k.cancel(context.Cause(ctx))
		<-k.done
	}
	return kiln.Snapshot{}, nil, fmt.Errorf("snapshot: %w", context.Cause(ctx))
}

// leave takes one waiter from a bake and reports whether it was the last.
func (b *bakes) leave(k *bake, key kiln.Digest) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	k.waiters--
	if k.waiters > 0 {
		return false
	}
	if b.byID[key] == k {
		delete(b.byID, key) // whoever comes now starts afresh
	}
	k.release()
	return true
}

func (b *bakes) run(ctx context.Context, k *bake, key kiln.Digest, spec kiln.VMSpec, progress kiln.Progress) {
	defer k.cancel(nil)
	k.snap, k.err = b.bake(ctx, key, spec, progress)
	b.mu.Lock()
	if b.byID[key] == k {
		delete(b.byID, key)
	}
	b.mu.Unlock()
	close(k.done)
}

func (b *bakes) bake(ctx context.Context, key kiln.Digest, spec kiln.VMSpec, progress kiln.Progress) (kiln.Snapshot, error) {
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	case <-ctx.Done():
		return kiln.Snapshot{}, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, b.opts.Timeouts.Snapshot, errDeadline)
	defer cancel()
	// Another bake of the same key may have ended since the caller looked.
	snap, found, err := b.find(ctx, key)
	if err != nil || found {
		return snap, err
	}
	err = guarded(func() (err error) {
		snap, err = b.opts.Snapshots.Bake(ctx, spec, progress)
		return err
	})
	if err != nil {
		if errors.Is(context.Cause(ctx), errDeadline) {
			err = tooLong(kiln.StageSnapshot, b.opts.Timeouts.Snapshot, err)
		}
		return kiln.Snapshot{}, err
	}
	if snap.Key != key {
		return kiln.Snapshot{}, fmt.Errorf("snapshot: made %s, wanted %s", snap.Key.Short(), key.Short())
	}
	return snap, nil
}

// wait returns when no bake runs any more.
func (b *bakes) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { b.all.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for snapshots: %w", ctx.Err())
	}
}

// EnsureSnapshot returns the golden snapshot of a ready version at a size. If there is
// none it is made now; whoever asks meanwhile waits for the same one. A size below the
// template's minimum is invalid.
func (s *Service) EnsureSnapshot(ctx context.Context, v *kiln.Version, sizeName string) (kiln.Snapshot, error) {
	size, err := s.opts.Sizes.ByName(sizeName)
	if err != nil {
		return kiln.Snapshot{}, err
	}
	if err := checkMinimum(v.Metadata, size); err != nil {
		return kiln.Snapshot{}, err
	}
	snap, _, err := s.bakes.ensure(ctx, v, size, kiln.DiscardProgress)
	return snap, err
}

// bakeSizes makes the snapshots of a promoted version that the options ask for, as long as it
// is the current one. Nobody waits for them: a failure leaves the size to its first use.
func (s *Service) bakeSizes(ctx context.Context, templateID string, number int) {
	for _, name := range s.opts.SnapshotSizes {
		if err := s.bakeSize(ctx, templateID, number, name); err != nil {
			if ctx.Err() == nil {
				s.log.WarnContext(ctx, "bake failed", "template", templateID, "version", number, "size", name, "error", err)
			}
			return
		}
	}
}

func (s *Service) bakeSize(ctx context.Context, templateID string, number int, name string) error {
	s.baking.Lock()
	defer s.baking.Unlock()
	org, err := s.opts.Store.TemplateOrg(ctx, templateID)
	if err != nil {
		return err
	}
	t, err := s.opts.Store.FindTemplate(ctx, org, templateID)
	if kiln.CodeOf(err) == kiln.CodeNotFound || err == nil && t.Current != number {
		return nil // deleted or superseded
	}
	if err != nil {
		return err
	}
	_, err = s.EnsureSnapshot(ctx, t.Quota.Apply(t.Serving), name)
	if kiln.CodeOf(err) == kiln.CodeInvalid {
		return nil // below the template's minimum
	}
	return err
}

func checkMinimum(m kiln.Metadata, size kiln.Size) error {
	if m.MinSize == "" {
		return nil
	}
	least, err := kiln.SizeByName(m.MinSize)
	if err != nil {
		return err
	}
	if !size.Holds(least) {
		return kiln.Errorf(kiln.CodeInvalid, "size %s is below the template's minimum %s", size.Name, least.Name)
	}
	return nil
}
