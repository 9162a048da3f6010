package network

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cut forgets the connections of the guest for which unwanted says so: the answers to
// what it sent have no way in any more.
func (s *Slot) cut(unwanted func(Packet) bool) error {
	if _, err := s.flows.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, flowFilter(unwanted)); err != nil {
		return fmt.Errorf("cut connections: %w", err)
	}
	return nil
}

// flowFilter implements netlink.CustomConntrackFilter.
type flowFilter func(Packet) bool

func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	src, ok := netip.AddrFromSlice(flow.Forward.SrcIP.To4())
	dst, ok2 := netip.AddrFromSlice(flow.Forward.DstIP.To4())
	return ok && ok2 && f(Packet{Src: src, Dst: dst, Proto: flow.Forward.Protocol, Port: flow.Forward.DstPort})
}

// allowResolved lets the guest reach addresses for as long as their names are valid,
// unless the policy has changed since d.
func (s *Slot) allowResolved(d *Decider, addrs map[netip.Addr]time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.decider != d || s.removed || len(addrs) == 0 {
		return nil
	}
	set := resolvedSet(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: policyTable})
	var elements []nftables.SetElement
	for addr, ttl := range addrs {
		elements = append(elements, nftables.SetElement{Key: addr.AsSlice(), Timeout: ttl})
	}
	// An element that is there keeps the time that it has, so it is taken away between.
	for _, step := range []func(*nftables.Set, []nftables.SetElement) error{s.rules.SetAddElements, s.rules.SetDeleteElements, s.rules.SetAddElements} {
		if err := step(set, elements); err != nil {
			return err
		}
	}
	return s.rules.Flush()
}

// forgetResolved takes addresses away again. The caller holds the lock.
func (s *Slot) forgetResolved(addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	set := resolvedSet(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: policyTable})
	var elements []nftables.SetElement
	for _, addr := range addrs {
		elements = append(elements, nftables.SetElement{Key: addr.AsSlice()})
	}
	// One that has timed out meanwhile could not be deleted, so it is added first.
	if err := s.rules.SetAddElements(set, elements); err != nil {
		return err
	}
	if err := s.rules.SetDeleteElements(set, elements); err != nil {
		return err
	}
	return s.rules.Flush()
}
