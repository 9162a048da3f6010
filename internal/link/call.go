package link

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// MaxCall is the longest request of a [Call] in bytes.
const MaxCall = maxHostPayload - nonceSize

// ErrCallTooLong is returned for a request that is longer than [MaxCall].
var ErrCallTooLong = errors.New("link: the request does not fit into one frame")

// callInterval is how long the host waits for a reply before it takes the stream for one
// that was cut off.
const callInterval = 500 * time.Millisecond

// Call sends request to the guest and returns its reply. The guest need not run yet: what
// is sent waits for it. conn must carry no session.
func Call(ctx context.Context, conn net.Conn, request []byte) ([]byte, error) {
	if len(request) > MaxCall {
		return nil, ErrCallTooLong
	}
	return call(ctx, conn, kindCall, request)
}

// Attend has the guest wait for the next call without sleeping, for a moment. When it
// returns nil the guest does. conn must carry no session.
func Attend(ctx context.Context, conn net.Conn) error {
	_, err := call(ctx, conn, kindAttend, nil)
	return err
}

// call sends a frame with a nonce and a request and returns the reply.
func call(ctx context.Context, conn net.Conn, kind byte, request []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var n nonce
	_, _ = rand.Read(n[:]) // never fails: crypto/rand.Read aborts the program instead
	again := behindZeros(kind, n, request)
	var reply []byte
	err := exchange(ctx, conn, again[maxHostFrame:], again, callInterval, func() (err error) {
		reply, err = readReply(conn, n)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("link call: %w", err)
	}
	return reply, nil
}

// readReply discards what comes before the reply to n. Nothing else can contain the nonce.
func readReply(r io.Reader, n nonce) ([]byte, error) {
	mark := append(binary.BigEndian.AppendUint64(nil, n.epoch()), n[:]...)
	const before = 1 + 2 // kind and length
	in := bufio.NewReaderSize(r, maxGuestFrame)
	for {
		if _, err := in.Peek(before + len(mark)); err != nil {
			return nil, err
		}
		chunk, _ := in.Peek(in.Buffered()) // it is there
		i := bytes.Index(chunk, mark)
		if i < before {
			keep := before + len(mark) - 1
			if i >= 0 { // cannot be a reply
				keep = len(chunk) - i - 1
			}
			if _, err := in.Discard(len(chunk) - keep); err != nil {
				return nil, err
			}
			continue
		}
		if _, err := in.Discard(i - before); err != nil {
			return nil, err
		}
		f, err := newFrameReader(in, maxGuestPayload).next()
		if err != nil {
			return nil, err
		}
		if f.kind != kindReply || len(f.payload) < nonceSize {
			return nil, errLost
		}
		return f.payload[nonceSize:], nil
	}
}

// HandleCalls makes f answer calls. It is called by the goroutine that reads the port,
// which meanwhile reads nothing else, so it must be quick. Its argument is valid during
// the call only; a reply is at most [MaxCall] long.
func (l *Listener) HandleCalls(f func(request []byte) (reply []byte)) { l.calls.Store(&f) }

// handler returns what answers calls, or nil.
func (l *Listener) handler() func([]byte) []byte {
	if f := l.calls.Load(); f != nil {
		return *f
	}
	return nil
}

// attend makes the port watchful and tells the host so.
func (l *Listener) attend(n nonce) error {
	if p, ok := l.port.(interface{ Attend() error }); ok {
		if err := p.Attend(); err != nil {
			return err
		}
	}
	return l.answer(n, nil, func([]byte) []byte { return nil })
}

// answer carries out a call by f, unless it was carried out already, and replies. A guest
// that handles no calls says nothing.
func (l *Listener) answer(n nonce, request []byte, f func([]byte) []byte) error {
	if f == nil {
		return nil
	}
	if n != l.lastCall || l.lastReply == nil {
		l.lastCall, l.lastReply = n, appendFrame(l.lastReply[:0], kindReply, n.epoch(), n[:], f(request))
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	_, err := l.port.Write(l.lastReply)
	return err
}
