package network

import (
	"encoding/binary"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/guestnet"
)

// Names in a slot's ruleset.
const (
	policyTable = "kiln"       // family ip: what the guest may reach
	guardTable  = "kiln-guard" // family netdev: what is a packet of this guest at all

	setDenied, setReserved, setAllowed, setPorts = "denied", "reserved", "allowed", "ports"

	setResolved   = "resolved"   // filled by the resolver, emptied by time
	setRefusals   = "refusals"   // destination, protocol and port of what was refused
	counterSent   = "sent"       // in both tables of bytes that left
	counterRecv   = "received"   //
	counterDenied = "refused"    // packets
	counterOdd    = "not-ipv4"   // of the guard: packets that are no packets of this guest
	markResolved  = uint32(0x6b) // of connections to what a name resolved to
)

// maxRefusals bounds the deny log of a slot; what is refused beyond it is only counted.
const (
	maxRefusals    = 1024
	refusalsRemain = 24 * time.Hour
	maxResolved    = 16384
)

// elementsPerMessage keeps a message with set elements below what netlink can hold.
const elementsPerMessage = 1000

// sets are the ones whose content a policy decides.
func policySets(t *nftables.Table) map[string]*nftables.Set {
	addr := func(id uint32, name string) *nftables.Set {
		return &nftables.Set{Table: t, ID: id, Name: name, KeyType: nftables.TypeIPAddr, Interval: true}
	}
	return map[string]*nftables.Set{
		setDenied: addr(1, setDenied), setReserved: addr(2, setReserved), setAllowed: addr(3, setAllowed),
		setPorts: {Table: t, ID: 4, Name: setPorts, KeyType: nftables.TypeInetService, KeyByteOrder: binaryutil.BigEndian},
	}
}

func resolvedSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{
		Table: t, ID: 5, Name: setResolved, KeyType: nftables.TypeIPAddr, HasTimeout: true,
		KeyByteOrder: binaryutil.BigEndian, Size: maxResolved,
	}
}

func refusalSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{
		Table: t, ID: 6, Name: setRefusals, Dynamic: true, HasTimeout: true, Timeout: refusalsRemain, Concatenation: true, Size: maxRefusals,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService),
	}
}

// writeRules adds to the batch of c everything that makes d the policy of the namespace.
// What was there goes in the same transaction; counters and, unless fresh, the addresses
// that names resolved to stay.
func writeRules(c *nftables.Conn, d *Decider, fresh bool) error {
	policy := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: policyTable}
	guard := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: guardTable}
	for _, t := range []*nftables.Table{policy, guard} {
		c.AddTable(t)
		if fresh {
			c.DelTable(t)
			c.AddTable(t)
		}
		c.FlushTable(t)
	}
	if err := writeSets(c, policy, d); err != nil {
		return err
	}
	writePolicy(c, policy, d)
	writeGuard(c, guard)
	return nil
}

func writeSets(c *nftables.Conn, t *nftables.Table, d *Decider) error {
	sets := policySets(t)
	content := map[string][]nftables.SetElement{
		setDenied: intervals(d.denied), setReserved: intervals(d.reserved), setAllowed: intervals(d.allowed),
	}
	for _, p := range d.ports {
		content[setPorts] = append(content[setPorts], nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(p)})
	}
	for _, name := range []string{setDenied, setReserved, setAllowed, setPorts} {
		set := sets[name]
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
		c.FlushSet(set)
		for elements := content[name]; len(elements) > 0; {
			n := min(len(elements), elementsPerMessage)
			if err := c.SetAddElements(set, elements[:n]); err != nil {
				return err
			}
			elements = elements[n:]
		}
	}
	for _, set := range []*nftables.Set{resolvedSet(t), refusalSet(t)} {
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
	}
	return nil
}

// intervals are the elements of an interval set: where each range begins, and where what
// follows it begins.
func intervals(r ranges) []nftables.SetElement {
	var list []nftables.SetElement
	for _, s := range r {
		list = append(list, nftables.SetElement{Key: key4(s.first)})
		if s.last != ^uint32(0) {
			list = append(list, nftables.SetElement{Key: key4(s.last + 1), IntervalEnd: true})
		}
	}
	return list
}

func key4(n uint32) []byte {
	b := make([]byte, 4)
	binary.BigEndian.PutUint32(b, n)
	return b
}

// writePolicy writes the questions of [Decider.Decide] in their order.
func writePolicy(c *nftables.Conn, t *nftables.Table, d *Decider) {
	for _, name := range []string{counterSent, counterRecv, counterDenied} {
		c.AddObj(&nftables.CounterObj{Table: t, Name: name})
	}
	w := writer{c: c, table: t}
	forward := w.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	input := w.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	output := w.base("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter)
	nat := c.AddChain(&nftables.Chain{
		Name: "nat", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	egress, pass, refuse := w.chain("egress"), w.chain("pass"), w.chain("refuse")

	w.rule(forward, in(uplinkName), out(tapName), ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), count(counterRecv), accept())
	w.rule(forward, in(tapName), out(uplinkName), jump("egress"))
	w.rule(forward, in(tapName), jump("refuse"))

	w.rule(input, in("lo"), accept())
	w.rule(input, in(tapName), daddr(key4(number(gatewayAddr))), proto(ProtoUDP), dport(dnsPort), accept())
	w.rule(input, in(tapName), daddr(key4(number(gatewayAddr))), proto(ProtoTCP), dport(dnsPort), accept())
	w.rule(input, in(tapName), daddr(key4(number(gatewayAddr))), proto(ProtoICMP), accept())
	w.rule(input, in(tapName), jump("refuse"))
	w.rule(output, out("lo"), accept())
	w.rule(output, out(tapName), accept())

	w.rule(egress, ctState(expr.CtStateBitINVALID), jump("refuse"))
	w.rule(egress, daddrIn(setDenied), jump("refuse"))
	w.rule(egress, daddrIn(setReserved), jump("refuse"))
	if len(d.ports) > 0 {
		w.rule(egress, daddrIn(setAllowed), proto(ProtoTCP), dportIn(setPorts), jump("pass"))
	} else {
		w.rule(egress, daddrIn(setAllowed), jump("pass"))
	}
	w.rule(egress, ctMark(markResolved), ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), jump("pass"))
	w.rule(egress, daddrIn(setResolved), setCtMark(markResolved), jump("pass"))
	if d.allowAll {
		w.rule(egress, jump("pass"))
	} else {
		w.rule(egress, jump("refuse"))
	}

	w.rule(pass, count(counterSent), accept())
	w.rule(refuse, count(counterDenied))
	w.rule(refuse, proto(ProtoTCP), protoPort(), remember())
	w.rule(refuse, proto(ProtoUDP), protoPort(), remember())
	w.rule(refuse, proto(ProtoICMP), protoNoPort(), remember())
	w.rule(refuse, proto(ProtoTCP), reject(unix.NFT_REJECT_TCP_RST, 0))
	w.rule(refuse, reject(unix.NFT_REJECT_ICMP_UNREACH, icmpProhibited))

	w.rule(nat, out(uplinkName), exprs{&expr.Masq{}})
}

// icmpProhibited is "communication administratively prohibited" (RFC 1812).
const icmpProhibited = 13

// writeGuard lets nothing into the namespace but IPv4 and ARP from the guest's addresses.
func writeGuard(c *nftables.Conn, t *nftables.Table) {
	drop := nftables.ChainPolicyDrop
	chain := c.AddChain(&nftables.Chain{
		Name: "ingress", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityRef(-500), Policy: &drop, Device: tapName,
	})
	c.AddObj(&nftables.CounterObj{Table: t, Name: counterOdd})
	w := writer{c: c, table: t}
	fromGuest := linkHeader(6, guestnet.GuestMAC())
	w.rule(chain, fromGuest, etherType(unix.ETH_P_IP), netHeader(12, key4(number(guestAddr))), accept())
	// ARP for Ethernet and IPv4 (RFC 826), the sender's addresses being the guest's.
	w.rule(chain, fromGuest, etherType(unix.ETH_P_ARP), netHeader(8, guestnet.GuestMAC()), netHeader(14, key4(number(guestAddr))), accept())
	w.rule(chain, count(counterOdd))
}
