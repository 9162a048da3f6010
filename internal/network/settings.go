package network

import (
	"net/netip"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guestnet"
)

// Addresses and ports in every slot.
var (
	guestAddr   = guestnet.Guest()
	gatewayAddr = guestnet.Gateway()
)

const dnsPort = 53

// Names inside a slot's namespace.
const (
	tapName    = "tap0"
	uplinkName = "up0"
)

// DefaultSubnet is where the addresses of slots are taken from.
const DefaultSubnet = "10.208.0.0/12"

// DefaultReserved returns the ranges that no sandbox reaches unless the operator opens
// them: what is not public (RFC 6890), multicast and broadcast. Cloud metadata services
// (169.254.169.254) are among the link-local addresses.
func DefaultReserved() []string {
	return []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
	}
}

// Settings are the operator's.
type Settings struct {
	// Subnet holds the addresses of slots; it is split among the servers of this host.
	// "" means DefaultSubnet. It can be anything of at least 2^12 addresses that the
	// host has no other use for.
	Subnet string
	// Reserved is always denied; nil means DefaultReserved. The host's own addresses and
	// the subnet are always part of it.
	Reserved []string
	// Open is taken out of Reserved and of the host's own addresses, not of the subnet.
	Open []string
	// Default is what sandboxes may reach when neither they nor their template say it.
	Default kiln.EgressPolicy
	// Resolvers are asked for names, "address" or "address:port"; nil means those in the
	// host's /etc/resolv.conf.
	Resolvers []string
	// Prepared is how many slots are kept ready; 0 means 8.
	Prepared int
}

func (s *Settings) setDefaults() {
	if s.Subnet == "" {
		s.Subnet = DefaultSubnet
	}
	if len(s.Reserved) == 0 {
		s.Reserved = DefaultReserved()
	}
	if s.Prepared == 0 {
		s.Prepared = 8
	}
}

// Validate returns the first fault, naming the setting.
func (s Settings) Validate() error {
	s.setDefaults()
	if _, err := subnetOf(s.Subnet); err != nil {
		return err
	}
	for name, list := range map[string][]string{"reserved": s.Reserved, "open": s.Open} {
		if _, err := parseRanges(list); err != nil {
			return kiln.Errorf(kiln.CodeInvalid, "network.%s: %w", name, err)
		}
	}
	if s.Prepared < 1 || s.Prepared > maxPrepared {
		return kiln.Errorf(kiln.CodeInvalid, "network.prepared: %d is not between 1 and %d", s.Prepared, maxPrepared)
	}
	for _, r := range s.Resolvers {
		if _, err := resolverAddr(r); err != nil {
			return err
		}
	}
	if err := s.Default.Validate(); err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "network.egress: %w", err)
	}
	return nil
}

const maxPrepared = 256

// blockBits is the size of what one server gets of the subnet: at least 2^6 blocks.
const blockBits = 6

func subnetOf(s string) (netip.Prefix, error) {
	p, err := kiln.ParseEgressCIDR(s)
	if err != nil {
		return p, kiln.Errorf(kiln.CodeInvalid, "network.subnet: %w", err)
	}
	if p.Bits() > 20 {
		return p, kiln.Errorf(kiln.CodeInvalid, "network.subnet: %s is too small", p).WithHint("it needs a prefix of at most 20 bits")
	}
	return p, nil
}

func resolverAddr(s string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(addr, dnsPort), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return ap, kiln.Errorf(kiln.CodeInvalid, "network.resolvers: %q is no address", s).WithHint("write ADDRESS or ADDRESS:PORT")
	}
	return ap, nil
}

// plan is Settings ready for use.
type plan struct {
	block     netip.Prefix // addresses of this server's slots
	subnet    ranges       // of all servers' slots
	reserved  ranges       // without the host's own addresses
	open      ranges
	resolvers []netip.AddrPort
}

func (s Settings) plan(instance int) (plan, error) {
	subnet, err := subnetOf(s.Subnet)
	if err != nil {
		return plan{}, err
	}
	var p plan
	size := uint32(1) << (32 - subnet.Bits() - blockBits)
	p.block = netip.PrefixFrom(address(number(subnet.Addr())+uint32(instance)*size), subnet.Bits()+blockBits)
	p.subnet = rangesOf([]netip.Prefix{subnet})
	if p.reserved, err = parseRanges(s.Reserved); err != nil {
		return plan{}, err
	}
	if p.open, err = parseRanges(s.Open); err != nil {
		return plan{}, err
	}
	for _, r := range s.Resolvers {
		addr, err := resolverAddr(r)
		if err != nil {
			return plan{}, err
		}
		p.resolvers = append(p.resolvers, addr)
	}
	return p, nil
}

// slots returns how many slots the block has addresses for: two each, the first pair unused.
func (p plan) slots() int { return 1<<(31-p.block.Bits()) - 1 }

// addresses returns the two ends of a slot's link: the host's and the namespace's.
func (p plan) addresses(slot int) (host, inside netip.Addr) {
	base := number(p.block.Addr()) + uint32(slot+1)*2
	return address(base), address(base + 1)
}

// denied returns what is denied on a host that has these addresses.
func (p plan) denied(own []netip.Addr) ranges {
	var prefixes []netip.Prefix
	for _, a := range own {
		prefixes = append(prefixes, netip.PrefixFrom(a, 32))
	}
	return p.reserved.plus(rangesOf(prefixes)).minus(p.open).plus(p.subnet)
}
