package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
)

// Finding is one thing that the network of sandboxes needs, which was tried.
type Finding struct {
	Name   string
	Detail string // what was found, when it works
	Err    error  // why it does not work
	Fix    string // the command that mends it
	Minor  bool   // sandboxes start all the same
}

// Examine tries on a host what slots need: it makes what one consists of and takes it away
// again. A nil host is the namespace of this process.
func Examine(settings Settings, host *netns.NsHandle) []Finding {
	e := examination{settings: settings, outside: netns.None()}
	e.settings.setDefaults()
	if host != nil {
		e.host = *host
	} else {
		h, err := netns.Get()
		if err != nil {
			return []Finding{{Name: "network namespaces", Err: err}}
		}
		defer h.Close()
		e.host = h
	}
	if err := e.settings.Validate(); err != nil {
		return []Finding{{Name: "network settings", Err: err, Fix: "mend [network] in the configuration"}}
	}
	defer e.close()
	e.name()
	var found []Finding
	for _, try := range []func() Finding{e.devices, e.rules, e.forwarding, e.firewall, e.routes} {
		f := try()
		found = append(found, f)
		if f.Name == devicesName && f.Err != nil {
			break // the others need it
		}
	}
	return found
}

// devicesName is the check without which there are no others.
const devicesName = "network namespaces"

// examination makes what looks like a slot, and what looks like the world outside.
type examination struct {
	settings    Settings
	host        netns.NsHandle
	slot, world devices
	inner       netns.NsHandle
	outside     netns.NsHandle
}

// name chooses names that no slot has, and addresses that hardly any will.
func (e *examination) name() {
	subnet, _ := subnetOf(e.settings.Subnet) // it was validated
	own := os.Getpid() % 256
	base := spanOf(subnet).last - uint32(4*own) - 3
	e.slot = devices{link: fmt.Sprintf("kiln%d-%d", maxInstances, own), hostAddr: address(base), upAddr: address(base + 1)}
	e.world = devices{link: fmt.Sprintf("kdoctor-%d", own), hostAddr: address(base + 2), upAddr: address(base + 3)}
	e.inner = netns.None()
}

func (e *examination) close() {
	_ = inside(e.host, func() error {
		for _, d := range []devices{e.slot, e.world} {
			if link, err := netlink.LinkByName(d.link); err == nil {
				_ = netlink.LinkDel(link)
			}
		}
		return nil
	})
	for _, ns := range []netns.NsHandle{e.inner, e.outside} {
		if ns.IsOpen() {
			_ = ns.Close()
		}
	}
}

// anonymous makes a namespace without a name and runs f in it.
func anonymous(f func() error) (netns.NsHandle, error) {
	ns := netns.None()
	err := onThread(func() error {
		var err error
		if ns, err = netns.New(); err != nil {
			return fmt.Errorf("namespace: %w", err)
		}
		return f()
	})
	return ns, err
}

func (e *examination) devices() Finding {
	f := Finding{Name: devicesName, Detail: "a namespace with a tap and a link to the host was made"}
	step := ""
	e.inner, f.Err = anonymous(func() error {
		step = "tun"
		if err := e.slot.makeTap(); err != nil {
			return fmt.Errorf("tap: %w", err)
		}
		step = "veth"
		return e.slot.makeLink(e.host)
	})
	if f.Err == nil {
		f.Err = inside(e.host, e.slot.raiseHostEnd)
	}
	switch {
	case f.Err == nil:
	case errors.Is(f.Err, os.ErrPermission):
		f.Fix = "run as root; in a container, with the capabilities SYS_ADMIN and NET_ADMIN and the device /dev/net/tun"
	case step != "":
		f.Fix = "modprobe " + step
	}
	return f
}

// rules writes the ruleset of a slot and forgets connections as a change of policy does.
func (e *examination) rules() Finding {
	f := Finding{Name: "nftables", Detail: "the rules of a slot were written"}
	f.Err = func() error {
		c, err := nftables.New(nftables.WithNetNSFd(int(e.inner)))
		if err != nil {
			return err
		}
		if err := writeRules(c, nothing(), true); err != nil {
			return err
		}
		if err := c.Flush(); err != nil {
			return err
		}
		c.FlushRuleset() // what is tried next is no guest's
		if err := c.Flush(); err != nil {
			return err
		}
		flows, err := netlink.NewHandleAt(e.inner, unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("connections: %w", err)
		}
		defer flows.Close()
		return (&Slot{flows: flows}).cut(func(Packet) bool { return true })
	}()
	if f.Err != nil {
		f.Fix = "modprobe -a nf_tables nft_chain_nat nft_masq nft_ct nft_reject_ipv4 nf_conntrack_netlink"
	}
	return f
}

const forwardSetting = "/proc/sys/net/ipv4/ip_forward"

func (e *examination) forwarding() Finding {
	f := Finding{Name: "IP forwarding", Detail: "on"}
	f.Err = inside(e.host, func() error {
		now, err := os.ReadFile(forwardSetting)
		if err != nil || strings.TrimSpace(string(now)) == "1" {
			return err
		}
		w, err := os.OpenFile(forwardSetting, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("it is off and cannot be switched on: %w", err)
		}
		f.Detail = "off, and `kiln serve` can switch it on"
		return w.Close()
	})
	if f.Err != nil {
		f.Fix = "sysctl -w net.ipv4.ip_forward=1"
	}
	return f
}

// firewall sends a packet from the slot through the host, and an answer back. Forwarding is
// on for these two links at least.
func (e *examination) firewall() Finding {
	f := Finding{Name: "firewall", Detail: "a packet of a sandbox and its answer passed through the host"}
	f.Err = func() error {
		var err error
		if e.outside, err = anonymous(func() error { return e.world.makeLink(e.host) }); err != nil {
			return err
		}
		if err := inside(e.host, func() error {
			if err := e.world.raiseHostEnd(); err != nil {
				return err
			}
			for _, link := range []string{e.slot.link, e.world.link} {
				if err := setSysctl("ipv4/conf/"+link+"/forwarding", "1"); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		return e.roundTrip()
	}()
	if f.Err != nil {
		f.Fix = e.letThrough()
	}
	return f
}

// patience bounds how long a packet may take through one host.
const patience = 2 * time.Second

func (e *examination) roundTrip() error {
	var server, client *net.UDPConn
	at := net.UDPAddrFromAddrPort(netip.AddrPortFrom(e.world.upAddr, 7))
	if err := inside(e.outside, func() (err error) { server, err = net.ListenUDP("udp4", at); return err }); err != nil {
		return err
	}
	defer server.Close()
	if err := inside(e.inner, func() (err error) { client, err = net.DialUDP("udp4", nil, at); return err }); err != nil {
		return err
	}
	defer client.Close()
	deadline := time.Now().Add(patience)
	if err := errors.Join(server.SetDeadline(deadline), client.SetDeadline(deadline)); err != nil {
		return err
	}
	if _, err := client.Write([]byte("kiln")); err != nil {
		return err
	}
	b := make([]byte, 16)
	_, from, err := server.ReadFromUDPAddrPort(b)
	if err != nil {
		return errors.New("the host's firewall does not forward what sandboxes send")
	}
	if _, err := server.WriteToUDPAddrPort(b[:4], from); err != nil {
		return err
	}
	if _, err := client.Read(b); err != nil {
		return errors.New("the host's firewall does not let answers through to sandboxes")
	}
	return nil
}

// letThrough returns the commands that have the host's firewall forward for slots.
func (e *examination) letThrough() string {
	const otherwise = "have the host's firewall forward what comes from and goes to links named kiln*"
	c, err := nftables.New(nftables.WithNetNSFd(int(e.host)))
	if err != nil {
		return otherwise
	}
	chains, err := c.ListChains()
	if err != nil {
		return otherwise
	}
	return letThrough(chains, e.settings.Subnet, onPath("iptables"), otherwise)
}

func onPath(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// letThrough knows the firewalls that have a place for others' rules; into the rest it
// inserts its own.
func letThrough(chains []*nftables.Chain, subnet string, iptables bool, otherwise string) string {
	insert := func(family, table, chain string) string {
		at := "nft insert rule " + family + " " + table + " " + chain
		return at + ` iifname '"kiln*"' accept; ` + at + ` oifname '"kiln*"' accept`
	}
	var commands []string
	for _, c := range chains {
		family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyINet: "inet"}[c.Table.Family]
		switch {
		case family == "" || strings.HasPrefix(c.Table.Name, "kiln-"):
		case c.Name == "DOCKER-USER" && iptables:
			return "iptables -I DOCKER-USER -i kiln+ -j ACCEPT; iptables -I DOCKER-USER -o kiln+ -j ACCEPT"
		case c.Name == "DOCKER-USER":
			return insert(family, c.Table.Name, c.Name)
		case c.Table.Name == "firewalld":
			return "firewall-cmd --permanent --zone=trusted --add-source=" + subnet + "; firewall-cmd --reload"
		case c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Type == nftables.ChainTypeFilter:
			commands = append(commands, insert(family, c.Table.Name, c.Name))
		}
	}
	if len(commands) == 0 && iptables {
		return "iptables -I FORWARD -i kiln+ -j ACCEPT; iptables -I FORWARD -o kiln+ -j ACCEPT"
	}
	if len(commands) == 0 {
		return otherwise
	}
	return strings.Join(commands, "; ")
}

// routes looks for other uses of the addresses of slots.
func (e *examination) routes() Finding {
	f := Finding{Name: "network subnet", Detail: e.settings.Subnet + " is free for sandboxes", Minor: true}
	subnet, _ := subnetOf(e.settings.Subnet)
	f.Err = inside(e.host, func() error {
		routes, err := whole(routesV4)
		if err != nil {
			return err
		}
		for _, r := range routes {
			p, ok := prefixOf(r.Dst)
			if !ok || p.Bits() == 0 || !p.Overlaps(subnet) {
				continue
			}
			name := fmt.Sprint("link ", r.LinkIndex)
			if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
				name = link.Attrs().Name
			}
			if !ours(name) {
				return kiln.Errorf(kiln.CodeConflict, "network.subnet %s overlaps the host's route to %s by %s", subnet, p, name)
			}
		}
		return nil
	})
	if f.Err != nil {
		f.Fix = "set network.subnet in the configuration to a range of at least 4,096 addresses that the host has no other use for"
	}
	return f
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP.To4())
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr, bits), ok
}

// ours reports whether a link is a slot's, or an examination's.
func ours(link string) bool {
	for _, pattern := range []string{"kiln[0-9]*-*", "kdoctor-*"} {
		if ok, _ := filepath.Match(pattern, link); ok {
			return true
		}
	}
	return false
}
