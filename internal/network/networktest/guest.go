package networktest

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/guestnet"
	"github.com/kilnvm/kiln/internal/vmm"
)

// Guest is a namespace that is attached to a slot's tap as a VM would be.
type Guest struct {
	NS netns.NsHandle
	// Detach lets go of the tap, as the end of a VM does. It may be repeated.
	Detach func()
}

// Guest attaches one. It has the address and the route that a VM gives itself.
func (w *World) Guest(t testing.TB, n *vmm.Network) *Guest {
	t.Helper()
	g := &Guest{NS: namespace(t)}
	var inner, outer *os.File
	w.In(t, g.NS, func() (err error) {
		if inner, err = tap("eth0"); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(link, guestnet.GuestMAC()); err != nil {
			return err
		}
		guest := netip.PrefixFrom(guestnet.Guest(), guestnet.Prefix().Bits())
		if err := address("eth0", guest.String()); err != nil {
			return err
		}
		if err := up("eth0"); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: guestnet.Gateway().AsSlice()})
	})
	slot, err := netns.GetFromPath(n.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer slot.Close()
	w.In(t, slot, func() (err error) {
		outer, err = tap(n.Tap)
		return err
	})
	copied := make(chan struct{}, 2)
	for _, pair := range [][2]*os.File{{inner, outer}, {outer, inner}} {
		go func() {
			frames(pair[0], pair[1])
			copied <- struct{}{}
		}()
	}
	g.Detach = sync.OnceFunc(func() {
		inner.Close()
		outer.Close()
		<-copied
		<-copied
	})
	t.Cleanup(g.Detach)
	return g
}

// frames copies frames until a side is closed.
func frames(to, from *os.File) {
	buf := make([]byte, 65536+64)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil && !errors.Is(err, io.ErrShortWrite) && !os.IsTimeout(err) {
			continue // a device that is down drops it
		}
	}
}

// tap opens a tap device of the thread's namespace.
func tap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Dial connects from inside the guest.
func (g *Guest) Dial(network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := Inside(g.NS, func() (err error) {
		d := net.Dialer{Timeout: 2 * time.Second}
		conn, err = d.Dial(network, addr)
		return err
	})
	return conn, err
}

// Reaches reports whether the guest gets an answer from a service of the world.
func (g *Guest) Reaches(network, addr string) bool {
	conn, err := g.Dial(network, addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte("ping")); err != nil {
		return false
	}
	_, err = io.ReadFull(conn, make([]byte, 4))
	return err == nil
}

// Ask sends a question for a name to the gateway.
func (g *Guest) Ask(network, name string, kind uint16) (*dns.Msg, error) {
	conn, err := g.Dial(network, guestnet.Gateway().String()+":53")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := dns.Client{Net: network, Timeout: 2 * time.Second}
	reply, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind).SetEdns0(dns.DefaultMsgSize, false), &dns.Conn{Conn: conn})
	return reply, err
}
