package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/guestnet"
)

// devices are what a slot consists of in the kernel.
type devices struct {
	namespace string // name
	link      string // the host's end of the link
	hostAddr  netip.Addr
	upAddr    netip.Addr
}

func (d devices) path() string { return filepath.Join(netnsDir, d.namespace) }

// make makes the namespace with its devices and the link to the host. When it fails,
// nothing is left.
func (d devices) make(host netns.NsHandle) (_ netns.NsHandle, err error) {
	ns, err := makeNamespace(d.namespace, func(ns netns.NsHandle) error {
		// Before any device is up: not one IPv6 packet.
		for name, value := range map[string]string{
			"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1", "ipv4/ip_forward": "1",
		} {
			if err := setSysctl(name, value); err != nil {
				return err
			}
		}
		if err := d.makeTap(); err != nil {
			return fmt.Errorf("tap: %w", err)
		}
		return d.makeLink(host)
	})
	if err == nil {
		err = inside(host, d.raiseHostEnd)
	}
	if err != nil {
		if ns.IsOpen() {
			_ = ns.Close()
		}
		return netns.None(), errors.Join(fmt.Errorf("network slot %s: %w", d.namespace, err), d.remove(host))
	}
	return ns, nil
}

// makeTap makes the guest's device and the gateway's address on it. The guest's MAC is
// entered for good, so that nothing that it says about it counts.
func (d devices) makeTap() error {
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: tapName}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(tap, guestnet.GatewayMAC()); err != nil {
		return err
	}
	if err := raise(tap, gatewayAddr, guestnet.Prefix().Bits()); err != nil {
		return err
	}
	return netlink.NeighSet(&netlink.Neigh{
		LinkIndex: tap.Index, State: netlink.NUD_PERMANENT, IP: guestAddr.AsSlice(), HardwareAddr: guestnet.GuestMAC(),
	})
}

func (d devices) makeLink(host netns.NsHandle) error {
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: uplinkName}, PeerName: d.link, PeerNamespace: netlink.NsFd(host),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("link %s: %w", d.link, err)
	}
	if err := raise(veth, d.upAddr, 31); err != nil {
		return fmt.Errorf("link %s: %w", d.link, err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: veth.Index, Gw: d.hostAddr.AsSlice()})
}

func (d devices) raiseHostEnd() error {
	if err := setSysctl("ipv6/conf/"+d.link+"/disable_ipv6", "1"); err != nil {
		return err
	}
	link, err := netlink.LinkByName(d.link)
	if err != nil {
		return err
	}
	return raise(link, d.hostAddr, 31)
}

func raise(link netlink.Link, addr netip.Addr, bits int) error {
	ip := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, 32)}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	return netlink.LinkSetUp(link)
}

// remove deletes the host's end, and with it the link, and the name of the namespace. It
// is fine with a slot that is half made or not there.
func (d devices) remove(host netns.NsHandle) error {
	err := inside(host, func() error {
		link, err := netlink.LinkByName(d.link)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	return errors.Join(err, removeNamespace(d.namespace))
}

func removeNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("network namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("network namespace %s: %w", name, err)
	}
	return nil
}

// leftovers removes namespaces and links that an earlier server with this number left.
func leftovers(in *instance, host netns.NsHandle) error {
	var errs []error
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), in.namespaces()) {
			errs = append(errs, removeNamespace(e.Name()))
		}
	}
	errs = append(errs, inside(host, func() error {
		links, err := whole(netlink.LinkList)
		if err != nil {
			return err
		}
		var errs []error
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, in.links()) {
				// It may go by itself with the namespace that its other end is in.
				if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
					errs = append(errs, err)
				}
			}
		}
		return errors.Join(errs...)
	}))
	return errors.Join(errs...)
}
