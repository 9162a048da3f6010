package network_test

import (
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/network/networktest"
)

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2]) / float64(time.Millisecond)
}

// BenchmarkAcquire measures what a start waits for: a slot with its policy in force.
func BenchmarkAcquire(b *testing.B) {
	w := networktest.New(b)
	policy := kiln.EgressPolicy{AllowCIDRs: []string{"198.51.100.0/24"}, DenyCIDRs: []string{"198.51.100.7"}}
	b.Run("pool", func(b *testing.B) {
		pool := w.Pool(b, network.Settings{Prepared: 4})
		measure(b, func() *network.Slot { return must(pool.Acquire(b.Context(), "bench", policy)) }, func(s *network.Slot) {
			if err := s.Release(); err != nil {
				b.Fatal(err)
			}
		})
	})
	b.Run("no pool", func(b *testing.B) {
		pool := w.Pool(b, network.Settings{Prepared: 1})
		held := must(pool.Acquire(b.Context(), "held", policy))
		defer held.Release() //nolint:errcheck // the pool's end tells
		measure(b, func() *network.Slot { return must(pool.AcquireNew(b.Context(), "bench", policy)) }, func(s *network.Slot) {
			if err := s.Remove(); err != nil {
				b.Fatal(err)
			}
		})
	})
}

func measure(b *testing.B, begin func() *network.Slot, end func(*network.Slot)) {
	var took []time.Duration
	for b.Loop() {
		begun := time.Now()
		slot := begin()
		took = append(took, time.Since(begun))
		end(slot)
	}
	b.ReportMetric(median(took), "p50-ms")
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// BenchmarkManyRanges measures what a policy of 10,000 ranges costs to apply.
func BenchmarkManyRanges(b *testing.B) {
	w := networktest.New(b)
	slot := acquire(b, w.Pool(b, network.Settings{Prepared: 1}), "bench", kiln.EgressPolicy{})
	policy := manyRanges()
	var took []time.Duration
	for b.Loop() {
		begun := time.Now()
		set(b, slot, policy)
		took = append(took, time.Since(begun))
	}
	b.ReportMetric(median(took), "p50-ms")
}

// manyRanges allows 10,000 ranges that do not touch, and the address of the world's service.
func manyRanges() kiln.EgressPolicy {
	p := kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr}}
	for i := range 9_999 {
		p.AllowCIDRs = append(p.AllowCIDRs, fmt.Sprintf("%d.%d.%d.0/25", 20+i>>16, i>>8&255, i&255))
	}
	return p
}

// BenchmarkThroughput sends through the tap, NAT and rules of a slot, with a guest that is a
// namespace, and compares it with the host itself on the link that leads outside. Copying
// frames between two taps, which is part of the former, is what a VM's device does.
func BenchmarkThroughput(b *testing.B) {
	w := networktest.New(b)
	w.Bulk(b, networktest.PublicAddr)
	slot := acquire(b, w.Pool(b, network.Settings{Prepared: 1}), "bench", kiln.EgressPolicy{})
	g := w.Guest(b, slot.Config())
	fromHost := func(service string) (conn net.Conn) {
		w.In(b, w.Host, func() (err error) {
			conn, err = net.Dial("tcp", service)
			return err
		})
		return conn
	}
	fromGuest := func(policy kiln.EgressPolicy) func(string) net.Conn {
		return func(service string) net.Conn {
			set(b, slot, policy)
			return must(g.Dial("tcp", service))
		}
	}
	for _, c := range []struct {
		name string
		dial func(service string) net.Conn
	}{
		{"bare veth", fromHost}, {"slot, allow_all", fromGuest(kiln.EgressPolicy{})},
		{"slot, one range", fromGuest(kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr}})},
		{"slot, 10,000 ranges", fromGuest(manyRanges())},
	} {
		b.Run(c.name+", up", func(b *testing.B) { upload(b, c.dial(networktest.PublicAddr+":"+networktest.DrainPort)) })
		b.Run(c.name+", down", func(b *testing.B) { download(b, c.dial(networktest.PublicAddr+":"+networktest.SourcePort)) })
	}
}

// blockBytes is what one round moves.
const blockBytes = 32 << 20

func upload(b *testing.B, conn net.Conn) {
	defer conn.Close()
	block := make([]byte, blockBytes)
	b.SetBytes(blockBytes)
	sent := 0
	for b.Loop() {
		n, err := conn.Write(block)
		if err != nil {
			b.Fatal(err)
		}
		sent += n
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		b.Fatal(err)
	}
	if said, err := io.ReadAll(conn); err != nil || string(said) != fmt.Sprintln(sent) {
		b.Fatalf("%d bytes were sent, %q arrived, %v", sent, said, err)
	}
}

func download(b *testing.B, conn net.Conn) {
	defer conn.Close()
	block := make([]byte, 1<<20)
	b.SetBytes(blockBytes)
	for b.Loop() {
		for left := blockBytes; left > 0; left -= len(block) {
			if _, err := io.ReadFull(conn, block); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkPackets puts frames on a slot's tap one by one, as a VM's device does with what
// its guest sends in small pieces, and counts those that the rules let through.
func BenchmarkPackets(b *testing.B) {
	w := networktest.New(b)
	w.In(b, w.Outside, func() error {
		c, err := net.ListenPacket("udp4", networktest.PublicAddr+":9") // nobody reads, but nobody answers either
		if err == nil {
			b.Cleanup(func() { c.Close() })
		}
		return err
	})
	slot := acquire(b, w.Pool(b, network.Settings{Prepared: 1}), "bench", kiln.EgressPolicy{})
	tap := w.Tap(b, slot.Config())
	frame := networktest.Datagram(networktest.PublicAddr, 9, 64)
	for _, c := range []struct {
		name   string
		policy kiln.EgressPolicy
	}{
		{"allow_all", kiln.EgressPolicy{}}, {"one range", kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr}}}, {"10,000 ranges", manyRanges()},
	} {
		b.Run(c.name, func(b *testing.B) {
			set(b, slot, c.policy)
			before := must(slot.Use())
			const batch = 10_000
			rounds := 0
			for b.Loop() {
				for range batch {
					if _, err := tap.Write(frame); err != nil {
						b.Fatal(err)
					}
				}
				rounds++
			}
			if passed := must(slot.Use()).Minus(before); passed.SentBytes == 0 || passed.RefusedPackets > 0 {
				b.Errorf("passed %+v", passed)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(rounds*batch), "ns/packet")
		})
	}
}
