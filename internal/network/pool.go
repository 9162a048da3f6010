package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netns"

	"github.com/kilnvm/kiln"
)

// Store remembers which slots exist and whose they are. A thing that does not exist is a
// *kiln.Error with code not_found, a slot that is taken one with code conflict.
type Store interface {
	// AddNetworkSlot records a slot of a node before it exists.
	AddNetworkSlot(ctx context.Context, node string, slot int) error
	// ClaimNetworkSlot gives a free slot an owner.
	ClaimNetworkSlot(ctx context.Context, node string, slot int, owner string) error
	// FreeNetworkSlot takes the owner away, if there is one.
	FreeNetworkSlot(ctx context.Context, node string, slot int) error
	// RemoveNetworkSlot forgets a slot that no longer exists.
	RemoveNetworkSlot(ctx context.Context, node string, slot int) error
	// NetworkSlots returns the owners of the node's slots, "" for a free one.
	NetworkSlots(ctx context.Context, node string) (map[int]string, error)
}

// Options is what a pool is made of. Store and DataDir are required.
type Options struct {
	Store    Store
	Node     string // whose slots in the store; "" means "local"
	DataDir  string // of the server: it tells the servers of one host apart
	Settings Settings
	// Host is the namespace that leads outside; nil means the one of this process.
	Host *netns.NsHandle
	// RunDir is where servers reserve their numbers; "" means RunDir.
	RunDir string
	Log    *slog.Logger // nil discards
}

// Pool owns the slots of one server. It is safe for concurrent use.
type Pool struct {
	opts     Options
	log      *slog.Logger
	plan     plan
	instance *instance
	host     netns.NsHandle
	own      func() ([]netip.Addr, error) // addresses of the host, remembered for a moment

	mu     sync.Mutex
	closed bool
	slots  map[int]*Slot // all that exist
	ready  []*Slot       // without owner
	making int           // under way
	work   sync.WaitGroup
}

// keepFactor bounds how many free slots are kept for use: this many times Prepared.
const keepFactor = 4

// New removes what an earlier server left, prepares the host and begins to prepare slots.
// Close ends the pool.
func New(ctx context.Context, opts Options) (_ *Pool, err error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	p := &Pool{opts: opts, log: opts.Log, slots: map[int]*Slot{}}
	if opts.Host != nil {
		p.host = *opts.Host
	} else if p.host, err = netns.Get(); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	p.own = remembered(time.Second, func() ([]netip.Addr, error) { return hostAddresses(p.host, p.plan) })
	if p.instance, err = reserve(opts.RunDir, opts.DataDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.instance.giveBack())
		}
	}()
	if p.plan, err = opts.Settings.plan(p.instance.number); err != nil {
		return nil, err
	}
	if err := p.reconcile(ctx); err != nil {
		return nil, err
	}
	if err := prepareHost(p.instance, p.plan, p.host); err != nil {
		return nil, unavailable(err)
	}
	// One slot now, so that a host that cannot have any is found out at the start.
	first, err := p.add(ctx)
	if err != nil {
		return nil, errors.Join(unavailable(err), removeHost(p.instance, p.host))
	}
	p.ready = append(p.ready, first)
	p.refill()
	return p, nil
}

func unavailable(err error) error {
	var known *kiln.Error
	if errors.As(err, &known) {
		return err
	}
	return kiln.Errorf(kiln.CodeUnavailable, "sandboxes cannot have a network on this host: %w", err).
		WithHint("`kiln doctor` says what is missing; network.enabled = false in the configuration does without")
}

func (o *Options) check() error {
	if o.Store == nil || !filepath.IsAbs(o.DataDir) {
		return errors.New("network: Store and an absolute DataDir are required")
	}
	if o.Node == "" {
		o.Node = "local"
	}
	if o.RunDir == "" {
		o.RunDir = RunDir
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Settings.setDefaults()
	return o.Settings.Validate()
}

// remembered returns f's last answer for as long as it is young.
func remembered[T any](age time.Duration, f func() (T, error)) func() (T, error) {
	var mu sync.Mutex
	var last T
	var when time.Time
	return func() (T, error) {
		mu.Lock()
		defer mu.Unlock()
		if !when.IsZero() && time.Since(when) < age {
			return last, nil
		}
		v, err := f()
		if err == nil {
			last, when = v, time.Now()
		}
		return v, err
	}
}

// reconcile removes all that is recorded or found of earlier servers: no sandbox outlives
// its server, so that nobody uses it.
func (p *Pool) reconcile(ctx context.Context) error {
	if err := leftovers(p.instance, p.host); err != nil {
		return fmt.Errorf("network: remove what an earlier server left: %w", err)
	}
	recorded, err := p.opts.Store.NetworkSlots(ctx, p.opts.Node)
	if err != nil {
		return err
	}
	for slot := range recorded {
		if err := p.opts.Store.RemoveNetworkSlot(ctx, p.opts.Node, slot); err != nil {
			return err
		}
	}
	if len(recorded) > 0 {
		p.log.Info("network slots of an earlier server removed", "slots", len(recorded))
	}
	return nil
}

// Default is the cluster's policy, over which a sandbox's lies.
func (p *Pool) Default() kiln.EgressPolicy { return p.opts.Settings.Default }

// Acquire lends a slot to an owner. The policy is in force when it returns.
func (p *Pool) Acquire(ctx context.Context, owner string, policy kiln.EgressPolicy) (*Slot, error) {
	slot, err := p.Lend(ctx, owner)
	if err != nil {
		return nil, err
	}
	if err := slot.SetPolicy(policy); err != nil {
		return nil, errors.Join(err, slot.Release())
	}
	return slot, nil
}

// Lend lends a slot to an owner. Nothing leaves it until [Slot.SetPolicy] has said what may.
func (p *Pool) Lend(ctx context.Context, owner string) (*Slot, error) {
	slot, err := p.take(ctx)
	if err != nil {
		return nil, err
	}
	slot.lend()
	if err := slot.begin(ctx, owner); err != nil {
		return nil, errors.Join(err, slot.Release())
	}
	return slot, nil
}

// take returns a slot without owner, a prepared one if there is one.
func (p *Pool) take(ctx context.Context) (*Slot, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, errClosed
	}
	if n := len(p.ready); n > 0 {
		slot := p.ready[0]
		p.ready = p.ready[1:]
		p.mu.Unlock()
		p.refill()
		return slot, nil
	}
	p.work.Add(1)
	p.mu.Unlock()
	defer p.work.Done()
	return p.add(ctx)
}

var errClosed = kiln.Errorf(kiln.CodeUnavailable, "the server is stopping")

// refill makes slots until enough are prepared, in the background.
func (p *Pool) refill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.making > 0 || len(p.ready) >= p.opts.Settings.Prepared {
		return
	}
	p.making++
	p.work.Go(func() {
		for p.makeOne() {
		}
	})
}

// makeOne makes a slot and reports whether another one is wanted.
func (p *Pool) makeOne() bool {
	slot, err := p.add(context.Background())
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.making--
		p.log.Error("prepare network slot", "error", err)
		return false
	}
	p.ready = append(p.ready, slot)
	if p.closed || len(p.ready) >= p.opts.Settings.Prepared {
		p.making--
		return false
	}
	return true
}

// add makes a slot under the lowest number that is free.
func (p *Pool) add(ctx context.Context) (*Slot, error) {
	s := &Slot{pool: p}
	p.mu.Lock()
	for s.number = 0; p.slots[s.number] != nil; {
		s.number++
	}
	if s.number >= p.plan.slots() {
		p.mu.Unlock()
		return nil, kiln.Errorf(kiln.CodeExhausted, "all %d network slots are in use", p.plan.slots()).
			WithHint("destroy a sandbox, or choose a larger network.subnet")
	}
	p.slots[s.number] = s
	p.mu.Unlock()
	if err := s.make(ctx); err != nil {
		return nil, errors.Join(err, s.remove())
	}
	return s, nil
}

// put takes a slot back: it is kept unless there are plenty.
func (p *Pool) put(s *Slot) error {
	p.mu.Lock()
	if !p.closed && len(p.ready) < keepFactor*p.opts.Settings.Prepared {
		p.ready = append(p.ready, s)
		p.mu.Unlock()
		return nil
	}
	p.mu.Unlock()
	return s.remove()
}

func (p *Pool) forget(s *Slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.slots[s.number] == s {
		delete(p.slots, s.number)
	}
}

// Close removes all slots, those in use included.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	p.work.Wait()
	var errs []error
	for _, s := range p.all() {
		errs = append(errs, s.remove())
	}
	errs = append(errs, removeHost(p.instance, p.host), p.instance.giveBack())
	if p.opts.Host == nil {
		errs = append(errs, p.host.Close())
	}
	return errors.Join(errs...)
}

func (p *Pool) all() []*Slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]*Slot, 0, len(p.slots))
	for _, s := range p.slots {
		list = append(list, s)
	}
	return list
}

// Counts returns how many slots there are now.
func (p *Pool) Counts() kiln.NetworkSlots {
	p.mu.Lock()
	defer p.mu.Unlock()
	return kiln.NetworkSlots{Used: len(p.slots) - len(p.ready), Free: len(p.ready), Limit: p.plan.slots()}
}
