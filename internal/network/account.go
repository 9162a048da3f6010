package network

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/kilnvm/kiln"
)

// Use returns what passed since the slot was lent.
func (s *Slot) Use() (kiln.NetworkUse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed || !s.lent {
		return kiln.NetworkUse{}, nil
	}
	var use kiln.NetworkUse
	for _, t := range []*nftables.Table{
		{Family: nftables.TableFamilyIPv4, Name: policyTable}, {Family: nftables.TableFamilyNetdev, Name: guardTable},
	} {
		objects, err := s.rules.GetNamedObjects(t)
		if err != nil {
			return use, fmt.Errorf("counters: %w", err)
		}
		for _, o := range objects {
			named, ok := o.(*nftables.NamedObj)
			if !ok {
				continue
			}
			counter, ok := named.Obj.(*expr.Counter)
			if !ok {
				continue
			}
			switch named.Name {
			case counterSent:
				use.SentBytes = counter.Bytes
			case counterRecv:
				use.ReceivedBytes = counter.Bytes
			case counterDenied:
				use.RefusedPackets = counter.Packets
			case counterOdd:
				use.DroppedFrames = counter.Packets
			}
		}
	}
	s.names.mu.Lock()
	defer s.names.mu.Unlock()
	use.RefusedNames = s.names.refusals
	return use, nil
}

// Denials returns what was refused, the latest first. Each destination is one entry; it is
// forgotten a day after the last attempt, and beyond a bound no new ones are noted.
func (s *Slot) Denials() ([]kiln.Denial, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed || !s.lent {
		return nil, nil
	}
	list := s.names.denials()
	elements, err := s.rules.GetSetElements(refusalSet(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: policyTable}))
	if err != nil {
		return nil, fmt.Errorf("deny log: %w", err)
	}
	for _, e := range elements {
		if len(e.Key) != refusalKey {
			return nil, fmt.Errorf("deny log: entry of %d bytes", len(e.Key))
		}
		list = append(list, s.denial(e))
	}
	slices.SortFunc(list, func(a, b kiln.Denial) int {
		return cmp.Or(b.LastAt.Compare(a.LastAt), cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Port, b.Port))
	})
	return list, nil
}

// refusalKey is the length in bytes of address, protocol and port, each padded to four.
const refusalKey = 12

func (s *Slot) denial(e nftables.SetElement) kiln.Denial {
	addr, _ := netip.AddrFromSlice(e.Key[:4])
	p := Packet{Src: guestAddr, Dst: addr, Proto: e.Key[4], Port: binary.BigEndian.Uint16(e.Key[8:])}
	d := kiln.Denial{
		Destination: addr.String(), Protocol: protocolName(p.Proto), Port: int(p.Port),
		LastAt: time.Now().Add(e.Expires - refusalsRemain),
	}
	if e.Counter != nil {
		d.Attempts = e.Counter.Packets
	}
	_, reason := s.decider.Decide(p)
	d.Reason = string(reason)
	return d
}

func protocolName(number uint8) string {
	switch number {
	case ProtoTCP:
		return "tcp"
	case ProtoUDP:
		return "udp"
	case ProtoICMP:
		return "icmp"
	}
	return strconv.Itoa(int(number))
}

func (r *resolver) denials() []kiln.Denial {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []kiln.Denial
	for name, n := range r.refused {
		list = append(list, kiln.Denial{
			Destination: name, Protocol: "dns", Attempts: n.attempts, Reason: string(ReasonDenyAll), LastAt: n.last,
		})
	}
	return list
}
