package pid1

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/kilnvm/kiln/internal/guestnet"
	"github.com/kilnvm/kiln/internal/sandboxd/imagefile"
)

// setUpNetwork gives the VM's network device its address. It happens once, before any
// capture: every clone goes on with it. A VM without a device has no network.
func setUpNetwork(log *slog.Logger) error {
	device, err := networkDevice("/sys/class/net")
	if err != nil || device == "" {
		return err
	}
	disableIPv6(log)
	if err := configure(device); err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	// Whatever the image brought was about the network it was built in.
	conf := fmt.Sprintf("nameserver %s\n", guestnet.Gateway())
	if err := imagefile.Write("/etc/resolv.conf", []byte(conf), 0o644); err != nil {
		return err
	}
	return nil
}

// networkDevice returns the first virtio network device, or "".
func networkDevice(classNet string) (string, error) {
	links, err := filepath.Glob(filepath.Join(classNet, "*", "device", "driver"))
	if err != nil {
		return "", err
	}
	slices.Sort(links)
	for _, link := range links {
		driver, err := os.Readlink(link)
		if err == nil && filepath.Base(driver) == "virtio_net" {
			return filepath.Base(filepath.Dir(filepath.Dir(link))), nil
		}
	}
	return "", nil
}

// disableIPv6 spares programs their attempts: the host lets nothing but IPv4 pass.
func disableIPv6(log *slog.Logger) {
	for _, which := range []string{"all", "default"} {
		path := "/proc/sys/net/ipv6/conf/" + which + "/disable_ipv6"
		if err := os.WriteFile(path, []byte("1"), 0); err != nil && !os.IsNotExist(err) {
			log.Warn("IPv6 stays on", "error", err)
		}
	}
	// The loopback address ::1 is of use inside the VM.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("0"), 0); err != nil && !os.IsNotExist(err) {
		log.Warn("no ::1", "error", err)
	}
}

// configure sets address and default route and raises the device.
func configure(device string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	addr := &net.IPNet{IP: guestnet.Guest().AsSlice(), Mask: net.CIDRMask(guestnet.Prefix().Bits(), 32)}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: addr}); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("raise: %w", err)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: guestnet.Gateway().AsSlice()}); err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	return nil
}
