// Command prober runs inside a sandbox and tries to send something out of it in every way
// that it knows. It prints one line per technique, "name" or "name: why it could not be
// tried". Whether anything left is for whoever watches the wire to say.
//
//	prober PUBLIC PRIVATE HOST SIBLING
//
// The arguments are IPv4 addresses of the test's world.
package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/guestnet"
)

// secret is what must not arrive anywhere.
const secret = "kiln-exfiltrated-secret"

type prober struct {
	public, private, host, sibling netip.Addr
	device                         netlink.Link
	raw                            int // IP with a header of ours
	frames                         int // Ethernet with a header of ours
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "prober:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("want 4 addresses, have %d", len(args))
	}
	var p prober
	for i, to := range []*netip.Addr{&p.public, &p.private, &p.host, &p.sibling} {
		addr, err := netip.ParseAddr(args[i])
		if err != nil {
			return err
		}
		*to = addr
	}
	var err error
	if p.device, err = netlink.LinkByName("eth0"); err != nil {
		return err
	}
	if p.raw, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW); err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	if p.frames, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	for _, t := range p.techniques() {
		line := t.name
		if err := t.try(); err != nil {
			line += ": " + err.Error()
		}
		fmt.Println(line)
	}
	return barrier()
}

// barrier returns when the host has taken everything that was sent before: it answers a
// question, whatever the answer.
func barrier() error {
	client := dns.Client{Timeout: 10 * time.Second}
	_, _, err := client.Exchange(new(dns.Msg).SetQuestion("barrier.example.", dns.TypeA), guestnet.Gateway().String()+":53")
	return err
}

type technique struct {
	name string
	try  func() error
}

const patience = 300 * time.Millisecond

// connect tries a TCP connection and sends the secret when there is one. That there is none
// is no failure to try.
func connect(addr netip.Addr, port uint16) func() error {
	return func() error {
		conn, err := net.DialTimeout("tcp4", netip.AddrPortFrom(addr, port).String(), patience)
		if err != nil {
			return nil
		}
		defer conn.Close()
		_, _ = conn.Write([]byte(secret))
		return nil
	}
}

// datagram sends n bytes over UDP.
func datagram(addr netip.Addr, port uint16, n int) func() error {
	return func() error {
		conn, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return err
		}
		defer conn.Close()
		if raw, err := conn.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
			})
		}
		_, err = conn.WriteToUDPAddrPort(filled(n), netip.AddrPortFrom(addr, port))
		return ignoreRefusal(err)
	}
}

// ignoreRefusal leaves out what the host's refusal of an earlier packet looks like.
func ignoreRefusal(err error) error {
	for _, refusal := range []error{unix.EPERM, unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EACCES} {
		if err != nil && unwraps(err, refusal) {
			return nil
		}
	}
	return err
}

func filled(n int) []byte {
	b := make([]byte, max(n, len(secret)))
	copy(b, secret)
	return b
}

func guest() netip.Addr { return guestnet.Guest() }
