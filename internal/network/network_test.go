package network_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/network/networktest"
	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func acquire(t testing.TB, pool *network.Pool, owner string, policy kiln.EgressPolicy) *network.Slot {
	t.Helper()
	slot, err := pool.Acquire(t.Context(), owner, policy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := slot.Release(); err != nil {
			t.Error(err)
		}
	})
	return slot
}

func set(t testing.TB, slot *network.Slot, policy kiln.EgressPolicy) {
	t.Helper()
	if err := slot.SetPolicy(policy); err != nil {
		t.Fatal(err)
	}
}

// serveEverywhere answers on every address and port of the table of precedence.
func serveEverywhere(t testing.TB, w *networktest.World) {
	for _, port := range []string{"80", "81"} {
		w.TCP(t, "0.0.0.0:"+port)
	}
	for _, port := range []string{"7", "80"} {
		w.UDP(t, networktest.PublicAddr+":"+port)
	}
	w.In(t, w.Host, func() error {
		l, err := net.Listen("tcp4", networktest.HostAddr+":80")
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
}

// The live rules give the same answers as the pure function.
func TestLivePrecedence(t *testing.T) {
	w := networktest.New(t)
	serveEverywhere(t, w)
	zone := w.DNS(t, 60)
	slot := acquire(t, w.Pool(t, network.Settings{Prepared: 1}), "a", kiln.EgressPolicy{})
	g := w.Guest(t, slot.Config())
	sink := w.Sink(t)
	for _, c := range network.Cases() {
		set(t, slot, c.Policy)
		sink.Take()
		if c.Resolved {
			host, _, _ := net.SplitHostPort(c.Addr)
			zone.Set("service.example", host)
			if reply := ask(t, g, "service.example", dns.TypeA); len(reply.Answer) != 1 {
				t.Errorf("%s: the name did not resolve: %v", c.Name, reply)
			}
		}
		if got := g.Reaches(c.Network, c.Addr); got != c.Allow {
			t.Errorf("%s: %s %s under %v: reached is %v", c.Name, c.Network, c.Addr, c.Policy, got)
		}
		// Words of parting of the case before may still be on their way; they begin nothing.
		left := slices.DeleteFunc(sink.Take(), func(f string) bool {
			return !strings.Contains(f, "to "+strings.Split(c.Addr, ":")[0]+" ") || strings.Contains(f, ", 54 bytes") || strings.Contains(f, ", 66 bytes")
		})
		if !c.Allow && len(left) > 0 {
			t.Errorf("%s: left the host: %q", c.Name, left)
		}
	}
}

func ask(t testing.TB, g *networktest.Guest, name string, kind uint16) *dns.Msg {
	t.Helper()
	reply, err := g.Ask("udp", name, kind)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return reply
}

// A change of the policy keeps what stays allowed and cuts the rest.
func TestChangeOnALivingConnection(t *testing.T) {
	w := networktest.New(t)
	w.TCP(t, "0.0.0.0:80")
	w.DNS(t, 60).Set("service.example", networktest.PublicAddr2)
	slot := acquire(t, w.Pool(t, network.Settings{Prepared: 1}), "a", kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr}, AllowDomains: []string{"service.example"}})
	g := w.Guest(t, slot.Config())
	ask(t, g, "service.example", dns.TypeA)
	kept, named := open(t, g, networktest.PublicAddr+":80"), open(t, g, networktest.PublicAddr2+":80")

	set(t, slot, kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr + "/31"}, AllowDomains: []string{"*.example", "service.example"}})
	kept.alive(t, true)
	named.alive(t, true)
	set(t, slot, kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr}})
	kept.alive(t, true)
	named.alive(t, false)
	set(t, slot, kiln.EgressPolicy{Mode: kiln.EgressAllowAll, DenyCIDRs: []string{networktest.PublicAddr}})
	kept.alive(t, false)
	if g.Reaches("tcp", networktest.PublicAddr+":80") || !g.Reaches("tcp", networktest.PublicAddr2+":80") {
		t.Error("the new policy is not in force for new connections")
	}
}

type stream struct {
	net.Conn
	read *bufio.Reader
}

func open(t testing.TB, g *networktest.Guest, addr string) *stream {
	t.Helper()
	c, err := g.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s := &stream{c, bufio.NewReader(c)}
	if line, err := s.read.ReadString('\n'); err != nil || line != networktest.Greeting {
		t.Fatalf("%s: %q, %v", addr, line, err)
	}
	return s
}

func (s *stream) alive(t testing.TB, want bool) {
	t.Helper()
	patience := 5 * time.Second
	if !want {
		patience = 300 * time.Millisecond
	}
	_ = s.SetDeadline(time.Now().Add(patience))
	_, werr := io.WriteString(s, "still there?\n")
	line, err := s.read.ReadString('\n')
	if got := werr == nil && err == nil && line == "still there?\n"; got != want {
		t.Errorf("the connection to %v lives: %v (%q, %v, %v)", s.RemoteAddr(), got, line, werr, err)
	}
}

func TestNames(t *testing.T) {
	w := networktest.New(t)
	w.TCP(t, "0.0.0.0:80")
	zone := w.DNS(t, 1)
	zone.Set("service.example", networktest.PublicAddr)
	zone.Set("a.b.wild.example", networktest.PublicAddr2)
	zone.Set("inside.wild.example", networktest.PrivateAddr)
	slot := acquire(t, w.Pool(t, network.Settings{Prepared: 1}), "a", kiln.EgressPolicy{AllowDomains: []string{"service.example", "*.wild.example"}})
	g := w.Guest(t, slot.Config())

	if g.Reaches("tcp", networktest.PublicAddr+":80") {
		t.Error("an address is reached before its name was resolved")
	}
	reply := ask(t, g, "Service.Example", dns.TypeA)
	if len(reply.Answer) != 1 || reply.Answer[0].Header().Ttl != 5 {
		t.Errorf("answer %v, want one address for 5 seconds, the shortest time", reply)
	}
	held := open(t, g, networktest.PublicAddr+":80")
	ask(t, g, "a.b.wild.example", dns.TypeA)
	if !g.Reaches("tcp", networktest.PublicAddr2+":80") {
		t.Error("what a wildcard allows is not reached")
	}
	ask(t, g, "inside.wild.example", dns.TypeA)
	if g.Reaches("tcp", networktest.PrivateAddr+":80") {
		t.Error("a name led to a private address")
	}
	if reply := ask(t, g, "service.example", dns.TypeAAAA); reply.Rcode != dns.RcodeSuccess || len(reply.Answer) != 0 {
		t.Errorf("IPv6 addresses: %v", reply)
	}
	if tcp, err := g.Ask("tcp", "service.example", dns.TypeA); err != nil || len(tcp.Answer) != 1 {
		t.Errorf("over TCP: %v, %v", tcp, err)
	}

	before := zone.Questions()
	for _, name := range []string{"wild.example", "other.example", "c2VjcmV0.tunnel.example", "service.example.evil.org"} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeTXT, dns.TypeANY, dns.TypeNULL} {
			reply := ask(t, g, name, kind)
			if reply.Rcode != dns.RcodeRefused || reply.IsEdns0() == nil || !strings.Contains(reply.String(), "egress policy") {
				t.Errorf("%s: %v", name, reply)
			}
		}
	}
	if after := zone.Questions(); !slices.Equal(before, after) {
		t.Errorf("asked outside: %q", after[len(before):])
	}

	// The time that an address is allowed ends; a connection that was made in it goes on.
	deadline := time.Now().Add(15 * time.Second)
	for g.Reaches("tcp", networktest.PublicAddr+":80") && time.Now().Before(deadline) {
		time.Sleep(200 * time.Millisecond) // the event is time itself
	}
	if time.Now().After(deadline) {
		t.Error("a resolved address stays allowed for ever")
	}
	held.alive(t, true)
}

// Under a policy that allows nearly everything names are resolved as usual.
func TestNamesUnderOpenPolicies(t *testing.T) {
	w := networktest.New(t)
	zone := w.DNS(t, 60)
	zone.Set("service.example", networktest.PublicAddr)
	slot := acquire(t, w.Pool(t, network.Settings{Prepared: 1}), "a", kiln.EgressPolicy{})
	g := w.Guest(t, slot.Config())
	for _, p := range []struct {
		policy kiln.EgressPolicy
		rcode  int
	}{
		{kiln.EgressPolicy{}, dns.RcodeSuccess},
		{kiln.EgressPolicy{Mode: kiln.EgressDenyAll, AllowCIDRs: []string{"0.0.0.0/0"}, DenyCIDRs: []string{"203.0.113.0/24"}}, dns.RcodeSuccess},
		{kiln.EgressPolicy{AllowCIDRs: []string{"198.51.100.0/24"}}, dns.RcodeRefused},
		{kiln.EgressPolicy{Mode: kiln.EgressDenyAll}, dns.RcodeRefused},
	} {
		set(t, slot, p.policy)
		if reply := ask(t, g, "service.example", dns.TypeA); reply.Rcode != p.rcode {
			t.Errorf("%v: %s", p.policy, dns.RcodeToString[reply.Rcode])
		}
	}
	if reply := ask(t, g, "missing.example", dns.TypeA); reply.Rcode != dns.RcodeRefused {
		t.Errorf("missing name under deny_all: %v", reply)
	}
}

func TestAccounts(t *testing.T) {
	w := networktest.New(t)
	w.TCP(t, "0.0.0.0:80")
	slot := acquire(t, w.Pool(t, network.Settings{Prepared: 1}), "a", kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr}})
	g := w.Guest(t, slot.Config())
	if !g.Reaches("tcp", networktest.PublicAddr+":80") {
		t.Fatal("nothing is reached")
	}
	for range 3 {
		g.Reaches("tcp", networktest.PublicAddr2+":443")
	}
	g.Reaches("udp", networktest.MetadataAddr+":80")
	ask(t, g, "tunnel.example", dns.TypeTXT)
	use, err := slot.Use()
	if err != nil {
		t.Fatal(err)
	}
	if use.SentBytes < 100 || use.ReceivedBytes < 100 || use.RefusedPackets < 4 || use.RefusedNames != 1 {
		t.Errorf("use: %+v", use)
	}
	denials, err := slot.Denials()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, d := range denials {
		got[fmt.Sprintf("%s %s %d", d.Protocol, d.Destination, d.Port)] = fmt.Sprintf("%s %v", d.Reason, d.Attempts >= 1)
		if age := time.Since(d.LastAt); age < -time.Second || age > time.Minute {
			t.Errorf("%+v was %v ago", d, age)
		}
	}
	want := map[string]string{
		"tcp " + networktest.PublicAddr2 + " 443": "deny_all true", "udp " + networktest.MetadataAddr + " 80": "reserved true", "dns tunnel.example 0": "deny_all true",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("deny log %v, want %v", got, want)
	}
	set(t, slot, kiln.EgressPolicy{})
	if after, err := slot.Use(); err != nil || after.SentBytes < use.SentBytes || after.RefusedPackets < use.RefusedPackets {
		t.Errorf("a change of the policy lost counts: %+v, then %+v, %v", use, after, err)
	}
}

// A slot that is used again has nothing of its last owner.
func TestReuse(t *testing.T) {
	w := networktest.New(t)
	w.TCP(t, "0.0.0.0:80")
	w.DNS(t, 3600).Set("service.example", networktest.PublicAddr)
	pool := w.Pool(t, network.Settings{Prepared: 1})
	policy := kiln.EgressPolicy{AllowDomains: []string{"service.example"}}
	names := map[string]bool{}
	for i := range 40 {
		slot, err := pool.Acquire(t.Context(), fmt.Sprint("owner", i), policy)
		if err != nil {
			t.Fatal(err)
		}
		names[slot.Config().Namespace] = true
		if i%10 == 0 {
			g := w.Guest(t, slot.Config())
			if g.Reaches("tcp", networktest.PublicAddr+":80") {
				t.Error("what the last owner resolved is still allowed")
			}
			ask(t, g, "other.example", dns.TypeA)
			ask(t, g, "service.example", dns.TypeA)
			held := open(t, g, networktest.PublicAddr+":80")
			if err := slot.Release(); err != nil {
				t.Fatal(err)
			}
			held.alive(t, false)
			g.Detach()
		}
		for range 2 { // it may be repeated
			if err := slot.Release(); err != nil {
				t.Fatal(err)
			}
		}
		if err := slot.SetPolicy(kiln.EgressPolicy{}); kiln.CodeOf(err) != kiln.CodeConflict {
			t.Errorf("a slot that was given back takes a policy: %v", err)
		}
	}
	if len(names) > 4 {
		t.Errorf("40 owners, one at a time, used %d namespaces", len(names))
	}
}

// What a server that was killed left, its successor takes away.
func TestReconcile(t *testing.T) {
	w := networktest.New(t)
	opts := w.Options(t, network.Settings{Prepared: 2})
	first, err := network.New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Acquire(t.Context(), "lost", kiln.EgressPolicy{}); err != nil {
		t.Fatal(err)
	}
	first.Crash()
	second, err := network.New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	slot, err := second.Acquire(t.Context(), "next", kiln.EgressPolicy{})
	if err != nil {
		t.Fatal(err)
	}
	owners, err := opts.Store.NetworkSlots(context.Background(), "local")
	if err != nil {
		t.Fatal(err)
	}
	for n, owner := range owners {
		if owner == "lost" {
			t.Errorf("slot %d still belongs to who is gone", n)
		}
	}
	w.TCP(t, networktest.PublicAddr+":80")
	if !w.Guest(t, slot.Config()).Reaches("tcp", networktest.PublicAddr+":80") {
		t.Error("nothing is reached after the crash")
	}
}

// traces counts what slots leave in the kernel.
type traces struct {
	hostRules         string
	links, namespaces int
}

func tracesOf(t *testing.T, w *networktest.World, pool *network.Pool) traces {
	t.Helper()
	tr := traces{hostRules: w.HostRules(t)}
	w.In(t, w.Host, func() error {
		links, err := network.Links()
		tr.links = len(links)
		return err
	})
	// Of this pool's number: other servers of the machine have names of their own.
	names, err := filepath.Glob(pool.NamespaceGlob())
	if err != nil {
		t.Fatal(err)
	}
	tr.namespaces = len(names)
	return tr
}

// The rules of the host do not grow with sandboxes, what there is of slots is used again,
// and nothing is left of them (hazard 42).
func TestHazard42RulesDoNotGrow(t *testing.T) {
	w := networktest.New(t)
	pool, err := network.New(t.Context(), w.Options(t, network.Settings{Prepared: 4}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // again, after a failure
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
	})
	policies := []kiln.EgressPolicy{
		{AllowCIDRs: []string{"198.51.100.0/24"}, DenyCIDRs: []string{"198.51.100.7"}}, {Mode: kiln.EgressAllowAll}, {AllowDomains: []string{"service.example"}},
	}
	var first traces
	var rules map[string]string // of a namespace, when it was given back first
	const sandboxes, atOnce = 500, 10
	for i := 0; i < testkit.Rounds(sandboxes, 10*sandboxes); i += atOnce {
		var slots []*network.Slot
		for j := range atOnce {
			slot, err := pool.Acquire(t.Context(), fmt.Sprint("s", i, "-", j), policies[j%len(policies)])
			if err != nil {
				t.Fatal(err)
			}
			slots = append(slots, slot)
		}
		now := tracesOf(t, w, pool)
		for _, s := range slots {
			if err := s.Release(); err != nil {
				t.Fatal(err)
			}
		}
		pool.Settle()
		switch {
		case i == 10*atOnce: // by now there are as many as there will be
			first, rules = tracesOf(t, w, pool), map[string]string{}
			for _, s := range slots {
				rules[s.Config().Namespace] = rulesOf(t, w, s)
			}
		case i > 10*atOnce && now.hostRules != first.hostRules:
			t.Fatalf("the host's rules changed:\n%s\nbefore:\n%s", now.hostRules, first.hostRules)
		case i > 10*atOnce && (now.links > first.links || now.namespaces > first.namespaces):
			t.Fatalf("after %d sandboxes there are %d links and %d namespaces, before %d and %d", i, now.links, now.namespaces, first.links, first.namespaces)
		}
		if i > 10*atOnce && i%100 == 0 {
			for _, s := range slots {
				if before, known := rules[s.Config().Namespace]; known && rulesOf(t, w, s) != before {
					t.Fatalf("the rules of a free slot changed:\n%s\nbefore:\n%s", rulesOf(t, w, s), before)
				}
			}
		}
	}
	if n := pool.Counts(); n.Used != 0 || n.Free > 16 {
		t.Errorf("there are %+v slots, of which none is in use", n)
	}
	if err := pool.Close(); err != nil {
		t.Fatal(err)
	}
	if after := tracesOf(t, w, pool); after.hostRules != "" || after.namespaces != 0 || after.links != 2 { // lo and the way outside
		t.Errorf("left behind: %+v", after)
	}
}

func rulesOf(t *testing.T, w *networktest.World, s *network.Slot) string {
	t.Helper()
	ns, err := netns.GetFromPath(s.Config().Namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return w.Rules(t, ns)
}

// The smallest network has addresses for 31 slots, and that is enough for any number of
// sandboxes, one after the other.
func TestAddressesDoNotRunOut(t *testing.T) {
	w := networktest.New(t)
	pool := w.Pool(t, network.Settings{Prepared: 1, Subnet: "10.64.0.0/20"})
	limit := pool.Counts().Limit
	if limit != 31 {
		t.Fatalf("there are %d slots at most", limit)
	}
	var slots []*network.Slot
	used := map[netip.Addr]bool{}
	for len(slots) < limit {
		slot, err := pool.Acquire(t.Context(), fmt.Sprint("s", len(slots)), kiln.EgressPolicy{})
		if kiln.CodeOf(err) == kiln.CodeExhausted {
			pool.Settle() // one was being prepared under the last number
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		used[slot.Address()] = true
		slots = append(slots, slot)
	}
	if len(used) != limit {
		t.Errorf("%d slots have %d addresses", limit, len(used))
	}
	if _, err := pool.Acquire(t.Context(), "one too many", kiln.EgressPolicy{}); kiln.CodeOf(err) != kiln.CodeExhausted || !strings.Contains(err.Error(), "31 network slots") {
		t.Errorf("one too many: %v", err)
	}
	for _, s := range slots {
		if err := s.Release(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range testkit.Rounds(200, 20_000) {
		slot, err := pool.Acquire(t.Context(), fmt.Sprint("again", i), kiln.EgressPolicy{})
		if err != nil {
			t.Fatalf("after %d: %v", i, err)
		}
		if !used[slot.Address()] {
			t.Fatalf("an address that was never handed out: %s", slot.Address())
		}
		if err := slot.Release(); err != nil {
			t.Fatal(err)
		}
	}
}
