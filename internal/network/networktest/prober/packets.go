package main

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/guestnet"
)

func unwraps(err, target error) bool { return errors.Is(err, target) }

// ip builds an IPv4 packet. fragment is the flags and offset field.
type ip struct {
	src, dst netip.Addr
	proto    byte
	fragment uint16
	options  []byte
	ttl      byte
	payload  []byte
}

func (p ip) bytes() []byte {
	header := 20 + len(p.options)
	b := make([]byte, header, header+len(p.payload))
	b[0] = 0x40 | byte(header/4)
	binary.BigEndian.PutUint16(b[2:], uint16(header+len(p.payload)))
	binary.BigEndian.PutUint16(b[4:], 0x4b4e)
	binary.BigEndian.PutUint16(b[6:], p.fragment)
	b[8], b[9] = 64, p.proto
	if p.ttl > 0 {
		b[8] = p.ttl
	}
	copy(b[12:], p.src.AsSlice())
	copy(b[16:], p.dst.AsSlice())
	copy(b[20:], p.options)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, p.payload...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func udpSegment(port uint16, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, 40000)
	binary.BigEndian.PutUint16(b[2:], port)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return append(b, payload...) // a checksum of 0 means that there is none
}

func icmpEcho(payload []byte) []byte {
	b := append([]byte{8, 0, 0, 0, 0x4b, 0x4e, 0, 1}, payload...)
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// tcpSegment has the given flags and a correct checksum.
func tcpSegment(src, dst netip.Addr, port uint16, flags byte, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(b, 40001)
	binary.BigEndian.PutUint16(b[2:], port)
	binary.BigEndian.PutUint32(b[4:], 0x4b494c4e)
	binary.BigEndian.PutUint32(b[8:], 1)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 8192)
	b = append(b, payload...)
	pseudo := append(append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...), 0, unix.IPPROTO_TCP, byte(len(b)>>8), byte(len(b)))
	binary.BigEndian.PutUint16(b[16:], checksum(append(pseudo, b...)))
	return b
}

// send gives packets to the kernel's raw socket, which routes them.
func (p *prober) send(packets ...ip) func() error {
	return func() error {
		for _, packet := range packets {
			to := &unix.SockaddrInet4{Addr: packet.dst.As4()}
			if err := unix.Sendto(p.raw, packet.bytes(), 0, to); err != nil {
				if err := ignoreRefusal(err); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// frame puts bytes on the wire as they are.
func (p *prober) frame(dst, src net.HardwareAddr, kind uint16, payload []byte) func() error {
	return func() error {
		b := append(append(append([]byte{}, dst...), src...), byte(kind>>8), byte(kind))
		to := &unix.SockaddrLinklayer{Ifindex: p.device.Attrs().Index, Halen: 6}
		copy(to.Addr[:], dst)
		return unix.Sendto(p.frames, append(b, payload...), 0, to)
	}
}

// ipv6 is a UDP packet in IPv6.
func ipv6(payload []byte) []byte {
	udp := udpSegment(7, payload)
	b := make([]byte, 40, 40+len(udp))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(udp)))
	b[6], b[7] = unix.IPPROTO_UDP, 64
	copy(b[8:], net.ParseIP("2001:db8::15"))
	copy(b[24:], net.ParseIP("2001:db8::7"))
	return append(b, udp...)
}

// arp claims that addr is at mac, to the gateway.
func arp(mac net.HardwareAddr, addr netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 2}
	b = append(append(b, mac...), addr.AsSlice()...)
	return append(append(b, guestnet.GatewayMAC()...), guestnet.Gateway().AsSlice()...)
}
