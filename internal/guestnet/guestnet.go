// Package guestnet is what host and guest agree on about the network between them. It is
// the same in every sandbox, so that a clone goes on with the address, the route and the
// neighbour that were in memory at the capture: each is alone in a network namespace.
package guestnet

import (
	"net"
	"net/netip"
)

// Prefix is the network that guest and gateway share: link-local addresses (RFC 3927),
// which no network that a sandbox may want to reach can have.
func Prefix() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254, 0, 20}), 30) }

// Guest is the address of the VM.
func Guest() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 0, 21}) }

// Gateway is the address of the host's end, which routes and resolves names.
func Gateway() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 0, 22}) }

// GuestMAC and GatewayMAC are locally administered.
func GuestMAC() net.HardwareAddr   { return net.HardwareAddr{0x02, 0x6b, 0x69, 0x6c, 0x6e, 0x15} }
func GatewayMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0x6b, 0x69, 0x6c, 0x6e, 0x16} }
