package networktest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TCP serves connections to addr in the world outside: each byte comes back, and the first
// thing to come is a greeting.
func (w *World) TCP(t testing.TB, addr string) {
	t.Helper()
	w.In(t, w.Outside, func() error {
		l, err := net.Listen("tcp4", addr)
		if err != nil {
			return err
		}
		var serving sync.WaitGroup
		t.Cleanup(func() {
			l.Close()
			serving.Wait()
		})
		serving.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				stop := make(chan struct{})
				t.Cleanup(func() { c.Close(); <-stop })
				go func() {
					defer close(stop)
					defer c.Close()
					_, _ = io.WriteString(c, Greeting)
					_, _ = io.Copy(c, c)
				}()
			}
		})
		return nil
	})
}

// Ports of the services that move much.
const (
	DrainPort  = "9"  // takes everything and says at the end how many bytes it was
	SourcePort = "19" // sends until the client has enough
)

// Bulk serves both on an address of the world outside, one connection at a time each.
func (w *World) Bulk(t testing.TB, addr string) {
	t.Helper()
	const block = 1 << 20
	w.stream(t, addr+":"+DrainPort, func(c net.Conn) {
		buf := make([]byte, block)
		for total := 0; ; {
			n, err := c.Read(buf)
			total += n
			if err != nil {
				_, _ = fmt.Fprintln(c, total)
				return
			}
		}
	})
	w.stream(t, addr+":"+SourcePort, func(c net.Conn) {
		for buf := make([]byte, block); ; {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
}

// stream serves one connection after the other.
func (w *World) stream(t testing.TB, addr string, serve func(net.Conn)) {
	t.Helper()
	w.In(t, w.Outside, func() error {
		l, err := net.Listen("tcp4", addr)
		if err != nil {
			return err
		}
		done := make(chan struct{})
		t.Cleanup(func() { l.Close(); <-done })
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				stop := context.AfterFunc(t.Context(), func() { c.Close() })
				serve(c)
				stop()
				c.Close()
			}
		}()
		return nil
	})
}

// Greeting is what a TCP service says first.
const Greeting = "hello from outside\n"

// UDP sends each datagram to addr back.
func (w *World) UDP(t testing.TB, addr string) {
	t.Helper()
	w.In(t, w.Outside, func() error {
		c, err := net.ListenPacket("udp4", addr)
		if err != nil {
			return err
		}
		done := make(chan struct{})
		t.Cleanup(func() { c.Close(); <-done })
		go func() {
			defer close(done)
			buf := make([]byte, 2048)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(buf[:n], from)
			}
		}()
		return nil
	})
}

// Zone is what the resolver outside knows: addresses by name, without a final dot. Questions
// counts what it was asked.
type Zone struct {
	mu        sync.Mutex
	records   map[string][]string
	ttl       uint32
	questions []string
}

// Set replaces the addresses of a name.
func (z *Zone) Set(name string, addrs ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records[name] = addrs
}

// Questions returns the names that were asked for, in order.
func (z *Zone) Questions() []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return append([]string(nil), z.questions...)
}

// DNS serves a zone on OutsideAddr. All answers are valid for ttl seconds.
func (w *World) DNS(t testing.TB, ttl uint32) *Zone {
	t.Helper()
	z := &Zone{records: map[string][]string{}, ttl: ttl}
	w.In(t, w.Outside, func() error {
		c, err := net.ListenPacket("udp4", OutsideAddr+":53")
		if err != nil {
			return err
		}
		started, done := make(chan struct{}), make(chan struct{})
		server := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(z.serve), NotifyStartedFunc: func() { close(started) }}
		go func() {
			defer close(done)
			_ = server.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() { _ = server.Shutdown(); <-done })
		return nil
	})
	return z
}

func (z *Zone) serve(w dns.ResponseWriter, query *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	reply := new(dns.Msg).SetReply(query)
	q := query.Question[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	z.questions = append(z.questions, name)
	addrs, known := z.records[name]
	if !known {
		reply.Rcode = dns.RcodeNameError
	}
	for _, a := range addrs {
		if q.Qtype == dns.TypeA {
			reply.Answer = append(reply.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: z.ttl}, A: net.ParseIP(a),
			})
		}
	}
	_ = w.WriteMsg(reply)
}

// Sink counts what arrives outside, whatever it is: frames of any protocol on the wire that
// leads there, but ARP and what answers the host's own questions for names.
type Sink struct {
	ns     netns.NsHandle
	device string
	fd     int
	done   chan struct{}
	known  map[int]bool // whether a device leads to a slot, by index

	mu     sync.Mutex // also held while a frame is waited for, which is never long
	buf    [65536]byte
	frames []string
}

// Sink begins to count what arrives outside.
func (w *World) Sink(t testing.TB) *Sink {
	t.Helper()
	return w.sink(t, w.Outside, "net0")
}

// WireSink begins to count what slots put on the wires to their host: all that got past the
// rules of a slot itself, wherever it was going.
func (w *World) WireSink(t testing.TB) *Sink {
	t.Helper()
	return w.sink(t, w.Host, "")
}

// sink listens on one device, or on all that lead to slots.
func (w *World) sink(t testing.TB, ns netns.NsHandle, device string) *Sink {
	t.Helper()
	s := &Sink{ns: ns, device: device, done: make(chan struct{}), known: map[int]bool{}}
	w.In(t, ns, func() error {
		var err error
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000}); err != nil {
			return err
		}
		at := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)}
		if device != "" {
			link, err := net.InterfaceByName(device)
			if err != nil {
				return err
			}
			at.Ifindex = link.Index
		}
		return unix.Bind(s.fd, at)
	})
	stop := make(chan struct{})
	go s.listen(stop)
	t.Cleanup(func() {
		close(stop)
		<-s.done
		unix.Close(s.fd)
	})
	return s
}

// listen reads until stop is closed, so that the socket's buffer does not run over.
func (s *Sink) listen(stop chan struct{}) {
	defer close(s.done)
	for {
		select {
		case <-stop:
			return
		default:
		}
		s.mu.Lock()
		err := s.read(0)
		s.mu.Unlock()
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// read notes the next frame. The lock is held.
func (s *Sink) read(flags int) error {
	n, from, err := unix.Recvfrom(s.fd, s.buf[:], flags)
	if err != nil {
		return err
	}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING && s.counts(ll.Ifindex) {
		s.note(s.buf[:n])
	}
	return nil
}

// counts reports whether frames on a device are of interest.
func (s *Sink) counts(index int) bool {
	if s.device != "" {
		return true
	}
	slot, ok := s.known[index]
	if !ok {
		_ = Inside(s.ns, func() error {
			link, err := net.InterfaceByIndex(index)
			slot = err == nil && strings.HasPrefix(link.Name, "kiln")
			return err
		})
		s.known[index] = slot
	}
	return slot
}

func (s *Sink) note(frame []byte) {
	const header = 14
	if len(frame) < header {
		return
	}
	kind := binary.BigEndian.Uint16(frame[12:])
	what := fmt.Sprintf("ethertype %#04x, %d bytes", kind, len(frame))
	switch kind {
	case unix.ETH_P_ARP:
		return
	case unix.ETH_P_IPV6:
		if len(frame) > header+6 && frame[header+6] == unix.IPPROTO_ICMPV6 && frame[6] != 0x02 {
			return // the kernels' own neighbour discovery
		}
	case unix.ETH_P_IP:
		if len(frame) < header+20 {
			break
		}
		src, _ := netip.AddrFromSlice(frame[header+12 : header+16])
		dst, _ := netip.AddrFromSlice(frame[header+16 : header+20])
		what = fmt.Sprintf("%v to %v protocol %d, %d bytes", src, dst, frame[header+9], len(frame))
		if end := header + int(frame[header]&15)*4; len(frame) >= end+4 {
			port := binary.BigEndian.Uint16(frame[end+2:])
			what += fmt.Sprintf(" port %d", port)
			if dst.String() == OutsideAddr && port == 53 && frame[header+9] == unix.IPPROTO_UDP {
				return
			}
		}
	}
	s.frames = append(s.frames, what)
}

// Take returns what has arrived since the last call, down to the last frame before this one.
func (s *Sink) Take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.read(unix.MSG_DONTWAIT) == nil {
	}
	frames := s.frames
	s.frames = nil
	return frames
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }
