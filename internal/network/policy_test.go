package network

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/kilnvm/kiln"
)

// decision is one line of the table of precedence. The same table is asked of the pure
// function here and of live rules in live_test.go.
type decision struct {
	name   string
	policy kiln.EgressPolicy
	packet Packet
	allow  bool
	reason Reason
}

// Addresses of the tests' world.
var (
	public, public2   = netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("203.0.113.20")
	private, metadata = netip.MustParseAddr("10.99.0.5"), netip.MustParseAddr("169.254.169.254")
	hostAddr          = netip.MustParseAddr("192.0.2.1")
)

func tcp(dst netip.Addr, port uint16) Packet {
	return Packet{Src: guestAddr, Dst: dst, Proto: ProtoTCP, Port: port}
}

func udp(dst netip.Addr, port uint16) Packet {
	return Packet{Src: guestAddr, Dst: dst, Proto: ProtoUDP, Port: port}
}

// Decisions is the table of precedence.
func decisions() []decision {
	var (
		all      = kiln.EgressPolicy{Mode: kiln.EgressAllowAll}
		none     = kiln.EgressPolicy{Mode: kiln.EgressDenyAll}
		everyone = kiln.EgressPolicy{AllowCIDRs: []string{"0.0.0.0/0"}}
		one      = kiln.EgressPolicy{AllowCIDRs: []string{"198.51.100.0/24"}}
		web      = kiln.EgressPolicy{AllowCIDRs: []string{"198.51.100.0/24"}, AllowPorts: []int{80}}
		but      = kiln.EgressPolicy{AllowCIDRs: []string{"198.51.100.0/24"}, DenyCIDRs: []string{"198.51.100.10"}}
		allBut   = kiln.EgressPolicy{Mode: kiln.EgressAllowAll, DenyCIDRs: []string{"198.51.100.0/24"}}
		domain   = kiln.EgressPolicy{AllowDomains: []string{"service.example"}}
	)
	resolved := func(p Packet) Packet { p.Resolved = true; return p }
	return []decision{
		{"everything public", all, tcp(public, 80), true, ReasonAllowAll},
		{"nothing", none, tcp(public, 80), false, ReasonDenyAll},
		{"datagrams", all, udp(public, 7), true, ReasonAllowAll},
		{"no datagrams", none, udp(public, 7), false, ReasonDenyAll},
		{"an allowed range", one, tcp(public, 80), true, ReasonAllowed},
		{"beside the allowed range", one, tcp(public2, 80), false, ReasonDenyAll},
		{"any protocol of an allowed range", one, udp(public, 7), true, ReasonAllowed},
		{"an allowed port", web, tcp(public, 80), true, ReasonAllowed},
		{"another port", web, tcp(public, 81), false, ReasonDenyAll},
		{"ports are those of TCP", web, udp(public, 80), false, ReasonDenyAll},
		{"denied wins over allowed", but, tcp(public, 80), false, ReasonDenied},
		{"denied wins over the mode", allBut, tcp(public, 80), false, ReasonDenied},
		{"beside the denied range", allBut, tcp(public2, 80), true, ReasonAllowAll},
		{"private", all, tcp(private, 80), false, ReasonReserved},
		{"private, though allowed", everyone, tcp(private, 80), false, ReasonReserved},
		{"metadata", all, tcp(metadata, 80), false, ReasonReserved},
		{"the host", all, tcp(hostAddr, 80), false, ReasonReserved},
		{"a resolved address", domain, resolved(tcp(public, 80)), true, ReasonResolved},
		{"an address that was not resolved", domain, tcp(public2, 80), false, ReasonDenyAll},
		{"private, though resolved", domain, resolved(tcp(private, 80)), false, ReasonReserved},
	}
}

func testReserved(t testing.TB) ranges {
	t.Helper()
	p, err := Settings{Subnet: DefaultSubnet, Reserved: DefaultReserved()}.plan(0)
	if err != nil {
		t.Fatal(err)
	}
	return p.denied([]netip.Addr{hostAddr})
}

func TestPrecedence(t *testing.T) {
	reserved := testReserved(t)
	for _, c := range decisions() {
		d, err := compile(c.policy, reserved)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if allow, reason := d.Decide(c.packet); allow != c.allow || reason != c.reason {
			t.Errorf("%s: %v because of %s, want %v because of %s", c.name, allow, reason, c.allow, c.reason)
		}
	}
	d, err := compile(kiln.EgressPolicy{}, reserved)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		packet Packet
		allow  bool
		reason Reason
	}{
		"IPv6":          {Packet{Src: netip.MustParseAddr("2001:db8::1"), Dst: netip.MustParseAddr("2001:db8::2")}, false, ReasonNotIPv4},
		"forged sender": {Packet{Src: public2, Dst: public, Proto: ProtoUDP, Port: 7}, false, ReasonSpoofed},
		"resolver":      {udp(gatewayAddr, 53), true, ReasonGateway},
		"the gateway":   {tcp(gatewayAddr, 22), false, ReasonGateway},
	} {
		if allow, reason := d.Decide(c.packet); allow != c.allow || reason != c.reason {
			t.Errorf("%s: %v because of %s", name, allow, reason)
		}
	}
}

func TestOpenedRanges(t *testing.T) {
	p, err := Settings{Subnet: DefaultSubnet, Reserved: DefaultReserved(), Open: []string{"10.99.0.0/16", "192.0.2.1", DefaultSubnet}}.plan(3)
	if err != nil {
		t.Fatal(err)
	}
	denied := p.denied([]netip.Addr{hostAddr})
	for text, want := range map[string]bool{
		"10.99.0.5": false, "10.98.255.255": true, "10.100.0.0": true, "192.0.2.1": false,
		"10.208.0.1": true, "10.223.255.255": true, // other sandboxes cannot be opened
		"169.254.169.254": true, "198.51.100.10": false, "255.255.255.255": true, "0.0.0.0": true,
	} {
		if denied.has(netip.MustParseAddr(text)) != want {
			t.Errorf("%s: denied is %v", text, !want)
		}
	}
}

func TestRanges(t *testing.T) {
	parse := func(cidrs ...string) ranges {
		r, err := parseRanges(cidrs)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for name, c := range map[string]struct{ got, want ranges }{
		"neighbours join":  {parse("10.0.0.0/25", "10.0.0.128/25"), parse("10.0.0.0/24")},
		"inner ones go":    {parse("10.0.0.0/8", "10.1.2.3", "10.0.0.0/24"), parse("10.0.0.0/8")},
		"host bits":        {parse("10.9.8.7/8"), parse("10.0.0.0/8")},
		"all of it":        {parse("0.0.0.0/1", "128.0.0.0/1"), parse("0.0.0.0/0")},
		"minus the middle": {parse("10.0.0.0/30").minus(parse("10.0.0.1")), ranges{{0x0a000000, 0x0a000000}, {0x0a000002, 0x0a000003}}},
		"minus the end":    {parse("255.0.0.0/8").minus(parse("255.255.255.255")), ranges{{0xff000000, 0xfffffffe}}},
		"minus itself":     {parse("0.0.0.0/0").minus(parse("0.0.0.0/0")), nil},
		"minus more":       {parse("10.0.0.0/24", "10.0.2.0/24").minus(parse("10.0.0.128/25", "10.0.1.0/24", "10.0.2.0/25")), parse("10.0.0.0/25", "10.0.2.128/25")},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
	if !parse("0.0.0.0/0").everything() || parse("0.0.0.0/1").everything() {
		t.Error("everything is all of IPv4 and nothing less")
	}
}

func TestSettingsFaults(t *testing.T) {
	for name, s := range map[string]Settings{
		"subnet":       {Subnet: "x"},
		"small subnet": {Subnet: "10.0.0.0/24"},
		"reserved":     {Reserved: []string{"2001:db8::/32"}},
		"open":         {Open: []string{"10.0.0.0/40"}},
		"resolver":     {Resolvers: []string{"dns.example"}},
		"prepared":     {Prepared: -1},
		"default":      {Default: kiln.EgressPolicy{Mode: "closed"}},
	} {
		if err := s.Validate(); kiln.CodeOf(err) != kiln.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (Settings{}).Validate(); err != nil {
		t.Error(err)
	}
}

// Two servers of a host never share a number; one that crashed gets its own back.
func TestInstances(t *testing.T) {
	run := t.TempDir()
	reserveAs := func(dir string) *instance {
		t.Helper()
		in, err := reserve(run, dir)
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	a, b := reserveAs("/a"), reserveAs("/b")
	if a.number == b.number || a.crashed || b.crashed {
		t.Fatalf("a has %d, b has %d", a.number, b.number)
	}
	crash := func(in *instance) { in.file.Close() } // the kernel gives the lock back
	crash(a)
	if c := reserveAs("/c"); c.number == a.number || c.number == b.number {
		t.Errorf("c has %d, which another may still use", c.number)
	}
	again := reserveAs("/a")
	if again.number != a.number || !again.crashed {
		t.Errorf("a has %d after its crash (%v), before %d", again.number, again.crashed, a.number)
	}
	if err := b.giveBack(); err != nil {
		t.Fatal(err)
	}
	if d := reserveAs("/d"); d.number != b.number {
		t.Errorf("d has %d, though %d is free", d.number, b.number)
	}
}
