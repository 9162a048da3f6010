package tandem

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// Size is the size of a digest in bytes.
const Size = sha256.Size

// Hash is one stream. It is not safe for concurrent use.
type Hash struct {
	fast  bool
	whole state
	bytes uint64
	plain hash.Hash // instead of whole where the processor has no SHA extensions
}

// state is what SHA-256 carries from block to block.
type state [8]uint32

var initial = state{
	0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
}

// New returns the hash of an empty stream.
func New() *Hash { return newHash(accelerated()) }

func newHash(fast bool) *Hash {
	if fast {
		return &Hash{fast: true, whole: initial}
	}
	return &Hash{plain: sha256.New()}
}

// Chunk appends p to the stream and returns the digest of p alone. The length of p must
// be a multiple of [sha256.BlockSize]; otherwise Chunk panics.
func (h *Hash) Chunk(p []byte) [Size]byte {
	if len(p)%sha256.BlockSize != 0 {
		panic("tandem: chunk of a length that is no multiple of 64")
	}
	if !h.fast {
		done := make(chan struct{})
		go func() {
			h.plain.Write(p)
			close(done)
		}()
		sum := sha256.Sum256(p)
		<-done
		return sum
	}
	own := initial
	compress(&h.whole, &own, p)
	h.bytes += uint64(len(p))
	return own.finish(uint64(len(p)))
}

// Sum returns the digest of all that was appended. The stream may go on afterwards.
func (h *Hash) Sum() [Size]byte {
	if !h.fast {
		return [Size]byte(h.plain.Sum(nil))
	}
	return h.whole.finish(h.bytes)
}

// finish returns the digest of a message of that many bytes, whose blocks s has taken.
func (s state) finish(bytes uint64) (sum [Size]byte) {
	var padding [sha256.BlockSize]byte
	padding[0] = 0x80
	binary.BigEndian.PutUint64(padding[56:], bytes*8)
	var unused state
	compress(&s, &unused, padding[:])
	for i, w := range s {
		binary.BigEndian.PutUint32(sum[4*i:], w)
	}
	return sum
}
