package network

import (
	"context"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"

	"github.com/kilnvm/kiln"
)

// Case is a line of the table of precedence for tests with live rules.
type Case struct {
	Name    string
	Policy  kiln.EgressPolicy
	Network string // "tcp" or "udp"
	Addr    string
	// Name is resolved first when the packet goes to a resolved address.
	Resolved, Allow bool
}

// Cases returns the table of precedence.
func Cases() []Case {
	var list []Case
	for _, d := range decisions() {
		c := Case{Name: d.name, Policy: d.policy, Network: protocolName(d.packet.Proto), Resolved: d.packet.Resolved, Allow: d.allow}
		c.Addr = d.packet.Dst.String() + ":" + strconv.Itoa(int(d.packet.Port))
		list = append(list, c)
	}
	return list
}

// Crash ends a pool as the end of its process would: descriptors close, nothing else.
func (p *Pool) Crash() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.work.Wait()
	for _, s := range p.all() {
		s.names.close()
		_ = s.rules.CloseLasting()
		s.flows.Close()
		_ = s.ns.Close()
	}
	_ = p.instance.file.Close()
}

// AcquireNew is Acquire when nothing is prepared.
func (p *Pool) AcquireNew(ctx context.Context, owner string, policy kiln.EgressPolicy) (*Slot, error) {
	s, err := p.add(ctx)
	if err != nil {
		return nil, err
	}
	s.lend()
	if err := s.begin(ctx, owner); err != nil {
		return s, err
	}
	return s, s.SetPolicy(policy)
}

// Settle waits until nothing is being prepared.
func (p *Pool) Settle() { p.work.Wait() }

// NamespaceGlob matches the files of the namespaces of all slots.
func (p *Pool) NamespaceGlob() string { return filepath.Join(netnsDir, p.instance.namespaces()+"*") }

// Remove unmakes a slot instead of keeping it.
func (s *Slot) Remove() error { return s.remove() }

// Links lists the links of the present namespace while others come and go.
func Links() ([]netlink.Link, error) { return whole(netlink.LinkList) }
