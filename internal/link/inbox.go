package link

import (
	"io"
	"sync"
)

// inboxSize is how much an inbox holds in bytes. Who puts and who takes then take turns that
// are longer than a frame.
const inboxSize = 64 << 10

// inbox is what has been read for a session and not yet been taken by it.
type inbox struct {
	mu     sync.Mutex
	change sync.Cond // of what follows
	buffer []byte
	from   int // where in buffer the content begins
	closed bool
}

func newInbox() *inbox {
	b := &inbox{}
	b.change.L = &b.mu
	return b
}

// put adds p when there is room. Once the inbox is closed nobody wants it.
func (b *inbox) put(p []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.buffer)-b.from > 0 && len(b.buffer)-b.from+len(p) > inboxSize && !b.closed {
		b.change.Wait()
	}
	if b.closed {
		return
	}
	if b.from > 0 && len(b.buffer)+len(p) > cap(b.buffer) {
		b.buffer = b.buffer[:copy(b.buffer, b.buffer[b.from:])]
		b.from = 0
	}
	b.buffer = append(b.buffer, p...)
	b.change.Broadcast()
}

// take moves what is there to p, and waits when that is nothing.
func (b *inbox) take(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.from == len(b.buffer) && !b.closed {
		b.change.Wait()
	}
	if b.closed {
		return 0, io.ErrClosedPipe
	}
	n := copy(p, b.buffer[b.from:])
	b.from += n
	if b.from == len(b.buffer) {
		b.buffer, b.from = b.buffer[:0], 0
	}
	b.change.Broadcast()
	return n, nil
}

// close makes put and take return at once, those that wait included.
func (b *inbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.change.Broadcast()
}
