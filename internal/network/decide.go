package network

import (
	"net/netip"
	"slices"

	"github.com/kilnvm/kiln"
)

// Reason says which rule decided about a packet. The order of the constants is the order
// in which the rules are asked; docs/network.md has the same table.
type Reason string

const (
	ReasonNotIPv4  Reason = "not-ipv4"  // anything but IPv4 and ARP: dropped
	ReasonSpoofed  Reason = "spoofed"   // not from the guest's own address: dropped
	ReasonGateway  Reason = "gateway"   // to the resolver: answered by it
	ReasonDenied   Reason = "denied"    // in a denied CIDR of the policy
	ReasonReserved Reason = "reserved"  // host, private, link-local, other sandboxes
	ReasonAllowed  Reason = "allowed"   // in an allowed CIDR, on an allowed port
	ReasonResolved Reason = "resolved"  // what an allowed domain resolved to
	ReasonAllowAll Reason = "allow_all" // mode of the policy
	ReasonDenyAll  Reason = "deny_all"  // mode of the policy
)

// Protocol numbers (IANA).
const (
	ProtoICMP = 1
	ProtoTCP  = 6
	ProtoUDP  = 17
)

// Packet is what the rules see of a packet that a guest sends.
type Packet struct {
	Src, Dst netip.Addr
	Proto    uint8
	Port     uint16 // destination, of TCP and UDP
	Resolved bool   // Dst is what an allowed domain resolved to a moment ago
}

// Decider answers what becomes of a packet under one policy. It is immutable.
type Decider struct {
	policy   kiln.EgressPolicy
	denied   ranges
	reserved ranges
	allowed  ranges
	ports    []uint16 // sorted; empty means every protocol and port
	allowAll bool
}

// compile translates a policy for a host on which reserved is always denied.
func compile(policy kiln.EgressPolicy, reserved ranges) (*Decider, error) {
	if err := policy.Validate(); err != nil {
		return nil, err
	}
	d := &Decider{policy: policy, reserved: reserved, allowAll: policy.EffectiveMode() == kiln.EgressAllowAll}
	var err error
	if d.denied, err = parseRanges(policy.DenyCIDRs); err != nil {
		return nil, err
	}
	if d.allowed, err = parseRanges(policy.AllowCIDRs); err != nil {
		return nil, err
	}
	for _, p := range policy.AllowPorts {
		d.ports = append(d.ports, uint16(p))
	}
	slices.Sort(d.ports)
	d.ports = slices.Compact(d.ports)
	return d, nil
}

// Decide returns whether p leaves the sandbox, or is answered by its gateway, and why.
func (d *Decider) Decide(p Packet) (bool, Reason) {
	switch {
	case !p.Src.Is4() || !p.Dst.Is4():
		return false, ReasonNotIPv4
	case p.Src != guestAddr:
		return false, ReasonSpoofed
	case p.Dst == gatewayAddr:
		return toGateway(p), ReasonGateway
	case d.denied.has(p.Dst):
		return false, ReasonDenied
	case d.reserved.has(p.Dst):
		return false, ReasonReserved
	case d.allowed.has(p.Dst) && d.allowsPort(p):
		return true, ReasonAllowed
	case p.Resolved:
		return true, ReasonResolved
	case d.allowAll:
		return true, ReasonAllowAll
	}
	return false, ReasonDenyAll
}

// toGateway reports whether the gateway itself answers: names and pings, nothing else.
func toGateway(p Packet) bool {
	return p.Proto == ProtoICMP || (p.Proto == ProtoTCP || p.Proto == ProtoUDP) && p.Port == dnsPort
}

func (d *Decider) allowsPort(p Packet) bool {
	if len(d.ports) == 0 {
		return true
	}
	_, found := slices.BinarySearch(d.ports, p.Port)
	return p.Proto == ProtoTCP && found
}

// onlyGateway reports whether nothing is let out but what the gateway answers, which is
// under every policy.
func (d *Decider) onlyGateway() bool {
	return !d.allowAll && len(d.allowed) == 0 && len(d.policy.AllowDomains) == 0
}

// resolvesAnything reports whether every name may be looked up: where nearly everything
// can be reached anyway, names are no tunnel. Under any other policy the names of allowed
// domains are the only ones.
func (d *Decider) resolvesAnything() bool { return d.allowAll || d.allowed.everything() }
