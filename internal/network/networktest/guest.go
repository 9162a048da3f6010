package networktest

import (
	"encoding/binary"
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
	var inner *os.File
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
	outer := w.Tap(t, n)
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

// Tap opens a slot's tap, as the device of a VM does.
func (w *World) Tap(t testing.TB, n *vmm.Network) *os.File {
	t.Helper()
	slot, err := netns.GetFromPath(n.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer slot.Close()
	var file *os.File
	w.In(t, slot, func() (err error) {
		file, err = tap(n.Tap)
		return err
	})
	t.Cleanup(func() { file.Close() })
	return file
}

// Datagram is a frame of a guest as it is written to a tap, with n bytes for a UDP port.
func Datagram(to string, port uint16, n int) []byte {
	const tapHeader, ipHeader, udpHeader = 10, 20, 8
	b := make([]byte, tapHeader, tapHeader+14+ipHeader+udpHeader+n)
	b = append(append(append(b, guestnet.GatewayMAC()...), guestnet.GuestMAC()...), 8, 0)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(ipHeader+udpHeader+n))
	ip = append(append(ip, guestnet.Guest().AsSlice()...), netip.MustParseAddr(to).AsSlice()...)
	var sum uint32
	for i := 0; i < ipHeader; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	udp := binary.BigEndian.AppendUint16(nil, 40000)
	udp = binary.BigEndian.AppendUint16(udp, port)
	udp = binary.BigEndian.AppendUint16(udp, uint16(udpHeader+n))
	udp = append(udp, 0, 0) // no checksum
	return append(append(append(b, ip...), udp...), make([]byte, n)...)
}

// frames copies frames, as large as the sender makes them, until a side is closed.
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
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil { // as VMs do: large segments, and checksums left out
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4)
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
