package ext4

import (
	"crypto/sha256"
	"fmt"
	"os"
	"sync"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/tandem"
)

// ChunkSize is the grid in bytes on which file data is placed and over which chunk
// digests are taken.
const ChunkSize = 256 << 10

const chunkBlocks = ChunkSize / BlockSize

// Chunk names a piece of the image of ChunkSize bytes; the last one may be shorter.
type Chunk struct {
	Index  int64
	Digest [sha256.Size]byte // SHA-256 of the bytes
	Zero   bool              // nothing but a hole
}

// output writes an image from front to back, once: data to the file, leaving holes where
// there is none, and everything to the digest of the whole and to that of each chunk.
// Writing and hashing go on beside the caller, each on a processor of its own where there
// are enough. The first error sticks; what is written after it is dropped.
type output struct {
	file  *os.File
	pos   int64 // next byte
	cur   *chunkBuf
	store chan *chunkBuf
	hash  chan *chunkBuf
	free  chan *chunkBuf
	done  sync.WaitGroup
	sum   kiln.Digest

	mu  sync.Mutex
	err error
}

type chunkBuf struct {
	data  [ChunkSize]byte
	used  int
	spans []span // what is not a hole
	index int64
}

type span struct{ from, to int }

// outputDepth is how many chunks are under way at once.
const outputDepth = 8

func newOutput(file *os.File, chunk func(Chunk)) *output {
	o := &output{
		file:  file,
		store: make(chan *chunkBuf, outputDepth),
		hash:  make(chan *chunkBuf, outputDepth),
		free:  make(chan *chunkBuf, outputDepth),
	}
	for range outputDepth {
		o.free <- new(chunkBuf)
	}
	o.cur = <-o.free
	o.done.Add(2)
	go o.storeAll()
	go o.hashAll(chunk)
	return o
}

// storeAll writes chunks to the file.
func (o *output) storeAll() {
	defer o.done.Done()
	defer close(o.hash)
	for c := range o.store {
		if o.failed() == nil {
			for _, s := range c.spans {
				if _, err := o.file.WriteAt(c.data[s.from:s.to], c.index*ChunkSize+int64(s.from)); err != nil {
					o.fail(fmt.Errorf("write image: %w", err))
					break
				}
			}
		}
		o.hash <- c
	}
}

// hashAll takes the digests.
func (o *output) hashAll(chunk func(Chunk)) {
	defer o.done.Done()
	h := tandem.New()
	for c := range o.hash {
		if o.failed() == nil {
			chunk(Chunk{Index: c.index, Digest: h.Chunk(c.data[:c.used]), Zero: len(c.spans) == 0})
		}
		c.used, c.spans = 0, c.spans[:0]
		o.free <- c
	}
	o.sum = kiln.DigestFromSum(h.Sum())
}

func (o *output) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
}

func (o *output) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// space returns where the next bytes go: at least one, at most what is left of the
// current chunk. The caller fills a part of it and calls advance.
func (o *output) space() []byte { return o.cur.data[o.cur.used:] }

// advance takes over n bytes of space as data.
func (o *output) advance(n int) {
	c := o.cur
	if k := len(c.spans); k > 0 && c.spans[k-1].to == c.used {
		c.spans[k-1].to += n
	} else if n > 0 {
		c.spans = append(c.spans, span{c.used, c.used + n})
	}
	o.move(n)
}

func (o *output) move(n int) {
	o.cur.used += n
	o.pos += int64(n)
	if o.cur.used == ChunkSize {
		o.submit()
	}
}

func (o *output) submit() {
	o.cur.index = (o.pos - 1) / ChunkSize
	o.store <- o.cur
	o.cur = <-o.free
}

// write appends p.
func (o *output) write(p []byte) {
	for len(p) > 0 {
		n := copy(o.space(), p)
		o.advance(n)
		p = p[n:]
	}
}

// holeTo leaves a hole up to block nr, which lies at or after the current position.
func (o *output) holeTo(nr uint64) {
	for rest := int64(nr)*BlockSize - o.pos; rest > 0; {
		s := o.space()
		n := int(min(int64(len(s)), rest))
		clear(s[:n])
		o.move(n)
		rest -= int64(n)
	}
}

// block returns the number of the block that the next byte begins.
func (o *output) block() uint64 { return uint64(o.pos / BlockSize) }

// close waits until all is written and returns the digest of the whole.
func (o *output) close() (kiln.Digest, error) {
	if o.cur.used > 0 {
		o.submit()
	}
	close(o.store)
	o.done.Wait()
	if err := o.failed(); err != nil {
		return "", err
	}
	if err := o.file.Truncate(o.pos); err != nil {
		return "", fmt.Errorf("write image: %w", err)
	}
	return o.sum, nil
}
