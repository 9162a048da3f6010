package link

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// helloInterval is how often an unanswered hello is repeated. The first one waits in the
// channel until the guest opens its port; repeating covers a guest that reopens it.
const helloInterval = time.Second

// Session is the host's side of a link.
type Session struct {
	conn  net.Conn
	mux   *yamux.Session
	epoch uint64
	bye   sync.Once
}

// Dial takes over conn, ends whatever session the guest had on it, and returns a new
// one as soon as the guest answers or ctx ends. After an error another Dial on the same
// conn may follow.
func Dial(ctx context.Context, conn net.Conn) (*Session, error) {
	var n nonce
	_, _ = rand.Read(n[:]) // never fails: crypto/rand.Read aborts the program instead
	r := bufio.NewReaderSize(conn, maxGuestFrame)
	if err := handshake(ctx, conn, r, n); err != nil {
		return nil, fmt.Errorf("link handshake: %w", err)
	}
	mux, err := yamux.Client(newHostCarrier(conn, r, n.epoch()), muxConfig())
	if err != nil {
		return nil, err
	}
	return &Session{conn: conn, mux: mux, epoch: n.epoch()}, nil
}

// handshake sends hello, repeatedly, and reads until the answer to it.
func handshake(ctx context.Context, conn net.Conn, r *bufio.Reader, n nonce) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	hello := behindZeros(kindHello, n, nil)
	return exchange(ctx, conn, hello, hello, helloInterval, func() error { return readWelcome(r, n) })
}

// behindZeros returns a frame that begins with n, behind the zeros that complete whatever
// the guest may be waiting for the end of.
func behindZeros(kind byte, n nonce, payload []byte) []byte {
	return appendFrame(make([]byte, maxHostFrame, 2*maxHostFrame), kind, n.epoch(), append(n[:], payload...))
}

// exchange writes a message, and from then on another in intervals, until read returns.
func exchange(ctx context.Context, conn net.Conn, first, again []byte, interval time.Duration, read func() error) error {
	interrupted := make(chan struct{})
	keepGoing := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = conn.SetDeadline(past)
	})
	answered := make(chan struct{})
	sent := make(chan error, 1)
	go func() { sent <- repeat(conn, first, again, interval, answered) }()

	err := read()
	close(answered)
	if err != nil {
		_ = conn.SetWriteDeadline(past)
	}
	err = errors.Join(err, <-sent)
	if !keepGoing() {
		<-interrupted
		err = ctx.Err()
	}
	if derr := conn.SetDeadline(time.Time{}); err == nil {
		err = derr
	}
	return err
}

// repeat writes first, then again in intervals until an answer has come: a guest that does
// not listen yet loses what is sent to it.
func repeat(conn net.Conn, first, again []byte, interval time.Duration, answered <-chan struct{}) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for next := first; ; next = again {
		if _, err := conn.Write(next); err != nil {
			return err
		}
		select {
		case <-answered:
			return nil
		case <-tick.C:
		}
	}
}

// readWelcome discards what comes before the guest's answer to n.
func readWelcome(r *bufio.Reader, n nonce) error {
	want := appendFrame(nil, kindWelcome, n.epoch(), n[:])
	last := make([]byte, 0, 2*maxGuestFrame)
	for {
		if _, err := r.Peek(1); err != nil {
			return err
		}
		chunk, _ := r.Peek(r.Buffered())
		keep := min(len(last), len(want)-1)
		last = append(last[:copy(last, last[len(last)-keep:])], chunk...)
		if i := bytes.Index(last, want); i >= 0 {
			_, err := r.Discard(i + len(want) - keep)
			return err
		}
		if _, err := r.Discard(len(chunk)); err != nil {
			return err
		}
	}
}

// Open opens a connection to the daemon.
func (s *Session) Open(ctx context.Context) (net.Conn, error) {
	type result struct {
		st  *yamux.Stream
		err error
	}
	done := make(chan result, 1)
	go func() {
		st, err := s.mux.OpenStream()
		done <- result{st, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("link: open: %w", r.err)
		}
		return &stream{Stream: r.st}, nil
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				_ = r.st.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// Done is closed when the session has ended: by Close, because the stream ended, or
// because the guest broke the protocol.
func (s *Session) Done() <-chan struct{} { return s.mux.CloseChan() }

// byeTimeout bounds the last words to a guest that may not be reading.
const byeTimeout = 100 * time.Millisecond

// Close ends the session and its connections, and tells the guest so, if it listens. The
// stream below stays open and belongs to the caller, who may Dial on it again.
func (s *Session) Close() error {
	err := s.mux.Close()
	s.bye.Do(func() {
		_ = s.conn.SetDeadline(time.Now().Add(byeTimeout))
		// Behind zeros, like hello: the last write may have been interrupted.
		_, _ = s.conn.Write(appendFrame(make([]byte, maxHostFrame, 2*maxHostFrame), kindBye, s.epoch, nil))
	})
	return errors.Join(err, s.conn.SetDeadline(time.Time{}))
}

// hostCarrier is what yamux sees as its connection on the host.
type hostCarrier struct {
	conn   net.Conn
	frames *frameReader
	epoch  uint64
	rest   []byte // of the payload that was read last
	out    outgoing
	once   sync.Once
}

func newHostCarrier(conn net.Conn, r *bufio.Reader, epoch uint64) *hostCarrier {
	return &hostCarrier{conn: conn, frames: newFrameReader(r, maxGuestPayload), epoch: epoch, out: outgoing{epoch: epoch, limit: maxHostPayload}}
}

func (c *hostCarrier) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		f, err := c.frames.next()
		if err != nil {
			return 0, err
		}
		// A repeated hello is answered repeatedly.
		if f.kind == kindWelcome && f.epoch == c.epoch {
			continue
		}
		if f.kind != kindData || f.epoch != c.epoch {
			return 0, errLost
		}
		c.rest = f.payload
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write sends p in as few writes to the stream as possible. Only yamux's one sender
// calls it.
func (c *hostCarrier) Write(p []byte) (int, error) {
	if frames := c.out.add(p); len(frames) > 0 {
		if _, err := c.conn.Write(frames); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// Close interrupts Read and Write without closing the stream.
func (c *hostCarrier) Close() error {
	var err error
	c.once.Do(func() { err = c.conn.SetDeadline(past) })
	return err
}
