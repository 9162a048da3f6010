package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"
)

// Bounds of a resolver.
const (
	lookupTimeout = 5 * time.Second // of one question to one upstream resolver
	maxLookups    = 64              // at once, per slot
	maxNames      = 4096            // remembered per slot
	// An address must stay allowed long enough to be connected to, whatever its name's
	// time to live, and no answer is believed for longer than an hour. The guest is told
	// the same times.
	minTTL, maxTTL = 5 * time.Second, time.Hour
)

// resolver answers the guest's questions for names on the gateway's address, UDP and TCP.
// What the policy does not let it look up never leaves the host.
type resolver struct {
	slot    *Slot
	servers []*dns.Server
	serving sync.WaitGroup
	lookups chan struct{}

	mu       sync.Mutex
	resolved map[netip.Addr][]string // which allowed names resolved to it
	refused  map[string]*refusedName
	refusals uint64
}

type refusedName struct {
	attempts uint64
	last     time.Time
}

// listen starts the slot's resolver.
func listen(s *Slot) (*resolver, error) {
	r := &resolver{slot: s, lookups: make(chan struct{}, maxLookups)}
	r.forget()
	at := netip.AddrPortFrom(gatewayAddr, dnsPort)
	err := inside(s.ns, func() error {
		udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		tcp, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
		if err != nil {
			return errors.Join(err, udp.Close())
		}
		handler := dns.HandlerFunc(r.serve)
		r.servers = []*dns.Server{
			{PacketConn: udp, Handler: handler, UDPSize: dns.DefaultMsgSize},
			{Listener: tcp, Handler: handler, MaxTCPQueries: maxLookups},
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	for _, server := range r.servers {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		r.serving.Go(func() {
			if err := server.ActivateAndServe(); err != nil {
				s.pool.log.Error("resolver ended", "slot", s.devices.namespace, "error", err)
			}
		})
		<-started
	}
	return r, nil
}

func (r *resolver) close() {
	for _, server := range r.servers {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = server.ShutdownContext(ctx) // whoever still asks has no guest any more
		cancel()
	}
	r.serving.Wait()
}

// serve answers one question.
func (r *resolver) serve(w dns.ResponseWriter, query *dns.Msg) {
	reply := r.answer(query)
	size := dns.MinMsgSize
	if w.LocalAddr().Network() == "tcp" {
		size = dns.MaxMsgSize
	} else if o := query.IsEdns0(); o != nil {
		size = max(size, int(o.UDPSize()))
	}
	reply.Truncate(size)
	_ = w.WriteMsg(reply) // the guest asks again
}

func (r *resolver) answer(query *dns.Msg) *dns.Msg {
	if query.Opcode != dns.OpcodeQuery || len(query.Question) != 1 || query.Question[0].Qclass != dns.ClassINET {
		return new(dns.Msg).SetRcode(query, dns.RcodeNotImplemented)
	}
	q := query.Question[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	d := r.slot.current()
	named := d.policy.AllowsDomain(name)
	if !named && !d.resolvesAnything() {
		r.refuse(name)
		return prohibited(query)
	}
	switch {
	case q.Qtype == dns.TypeANY, q.Qtype == dns.TypeAXFR, q.Qtype == dns.TypeIXFR:
		return new(dns.Msg).SetRcode(query, dns.RcodeNotImplemented)
	case q.Qtype == dns.TypeAAAA, named && (q.Qtype == dns.TypeHTTPS || q.Qtype == dns.TypeSVCB):
		return new(dns.Msg).SetReply(query) // there is no IPv6, and hints in other records would not be allowed
	}
	select {
	case r.lookups <- struct{}{}:
		defer func() { <-r.lookups }()
	default:
		return new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
	}
	found, err := r.lookup(q)
	if err != nil {
		r.slot.pool.log.Debug("name look-up", "slot", r.slot.devices.namespace, "name", name, "error", err)
		return new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
	}
	reply := new(dns.Msg).SetRcode(query, found.Rcode)
	reply.RecursionAvailable = true
	reply.Answer, reply.Ns = found.Answer, found.Ns
	if named {
		if err := r.allow(d, name, reply.Answer); err != nil {
			r.slot.pool.log.Error("allow a resolved address", "slot", r.slot.devices.namespace, "name", name, "error", err)
			return new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
		}
	}
	return reply
}

// prohibited refuses and says why (RFC 8914).
func prohibited(query *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetRcode(query, dns.RcodeRefused)
	if query.IsEdns0() != nil {
		reply.SetEdns0(dns.DefaultMsgSize, false)
		reply.IsEdns0().Option = append(reply.IsEdns0().Option,
			&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeProhibited, ExtraText: "not allowed by the sandbox's egress policy"})
	}
	return reply
}

// allow lets the guest reach the addresses in an answer, before it has the answer.
func (r *resolver) allow(d *Decider, name string, answer []dns.RR) error {
	addrs := map[netip.Addr]time.Duration{}
	for _, rr := range answer {
		ttl := min(max(time.Duration(rr.Header().Ttl)*time.Second, minTTL), maxTTL)
		rr.Header().Ttl = uint32(ttl / time.Second)
		if a, ok := rr.(*dns.A); ok {
			if addr, ok := netip.AddrFromSlice(a.A.To4()); ok {
				addrs[addr] = ttl
			}
		}
	}
	r.mu.Lock()
	for addr := range addrs {
		if len(r.resolved) < maxNames && !slices.Contains(r.resolved[addr], name) {
			r.resolved[addr] = append(r.resolved[addr], name)
		}
	}
	r.mu.Unlock()
	return r.slot.allowResolved(d, addrs)
}

// lookup asks the upstream resolvers in their order.
func (r *resolver) lookup(q dns.Question) (*dns.Msg, error) {
	upstreams, err := r.slot.pool.resolvers()
	if err != nil {
		return nil, err
	}
	query := new(dns.Msg).SetQuestion(q.Name, q.Qtype)
	query.SetEdns0(dns.DefaultMsgSize, false)
	err = errors.New("no resolver is configured")
	for _, upstream := range upstreams {
		var reply *dns.Msg
		if reply, err = exchange(r.slot.pool.host, "udp", upstream, query); err == nil && reply.Truncated {
			reply, err = exchange(r.slot.pool.host, "tcp", upstream, query)
		}
		if err == nil {
			return reply, nil
		}
	}
	return nil, err
}

// exchange asks one resolver from the host's namespace.
func exchange(host netns.NsHandle, network string, upstream netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	var conn *dns.Conn
	client := dns.Client{Net: network, Timeout: lookupTimeout}
	err := inside(host, func() (err error) {
		conn, err = client.DialContext(ctx, upstream.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	reply, _, err := client.ExchangeWithConnContext(ctx, query, conn)
	return reply, err
}

// resolvers returns the addresses of the upstream resolvers.
func (p *Pool) resolvers() ([]netip.AddrPort, error) {
	if len(p.plan.resolvers) > 0 {
		return p.plan.resolvers, nil
	}
	conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return nil, err
	}
	var list []netip.AddrPort
	for _, s := range conf.Servers {
		if addr, err := netip.ParseAddr(s); err == nil {
			list = append(list, netip.AddrPortFrom(addr, dnsPort))
		}
	}
	return list, nil
}

func (r *resolver) refuse(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusals++
	n := r.refused[name]
	if n == nil {
		if len(r.refused) >= maxRefusals {
			return
		}
		n = &refusedName{}
		r.refused[name] = n
	}
	n.attempts, n.last = n.attempts+1, time.Now()
}

// forget makes the resolver that of another owner.
func (r *resolver) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resolved, r.refused, r.refusals = map[netip.Addr][]string{}, map[string]*refusedName{}, 0
}

// keepOnly forgets names that d does not allow and returns the addresses that have none left.
func (r *resolver) keepOnly(d *Decider) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	var gone []netip.Addr
	for addr, names := range r.resolved {
		names = slices.DeleteFunc(names, func(n string) bool { return !d.policy.AllowsDomain(n) })
		r.resolved[addr] = names
		if len(names) == 0 {
			delete(r.resolved, addr)
			gone = append(gone, addr)
		}
	}
	return gone
}

// everResolved reports whether an allowed name resolved to addr since the slot was lent.
func (r *resolver) everResolved(addr netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.resolved[addr]) > 0
}
