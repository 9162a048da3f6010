package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/kilnvm/kiln"
)

// span is a range of IPv4 addresses, both ends included.
type span struct{ first, last uint32 }

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

func spanOf(p netip.Prefix) span {
	first := number(p.Masked().Addr())
	return span{first, first | uint32(uint64(1)<<(32-p.Bits())-1)}
}

// ranges is a set of addresses: ascending spans that neither overlap nor touch.
type ranges []span

func rangesOf(prefixes []netip.Prefix) ranges {
	spans := make([]span, len(prefixes))
	for i, p := range prefixes {
		spans[i] = spanOf(p)
	}
	return merged(spans)
}

func merged(spans []span) ranges {
	slices.SortFunc(spans, func(a, b span) int {
		if a.first != b.first {
			return cmpUint(a.first, b.first)
		}
		return cmpUint(a.last, b.last)
	})
	var r ranges
	for _, s := range spans {
		if n := len(r); n > 0 && uint64(s.first) <= uint64(r[n-1].last)+1 {
			r[n-1].last = max(r[n-1].last, s.last)
			continue
		}
		r = append(r, s)
	}
	return r
}

func cmpUint(a, b uint32) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// minus returns the addresses of r that are not in other.
func (r ranges) minus(other ranges) ranges {
	var out ranges
	for _, s := range r {
		next := uint64(s.first)
		for _, o := range other {
			if uint64(o.last) < next || o.first > s.last {
				continue
			}
			if uint64(o.first) > next {
				out = append(out, span{uint32(next), o.first - 1})
			}
			next = uint64(o.last) + 1
		}
		if next <= uint64(s.last) {
			out = append(out, span{uint32(next), s.last})
		}
	}
	return out
}

// plus returns the addresses that are in either.
func (r ranges) plus(other ranges) ranges { return merged(append(slices.Clone(r), other...)) }

func (r ranges) has(a netip.Addr) bool {
	n := number(a)
	i, found := slices.BinarySearchFunc(r, n, func(s span, n uint32) int { return cmpUint(s.first, n) })
	return found || i > 0 && r[i-1].last >= n
}

// everything reports whether r is all of IPv4.
func (r ranges) everything() bool { return len(r) == 1 && r[0] == span{0, ^uint32(0)} }

// parseRanges parses CIDRs of a policy or of the configuration.
func parseRanges(cidrs []string) (ranges, error) {
	prefixes := make([]netip.Prefix, len(cidrs))
	for i, s := range cidrs {
		p, err := kiln.ParseEgressCIDR(s)
		if err != nil {
			return nil, err
		}
		prefixes[i] = p
	}
	return rangesOf(prefixes), nil
}

func (s span) String() string { return fmt.Sprintf("%v-%v", address(s.first), address(s.last)) }
