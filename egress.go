package kiln

import (
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// EgressMode says what happens to traffic that no rule of a policy names.
type EgressMode string

const (
	EgressAllowAll EgressMode = "allow_all" // it leaves, unless the operator denies it
	EgressDenyAll  EgressMode = "deny_all"  // it is dropped
)

// Bounds of a policy, so that its rules stay quick to apply and to match.
const (
	MaxEgressCIDRs   = 16384 // allowed and denied ones together
	MaxEgressPorts   = 1024
	MaxEgressDomains = 1024
)

// EgressPolicy says what a sandbox may reach. A policy is partial: what a sandbox does not
// say its template says, and what neither says the cluster's setting says; see
// [EgressPolicy.Over]. The zero value says nothing.
//
// Denied CIDRs win over everything that is allowed. Everything but IPv4 is always denied,
// and so are the ranges that the operator has not opened; both are no part of a policy.
type EgressPolicy struct {
	// Mode is empty when the policy leaves it to others. Allowing a CIDR or a domain
	// implies deny_all, because it would mean nothing otherwise.
	Mode EgressMode `json:"mode,omitempty"`
	// AllowCIDRs are IPv4 prefixes ("203.0.113.0/24") or single addresses.
	AllowCIDRs []string `json:"allow_cidrs,omitzero"`
	// DenyCIDRs are written like AllowCIDRs. An empty list that is not nil takes back
	// what the template denies.
	DenyCIDRs []string `json:"deny_cidrs,omitzero"`
	// AllowPorts restricts AllowCIDRs to TCP with these destination ports. It does not
	// concern AllowDomains.
	AllowPorts []int `json:"allow_ports,omitzero"`
	// AllowDomains are host names, "example.com", or "*.example.com" for all names below
	// it but not itself. The addresses to which a name resolves can be reached for as
	// long as the answer is valid.
	AllowDomains []string `json:"allow_domains,omitzero"`
}

// IsZero reports whether the policy says nothing at all.
func (p EgressPolicy) IsZero() bool { return !p.saysReach() && p.DenyCIDRs == nil }

// saysReach reports whether the policy says what may be reached, denied CIDRs apart.
func (p EgressPolicy) saysReach() bool {
	return p.Mode != "" || p.AllowCIDRs != nil || p.AllowPorts != nil || p.AllowDomains != nil
}

// Over returns p where it says something, and base where it does not. Mode and the allowed
// CIDRs, ports and domains belong together and are taken from one of the two; so is the
// list of denied CIDRs. A sandbox's policy is
//
//	sandbox.Over(template).Over(cluster)
func (p EgressPolicy) Over(base EgressPolicy) EgressPolicy {
	merged := p
	if !p.saysReach() {
		merged = base
		merged.DenyCIDRs = p.DenyCIDRs
	}
	if p.DenyCIDRs == nil {
		merged.DenyCIDRs = base.DenyCIDRs
	}
	return merged.clone()
}

func (p EgressPolicy) clone() EgressPolicy {
	p.AllowCIDRs, p.DenyCIDRs = slices.Clone(p.AllowCIDRs), slices.Clone(p.DenyCIDRs)
	p.AllowPorts, p.AllowDomains = slices.Clone(p.AllowPorts), slices.Clone(p.AllowDomains)
	return p
}

// EffectiveMode returns the mode that is in force: the one that is given, deny_all when
// something is allowed, else allow_all.
func (p EgressPolicy) EffectiveMode() EgressMode {
	switch {
	case p.Mode != "":
		return p.Mode
	case len(p.AllowCIDRs) > 0 || len(p.AllowDomains) > 0:
		return EgressDenyAll
	}
	return EgressAllowAll
}

// Validate returns the first fault of the policy as an [Error] that names the entry.
func (p EgressPolicy) Validate() error {
	for _, check := range []func() error{p.checkMode, p.checkCIDRs, p.checkPorts, p.checkDomains} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (p EgressPolicy) checkMode() error {
	switch p.Mode {
	case "", EgressAllowAll, EgressDenyAll:
	default:
		return Errorf(CodeInvalid, "egress mode %.40q is neither %s nor %s", p.Mode, EgressAllowAll, EgressDenyAll)
	}
	if p.Mode != EgressAllowAll {
		return nil
	}
	for what, n := range map[string]int{"CIDRs": len(p.AllowCIDRs), "domains": len(p.AllowDomains)} {
		if n > 0 {
			return Errorf(CodeInvalid, "egress mode %s contradicts a list of allowed %s", EgressAllowAll, what).
				WithHint("allowing %s implies %s; leave the mode out or allow everything", what, EgressDenyAll)
		}
	}
	return nil
}

func (p EgressPolicy) checkCIDRs() error {
	if n := len(p.AllowCIDRs) + len(p.DenyCIDRs); n > MaxEgressCIDRs {
		return Errorf(CodeInvalid, "the egress policy has %d CIDRs; %d is the limit", n, MaxEgressCIDRs).
			WithHint("join neighbouring ranges into larger ones")
	}
	for _, list := range []struct {
		name    string
		entries []string
	}{{"allow", p.AllowCIDRs}, {"deny", p.DenyCIDRs}} {
		for _, s := range list.entries {
			if _, err := ParseEgressCIDR(s); err != nil {
				return Errorf(CodeInvalid, "egress %s-cidr: %w", list.name, err)
			}
		}
	}
	return nil
}

func (p EgressPolicy) checkPorts() error {
	if len(p.AllowPorts) == 0 {
		return nil
	}
	if len(p.AllowCIDRs) == 0 {
		return Errorf(CodeInvalid, "egress allow-port %d without allow-cidr", p.AllowPorts[0]).
			WithHint("ports restrict allowed CIDRs: add one, 0.0.0.0/0 for every address")
	}
	if len(p.AllowPorts) > MaxEgressPorts {
		return Errorf(CodeInvalid, "the egress policy has %d ports; %d is the limit", len(p.AllowPorts), MaxEgressPorts)
	}
	for _, port := range p.AllowPorts {
		if port < 1 || port > 65535 {
			return Errorf(CodeInvalid, "egress allow-port %d is not between 1 and 65535", port)
		}
	}
	return nil
}

func (p EgressPolicy) checkDomains() error {
	if len(p.AllowDomains) > MaxEgressDomains {
		return Errorf(CodeInvalid, "the egress policy has %d domains; %d is the limit", len(p.AllowDomains), MaxEgressDomains)
	}
	for _, d := range p.AllowDomains {
		if _, err := ParseEgressDomain(d); err != nil {
			return Errorf(CodeInvalid, "egress allow-domain: %w", err)
		}
	}
	return nil
}

// ParseEgressCIDR parses an IPv4 prefix, or an address as a prefix of 32 bits. Bits beyond
// the prefix are cleared.
func ParseEgressCIDR(s string) (netip.Prefix, error) {
	text := s
	if !strings.Contains(s, "/") {
		text += "/32"
	}
	prefix, err := netip.ParsePrefix(text)
	if addr, addrErr := netip.ParseAddr(strings.Split(s, "/")[0]); addrErr == nil && addr.Is6() {
		return netip.Prefix{}, Errorf(CodeInvalid, "%.60q is an IPv6 range", s).
			WithHint("sandboxes have IPv4 only; IPv6 never leaves them")
	}
	if err != nil {
		return netip.Prefix{}, Errorf(CodeInvalid, "%.60q is not an IPv4 range", s).
			WithHint("write it like 203.0.113.0/24")
	}
	return prefix.Masked(), nil
}

var domainLabel = regexp.MustCompile(`^[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$`)

// ParseEgressDomain returns a domain of a policy in lower case without a final dot. Names
// are in ASCII; international ones are written in Punycode.
func ParseEgressDomain(s string) (string, error) {
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	rest := strings.TrimPrefix(name, "*.")
	if _, err := netip.ParseAddr(rest); err == nil {
		return "", Errorf(CodeInvalid, "%.60q is an address, no domain", s).WithHint("allow it as a CIDR")
	}
	if rest == "*" {
		return "", Errorf(CodeInvalid, "%q would allow every domain", s).WithHint("use the mode %s instead", EgressAllowAll)
	}
	bad := len(rest) > 253
	for label := range strings.SplitSeq(rest, ".") {
		bad = bad || !domainLabel.MatchString(label)
	}
	if bad {
		return "", Errorf(CodeInvalid, "%.60q is not a domain", s).
			WithHint("write it like example.com, or *.example.com for every name below it")
	}
	return name, nil
}

// AllowsDomain reports whether the policy's domains name host, a name in lower case
// without a final dot.
func (p EgressPolicy) AllowsDomain(host string) bool {
	return slices.ContainsFunc(p.AllowDomains, func(d string) bool {
		pattern, err := ParseEgressDomain(d)
		if err != nil {
			return false
		}
		if parent, wild := strings.CutPrefix(pattern, "*."); wild {
			return strings.HasSuffix(host, "."+parent)
		}
		return host == pattern
	})
}

// key returns the policy in a form that two different ones never share.
func (p EgressPolicy) key() string {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and numbers are always encodable
	}
	return string(b)
}

// String sums the policy up in one line for people.
func (p EgressPolicy) String() string {
	parts := []string{string(p.EffectiveMode())}
	add := func(what string, entries []string) {
		const shown = 3
		if len(entries) > shown {
			entries = append(slices.Clone(entries[:shown]), "… ("+strconv.Itoa(len(entries))+")")
		}
		if len(entries) > 0 {
			parts = append(parts, what+" "+strings.Join(entries, ","))
		}
	}
	var ports []string
	for _, port := range p.AllowPorts {
		ports = append(ports, strconv.Itoa(port))
	}
	add("allow", p.AllowCIDRs)
	add("ports", ports)
	add("domains", p.AllowDomains)
	add("deny", p.DenyCIDRs)
	return strings.Join(parts, " ")
}

// NetworkUse is what passed between a sandbox and the outside.
type NetworkUse struct {
	SentBytes     uint64 `json:"sent_bytes"`
	ReceivedBytes uint64 `json:"received_bytes"`
	// RefusedPackets counts what the policy refused, DroppedFrames what was no packet of
	// the sandbox at all: IPv6, forged addresses. RefusedNames counts look-ups.
	RefusedPackets uint64 `json:"refused_packets"`
	DroppedFrames  uint64 `json:"dropped_frames"`
	RefusedNames   uint64 `json:"refused_names"`
}

// Plus returns what passed in both.
func (u NetworkUse) Plus(v NetworkUse) NetworkUse {
	return NetworkUse{
		SentBytes: u.SentBytes + v.SentBytes, ReceivedBytes: u.ReceivedBytes + v.ReceivedBytes,
		RefusedPackets: u.RefusedPackets + v.RefusedPackets, DroppedFrames: u.DroppedFrames + v.DroppedFrames,
		RefusedNames: u.RefusedNames + v.RefusedNames,
	}
}

// Minus returns what passed since v, an earlier state of u.
func (u NetworkUse) Minus(v NetworkUse) NetworkUse {
	return NetworkUse{
		SentBytes: u.SentBytes - v.SentBytes, ReceivedBytes: u.ReceivedBytes - v.ReceivedBytes,
		RefusedPackets: u.RefusedPackets - v.RefusedPackets, DroppedFrames: u.DroppedFrames - v.DroppedFrames,
		RefusedNames: u.RefusedNames - v.RefusedNames,
	}
}

// NetworkSlots are the connections to the network that a server has for its sandboxes.
type NetworkSlots struct {
	Used, Free int // Free ones are prepared; more are made when they are needed
	Limit      int // how many there are addresses for
}

// Denial is something that a sandbox tried to reach and was not allowed to.
type Denial struct {
	// Destination is an address, or a name that was not resolved.
	Destination string    `json:"destination"`
	Protocol    string    `json:"protocol"`       // "tcp", "udp", "icmp", "dns" or a number
	Port        int       `json:"port,omitempty"` // of TCP and UDP
	Attempts    uint64    `json:"attempts"`       // packets or look-ups
	Reason      string    `json:"reason"`         // which rule refused it
	LastAt      time.Time `json:"last_at"`
}
