package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/network"
)

// Manager owns the sandboxes of one host. It is safe for concurrent use.
type Manager struct {
	opts      Options
	log       *slog.Logger
	admission *admission
	warm      *pool
	traffic   *traffic

	mu     sync.Mutex
	closed bool
	living map[string]*box
}

// New returns a manager. Call [Manager.Reconcile] before the first Create.
func New(opts Options) (*Manager, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	opts.setDefaults()
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("sandbox folder: %w", err)
	}
	return &Manager{
		opts: opts, log: opts.Log,
		admission: newAdmission(opts.Limits),
		warm:      newPool(opts.Warm),
		traffic:   &traffic{seen: map[*network.Slot]kiln.NetworkUse{}, log: opts.Log},
		living:    map[string]*box{},
	}, nil
}

// Get returns a sandbox, living or ended.
func (m *Manager) Get(ctx context.Context, id string) (*kiln.Sandbox, error) {
	if b := m.box(id); b != nil {
		s := b.snapshot()
		return &s, nil
	}
	return m.opts.Store.Sandbox(ctx, id)
}

// List returns the living sandboxes, oldest first.
func (m *Manager) List(context.Context) ([]*kiln.Sandbox, error) {
	var list []*kiln.Sandbox
	for _, b := range m.boxes() {
		s := b.snapshot()
		list = append(list, &s)
	}
	slices.SortFunc(list, func(a, b *kiln.Sandbox) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return list, nil
}

// Find returns the sandboxes that f chooses, oldest first.
func (m *Manager) Find(ctx context.Context, f kiln.SandboxFilter) ([]*kiln.Sandbox, error) {
	return m.opts.Store.ListSandboxes(ctx, f)
}

// Guest returns the connection to a sandbox's daemon. Its requests wake the sandbox if it
// is paused. The client belongs to the manager and must not be closed; it stops working
// when the sandbox ends.
func (m *Manager) Guest(ctx context.Context, id string) (*guest.Client, error) {
	b, err := m.livingBox(ctx, id)
	if err != nil {
		return nil, err
	}
	return b.frontClient()
}

// Destroy ends a sandbox and returns when nothing is left of it but its row. Destroying
// one that has ended already is no error. When ctx ends first the destruction goes on.
func (m *Manager) Destroy(ctx context.Context, id string) error {
	b := m.box(id)
	if b == nil {
		_, err := m.opts.Store.Sandbox(ctx, id)
		return err
	}
	go m.end(b, kiln.SandboxDeleted, "destroyed by request")
	select {
	case <-b.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sandbox %s: still being destroyed: %w", id, context.Cause(ctx))
	}
}

// Close refuses new sandboxes, pauses the persistent ones that run, leaves paused ones for
// the next manager and destroys all others. It returns an error when ctx ended before that
// was done; Reconcile then finds the rest at the next start.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()

	boxes := m.boxes()
	for _, b := range boxes {
		go m.retire(b)
	}
	var errs []error
	for _, b := range boxes {
		select {
		case <-b.ended:
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("sandbox %s: still being destroyed: %w", b.id, context.Cause(ctx)))
		}
	}
	return errors.Join(errs...)
}

// retire lets go of a box because the server stops.
func (m *Manager) retire(b *box) {
	const reason = "the server stopped"
	if b.snapshot().Persistent {
		m.pauseAlone(b, reason, nil)
	}
	if !b.leavePaused() {
		m.end(b, kiln.SandboxDeleted, reason)
		return
	}
	m.remove(b)
	close(b.ended)
}

func (m *Manager) box(id string) *box {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.living[id]
}

// livingBox returns the box of a sandbox that has not ended.
func (m *Manager) livingBox(ctx context.Context, id string) (*box, error) {
	if b := m.box(id); b != nil {
		return b, nil
	}
	s, err := m.opts.Store.Sandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	return nil, endedError(s)
}

func (m *Manager) boxes() []*box {
	m.mu.Lock()
	defer m.mu.Unlock()
	boxes := make([]*box, 0, len(m.living))
	for _, b := range m.living {
		boxes = append(boxes, b)
	}
	return boxes
}

// add makes b known, so that it can be destroyed from now on.
func (m *Manager) add(b *box) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return kiln.Errorf(kiln.CodeUnavailable, "the server is stopping")
	}
	m.living[b.id] = b
	return nil
}

func (m *Manager) remove(b *box) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.living, b.id)
}

// save writes b's present state to its row. Rows of one box are written one after
// another, each with the state of its moment, so that none overtakes a newer one.
func (m *Manager) save(ctx context.Context, b *box) error {
	b.saving.Lock()
	defer b.saving.Unlock()
	s := b.snapshot()
	if err := m.opts.Store.UpdateSandbox(ctx, &s); err != nil {
		return fmt.Errorf("sandbox %s: record: %w", b.id, err)
	}
	return nil
}

func (m *Manager) dir(id string) string { return filepath.Join(m.opts.Dir, id) }

// scratchIn is the private disk of the sandbox or VM whose folder is dir.
func scratchIn(dir string) string { return filepath.Join(dir, "scratch") }

func endedError(s *kiln.Sandbox) error {
	if s.Reason == "" {
		return kiln.Errorf(kiln.CodeConflict, "sandbox %s has ended", s.ID)
	}
	return kiln.Errorf(kiln.CodeConflict, "sandbox %s has ended: %s", s.ID, s.Reason)
}
