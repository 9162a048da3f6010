package network_test

import (
	"context"
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
// namespace, and compares it with the same guest on a bare link. Copying frames between
// two taps is part of the former and would be a VM's work.
func BenchmarkThroughput(b *testing.B) {
	w := networktest.New(b)
	w.TCP(b, networktest.PublicAddr+":80")
	slot := acquire(b, w.Pool(b, network.Settings{Prepared: 1}), "bench", kiln.EgressPolicy{})
	g := w.Guest(b, slot.Config())
	forwarded := func(policy kiln.EgressPolicy) func(b *testing.B) {
		return func(b *testing.B) {
			set(b, slot, policy)
			pump(b, must(g.Dial("tcp", networktest.PublicAddr+":80")))
		}
	}
	b.Run("bare veth", func(b *testing.B) {
		var conn net.Conn
		w.In(b, w.Host, func() (err error) {
			conn, err = net.Dial("tcp", networktest.PublicAddr+":80")
			return err
		})
		pump(b, conn)
	})
	b.Run("slot, allow_all", forwarded(kiln.EgressPolicy{}))
	b.Run("slot, one range", forwarded(kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr}}))
	b.Run("slot, 10,000 ranges", forwarded(manyRanges()))
}

// pump echoes blocks through conn; what is counted is one direction.
func pump(b *testing.B, conn net.Conn) {
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, len(networktest.Greeting))); err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 1<<20)
	b.SetBytes(int64(len(block)))
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	for b.Loop() {
		done := make(chan error, 1)
		go func() {
			_, err := conn.Write(block)
			done <- err
		}()
		if _, err := io.ReadFull(conn, make([]byte, len(block))); err != nil {
			b.Fatal(err)
		}
		select {
		case err := <-done:
			if err != nil {
				b.Fatal(err)
			}
		case <-ctx.Done():
		}
	}
}
