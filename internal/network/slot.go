package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	vnetlink "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guestnet"
	"github.com/kilnvm/kiln/internal/vmm"
)

// Slot is a connection to the world, lent to one owner. It is safe for concurrent use.
type Slot struct {
	pool    *Pool
	number  int
	devices devices
	ns      netns.NsHandle
	names   *resolver

	mu      sync.Mutex // orders changes of the rules
	rules   *nftables.Conn
	flows   *vnetlink.Handle // of connections
	decider *Decider
	quiet   bool // nothing has ever been let out, but to the gateway, since the connections were cut
	owner   string
	lent    bool
	removed bool
}

// nothing is the policy of a slot without owner.
func nothing() *Decider {
	d, err := compile(kiln.EgressPolicy{Mode: kiln.EgressDenyAll}, nil)
	if err != nil {
		panic(err) // the empty policy is valid
	}
	return d
}

// batchBytes is the room for a ruleset of the largest policy in one batch.
const batchBytes = 8 << 20

// make makes what the slot consists of.
func (s *Slot) make(ctx context.Context) error {
	p := s.pool
	s.ns = netns.None()
	s.devices = devices{namespace: p.instance.namespace(s.number), link: p.instance.link(s.number)}
	s.devices.hostAddr, s.devices.upAddr = p.plan.addresses(s.number)
	if err := p.opts.Store.AddNetworkSlot(ctx, p.opts.Node, s.number); err != nil {
		return err
	}
	var err error
	if s.ns, err = s.devices.make(p.host); err != nil {
		return err
	}
	s.rules, err = nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(s.ns)), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(batchBytes), c.SetReadBuffer(batchBytes))
	}))
	if err != nil {
		return err
	}
	// It stays open like that of the rules: to close a socket of netfilter is to wait until
	// the kernel has cleared away what the last change of the rules left, some 10 ms.
	if s.flows, err = vnetlink.NewHandleAt(s.ns, unix.NETLINK_NETFILTER); err != nil {
		return fmt.Errorf("connections: %w", err)
	}
	s.quiet = true
	if err := s.apply(nothing(), true); err != nil {
		return err
	}
	s.names, err = listen(s)
	return err
}

// apply puts a ruleset into force.
func (s *Slot) apply(d *Decider, fresh bool) error {
	if err := writeRules(s.rules, d, fresh); err != nil {
		return fmt.Errorf("network rules: %w", err)
	}
	if err := s.rules.Flush(); err != nil {
		return fmt.Errorf("network rules: %w", err)
	}
	s.decider = d
	s.quiet = s.quiet && d.onlyGateway()
	return nil
}

// lend notes that the slot must be released.
func (s *Slot) lend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lent = true
}

// begin makes the slot its owner's.
func (s *Slot) begin(ctx context.Context, owner string) error {
	if err := s.pool.opts.Store.ClaimNetworkSlot(ctx, s.pool.opts.Node, s.number, owner); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed {
		return errClosed
	}
	s.owner = owner
	return nil
}

func (s *Slot) compile(policy kiln.EgressPolicy) (*Decider, error) {
	own, err := s.pool.own()
	if err != nil {
		return nil, err
	}
	return compile(policy.Over(s.pool.Default()), s.pool.plan.denied(own))
}

// Config says how a VM is attached.
func (s *Slot) Config() *vmm.Network {
	return &vmm.Network{Namespace: s.devices.path(), Tap: tapName, MAC: guestnet.GuestMAC().String()}
}

// Address returns the address that what leaves the slot has towards the host.
func (s *Slot) Address() netip.Addr { return s.devices.upAddr }

// Policy returns what is in force.
func (s *Slot) Policy() kiln.EgressPolicy { return s.current().policy }

func (s *Slot) current() *Decider {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.decider
}

// Rename makes another one the owner, as when a VM that was prepared becomes a sandbox.
func (s *Slot) Rename(ctx context.Context, owner string) error {
	store, node := s.pool.opts.Store, s.pool.opts.Node
	if err := store.FreeNetworkSlot(ctx, node, s.number); err != nil {
		return err
	}
	if err := store.ClaimNetworkSlot(ctx, node, s.number, owner); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owner = owner
	return nil
}

// SetPolicy puts another policy into force, while the VM runs or before it does.
// Connections that it allows go on; all others are cut.
func (s *Slot) SetPolicy(policy kiln.EgressPolicy) error {
	d, err := s.compile(policy)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed || !s.lent {
		return kiln.Errorf(kiln.CodeConflict, "the network slot was given back")
	}
	quiet := s.quiet
	if err := s.apply(d, false); err != nil {
		return err
	}
	forgotten := s.names.keepOnly(d)
	if err := s.forgetResolved(forgotten); err != nil {
		return err
	}
	if quiet { // to look for connections takes the kernel longer than a restore takes
		return nil
	}
	return s.cut(func(p Packet) bool {
		p.Resolved = s.names.everResolved(p.Dst)
		allowed, _ := d.Decide(p)
		return !allowed
	})
}

// Release gives the slot back. Nothing passes any more when it returns. It is idempotent
// and takes no context, because it must always run to its end.
func (s *Slot) Release() error {
	s.mu.Lock()
	if s.removed || !s.lent {
		s.mu.Unlock()
		return nil
	}
	s.lent, s.owner = false, ""
	err := s.apply(nothing(), true)
	s.names.forget()
	err = errors.Join(err, s.cut(func(Packet) bool { return true }))
	s.quiet = err == nil
	s.mu.Unlock()
	if err == nil {
		err = s.pool.opts.Store.FreeNetworkSlot(context.Background(), s.pool.opts.Node, s.number)
	}
	if err != nil { // what is not as it should be is not used again
		return errors.Join(err, s.remove())
	}
	return s.pool.put(s)
}

// remove unmakes the slot.
func (s *Slot) remove() error {
	s.mu.Lock()
	if s.removed {
		s.mu.Unlock()
		return nil
	}
	s.removed = true
	s.mu.Unlock()
	if s.names != nil {
		s.names.close()
	}
	var errs []error
	if s.rules != nil {
		errs = append(errs, s.rules.CloseLasting())
	}
	if s.flows != nil {
		s.flows.Close()
	}
	if s.ns.IsOpen() {
		errs = append(errs, s.ns.Close())
	}
	errs = append(errs, s.devices.remove(s.pool.host))
	errs = append(errs, s.pool.opts.Store.RemoveNetworkSlot(context.Background(), s.pool.opts.Node, s.number))
	s.pool.forget(s)
	return errors.Join(errs...)
}
