package network

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
)

// prepareHost makes the host route for all slots: a table of its own, whose rules name
// them by a pattern and do not grow with their number.
func prepareHost(inst *instance, p plan, host netns.NsHandle) error {
	err := inside(host, func() error { return setSysctl("ipv4/ip_forward", "1") })
	if err != nil {
		return fmt.Errorf("let the host forward packets: %w", err)
	}
	c, err := nftables.New(nftables.WithNetNSFd(int(host)))
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: inst.table()}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	if err := writeHost(c, t, inst, p); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("rules of the host: %w", err)
	}
	return nil
}

// writeHost repeats, for all slots together, what each one's own rules say already: no
// address but its own, no other slot, nothing of the host's that is not open.
func writeHost(c *nftables.Conn, t *nftables.Table, inst *instance, p plan) error {
	block := &nftables.Set{Table: t, ID: 1, Name: "slots", KeyType: nftables.TypeIPAddr, Interval: true}
	subnet := &nftables.Set{Table: t, ID: 2, Name: "subnet", KeyType: nftables.TypeIPAddr, Interval: true}
	open := &nftables.Set{Table: t, ID: 3, Name: "open", KeyType: nftables.TypeIPAddr, Interval: true}
	for _, s := range []struct {
		set     *nftables.Set
		content ranges
	}{{block, rangesOf([]netip.Prefix{p.block})}, {subnet, p.subnet}, {open, p.open.minus(p.subnet)}} {
		if err := c.AddSet(s.set, intervals(s.content)); err != nil {
			return err
		}
	}
	w := writer{c: c, table: t}
	hook := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: kind, Hooknum: hook, Priority: priority})
	}
	input := hook("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	forward := hook("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	nat := hook("nat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	slots := inst.links() + "*"

	w.rule(input, in(slots), saddrIn(block.Name), daddrIn(open.Name), accept())
	w.rule(input, in(slots), drop())
	w.rule(forward, in(slots), daddrIn(subnet.Name), drop())
	w.rule(forward, in(slots), saddrIn(block.Name), accept())
	w.rule(forward, in(slots), drop())
	w.rule(forward, out(slots), ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
	w.rule(forward, out(slots), drop())
	w.rule(nat, saddrIn(block.Name), notOut(slots), exprs{&expr.Masq{}})
	return nil
}

// removeHost takes the table away.
func removeHost(inst *instance, host netns.NsHandle) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(host)))
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: inst.table()}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("rules of the host: %w", err)
	}
	return nil
}

// hostAddresses returns the IPv4 addresses of the host, those of slots left out.
func hostAddresses(host netns.NsHandle, p plan) ([]netip.Addr, error) {
	var list []netip.Addr
	err := inside(host, func() error {
		addrs, err := whole(addressesV4)
		for _, a := range addrs {
			if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok && !p.subnet.has(addr) {
				list = append(list, addr)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("addresses of the host: %w", err)
	}
	return list, nil
}
