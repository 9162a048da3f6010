package extsort

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sort"
	"testing"
)

func TestSorterMatchesInMemorySort(t *testing.T) {
	for _, limit := range []int{1 << 16, 1 << 30} {
		for _, n := range []int{0, 1, 2, 1000, 20000} {
			t.Run(fmt.Sprintf("%d records, limit %d", n, limit), func(t *testing.T) {
				s := NewSorter(t.TempDir(), limit)
				defer s.Close()
				rnd := rand.New(rand.NewPCG(1, 2))
				type rec struct{ k, v []byte }
				var want []rec
				for i := range n {
					k := make([]byte, rnd.IntN(20))
					for j := range k {
						k[j] = byte(rnd.IntN(3)) // many ties and common prefixes
					}
					r := rec{k, fmt.Appendf(nil, "%d", i)}
					want = append(want, r)
					if err := s.Add(r.k, r.v); err != nil {
						t.Fatal(err)
					}
				}
				sort.SliceStable(want, func(i, j int) bool { return bytes.Compare(want[i].k, want[j].k) < 0 })
				for range 2 {
					i := 0
					it := s.Sorted()
					for ; it.Next(); i++ {
						if i >= len(want) || !bytes.Equal(it.Key, want[i].k) || !bytes.Equal(it.Value, want[i].v) {
							t.Fatalf("record %d: got %x=%s", i, it.Key, it.Value)
						}
					}
					if it.Err() != nil || i != len(want) {
						t.Fatalf("%d records, error %v; want %d", i, it.Err(), len(want))
					}
				}
			})
		}
	}
}

func TestLogKeepsOrder(t *testing.T) {
	for _, limit := range []int{1 << 12, 1 << 30} {
		l := NewLog(t.TempDir(), limit)
		defer l.Close()
		for i := range 5000 {
			if err := l.Add(fmt.Appendf(nil, "record %d", i)); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			i := 0
			it := l.All()
			for ; it.Next(); i++ {
				if want := fmt.Sprintf("record %d", i); string(it.Value) != want {
					t.Fatalf("got %q, want %q", it.Value, want)
				}
			}
			if it.Err() != nil || i != 5000 {
				t.Fatalf("%d records, error %v", i, it.Err())
			}
		}
	}
}
