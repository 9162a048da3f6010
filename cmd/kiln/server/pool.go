package server

import (
	"context"
	"sync"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/sandbox"
	"github.com/kilnvm/kiln/internal/store"
)

// warmPool is the manager's warm slots as the API wants them.
type warmPool struct {
	manager *sandbox.Manager
	store   *store.Store
}

// Warm implements api.Pool.
func (p warmPool) Warm(_ context.Context, who kiln.Principal) ([]kiln.WarmShelf, error) {
	var own []kiln.WarmShelf
	for _, s := range p.manager.Warm() {
		if s.OrgID == who.OrgID || s.OrgID == "" && who.Operator() {
			own = append(own, s)
		}
	}
	return own, nil
}

// SetWarm implements api.Pool.
func (p warmPool) SetWarm(ctx context.Context, who kiln.Principal, template, size string, slots int) (kiln.WarmTarget, error) {
	t, err := p.manager.WarmTarget(ctx, who, template, size, slots)
	if err != nil {
		return t, err
	}
	if err := p.store.SetWarmTarget(ctx, t); err != nil {
		return t, err
	}
	p.manager.WarmChanged()
	return t, nil
}

// keepWarm looks after the warm pool until the returned function is called, which returns
// when no slot is left.
func keepWarm(m *sandbox.Manager) (cool func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { m.KeepWarm(ctx) })
	return func() {
		cancel()
		done.Wait()
	}
}
