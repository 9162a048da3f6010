package tandem

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"
)

// Both implementations must give what the standard library gives.
func TestDigestsAreSHA256(t *testing.T) {
	data := make([]byte, 1<<20)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	for _, fast := range []bool{false, accelerated()} {
		t.Run(fmt.Sprintf("accelerated %v", fast), func(t *testing.T) {
			h := newHash(fast)
			if h.Sum() != sha256.Sum256(nil) {
				t.Error("the empty stream has another digest")
			}
			end := 0
			for _, n := range []int{0, 64, 128, 4096, 262144, 64 * 1001, 0, 64} {
				p := data[end : end+n]
				if got := h.Chunk(p); got != sha256.Sum256(p) {
					t.Errorf("%d bytes have the digest %x, want %x", n, got, sha256.Sum256(p))
				}
				end += n
				if h.Sum() != sha256.Sum256(data[:end]) {
					t.Errorf("the first %d bytes have another digest", end)
				}
			}
		})
	}
}

func TestOddLengthsAreRefused(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("accepted")
		}
	}()
	New().Chunk(make([]byte, 65))
}

func BenchmarkTandem(b *testing.B) {
	p := make([]byte, 256<<10)
	h := New()
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		h.Chunk(p)
	}
}

func BenchmarkTwice(b *testing.B) {
	p := make([]byte, 256<<10)
	h := sha256.New()
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		h.Write(p)
		sha256.Sum256(p)
	}
}
