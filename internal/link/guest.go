package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/yamux"
)

// Listener is the guest's side of a link. It is a [net.Listener] whose connections come
// from whichever host session is current.
type Listener struct {
	port   io.ReadWriteCloser
	accept chan net.Conn
	cancel context.CancelFunc
	done   chan struct{} // closed when the listener has ended
	err    error         // why; valid once done is closed

	writing sync.Mutex // held during every write to port

	mu      sync.Mutex
	current *guestSession
	ended   bool // no session begins any more

	calls     atomic.Pointer[func([]byte) []byte]
	lastCall  nonce  // used by the reader only, as is what follows
	lastReply []byte // a whole frame
}

// Serve starts reading port. A Read of port that returns [io.EOF] means that the host
// has gone and that the next Read waits for another host; any other error ends the
// listener. [OpenPort] returns such a port. The listener owns port from now on; when ctx
// ends it closes itself.
func Serve(ctx context.Context, port io.ReadWriteCloser) *Listener {
	ctx, cancel := context.WithCancel(ctx)
	l := &Listener{port: port, accept: make(chan net.Conn), cancel: cancel, done: make(chan struct{})}
	end := func(err error) {
		l.mu.Lock()
		l.ended = true
		l.mu.Unlock()
		l.replace(nil)
		l.err = err
		close(l.done)
		cancel()
	}
	var once sync.Once
	context.AfterFunc(ctx, func() {
		_ = port.Close() // which need not end a Read that waits
		once.Do(func() { end(net.ErrClosed) })
	})
	go func() {
		l.urgent(true)
		err := l.run(ctx)
		once.Do(func() { end(err) })
	}()
	return l
}

// urgent tells the port that the next words are awaited by everybody, or no longer. They
// are while there is no session: a clone has to become itself before anything else in it
// runs.
func (l *Listener) urgent(on bool) {
	if p, ok := l.port.(interface{ Urgent(on bool) }); ok {
		p.Urgent(on)
	}
}

// Accept returns the next connection. It fails once the listener has ended.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.done:
		return nil, fmt.Errorf("link: accept: %w", l.err)
	}
}

// Close closes the port and all connections.
func (l *Listener) Close() error {
	l.cancel()
	<-l.done
	return nil
}

// Addr returns a name for logs.
func (l *Listener) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "link" }
func (addr) String() string  { return "host" }

// run reads frames until the port fails.
func (l *Listener) run(ctx context.Context) error {
	frames := newFrameReader(l.port, maxHostPayload)
	for {
		f, err := frames.next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, errCut), errors.Is(err, errLost):
			l.replace(nil)
		case err != nil:
			return err
		case f.kind == kindHello && len(f.payload) == nonceSize:
			l.urgent(false)
			if err := l.welcome(ctx, nonce(f.payload)); err != nil {
				return err
			}
		case f.kind == kindData:
			l.deliver(f)
		case f.kind == kindCall && len(f.payload) >= nonceSize:
			if err := l.answer(nonce(f.payload), f.payload[nonceSize:], l.handler()); err != nil {
				return err
			}
		case f.kind == kindAttend && len(f.payload) == nonceSize:
			if err := l.attend(nonce(f.payload)); err != nil {
				return err
			}
		case f.kind == kindBye && l.isEpoch(f.epoch):
			l.replace(nil)
			l.urgent(true)
		}
	}
}

// welcome answers a hello and makes its session the current one.
func (l *Listener) welcome(ctx context.Context, n nonce) error {
	l.mu.Lock()
	known := l.current != nil && l.current.nonce == n
	l.mu.Unlock()
	if !known {
		l.replace(nil) // from here on no writer of the old session can start
	}
	l.writing.Lock()
	_, err := l.port.Write(appendFrame(nil, kindWelcome, n.epoch(), n[:]))
	l.writing.Unlock()
	if err != nil || known {
		return err
	}
	s, err := newGuestSession(l, n)
	if err != nil {
		return err
	}
	l.replace(s)
	go l.acceptFrom(ctx, s)
	return nil
}

// replace ends the current session, if any, and makes s the current one.
func (l *Listener) replace(s *guestSession) {
	l.mu.Lock()
	old := l.current
	l.current = s
	if l.ended && s != nil { // the reader was making it while the listener ended
		old, l.current = s, nil
	}
	l.mu.Unlock()
	if old != nil {
		old.end()
	}
}

func (l *Listener) isCurrent(s *guestSession) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current == s
}

func (l *Listener) isEpoch(epoch uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current != nil && l.current.nonce.epoch() == epoch
}

func (l *Listener) deliver(f frame) {
	l.mu.Lock()
	s := l.current
	l.mu.Unlock()
	if s != nil && s.nonce.epoch() == f.epoch {
		s.in.put(f.payload)
	}
}

// acceptFrom hands the connections of s to Accept.
func (l *Listener) acceptFrom(ctx context.Context, s *guestSession) {
	for {
		st, err := s.mux.AcceptStreamWithContext(ctx)
		if err != nil {
			return
		}
		select {
		case l.accept <- &stream{Stream: st}:
		case <-s.mux.CloseChan():
			return
		case <-ctx.Done():
			return
		}
	}
}

// guestSession is one session; it is what yamux sees as its connection.
type guestSession struct {
	l     *Listener
	nonce nonce
	in    *inbox
	out   outgoing
	mux   *yamux.Session
}

func newGuestSession(l *Listener, n nonce) (*guestSession, error) {
	s := &guestSession{l: l, nonce: n, in: newInbox(), out: outgoing{epoch: n.epoch(), limit: maxGuestPayload}}
	mux, err := yamux.Server(s, muxConfig())
	s.mux = mux
	return s, err
}

// end closes the session without waiting for a write of it that the port still holds.
func (s *guestSession) end() {
	_ = s.Close()
	go func() { _ = s.mux.Close() }()
}

func (s *guestSession) Read(p []byte) (int, error) { return s.in.take(p) }

// Write sends p. Only yamux's one sender calls it. Each frame is one write, because that is
// what the port passes on in one piece.
func (s *guestSession) Write(p []byte) (int, error) {
	l := s.l
	l.writing.Lock()
	defer l.writing.Unlock()
	for rest := s.out.add(p); len(rest) > 0; {
		if !l.isCurrent(s) {
			return 0, io.ErrClosedPipe
		}
		n := min(len(rest), maxGuestFrame)
		if _, err := l.port.Write(rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

// Close makes Read fail, at once, and with it yamux's session.
func (s *guestSession) Close() error {
	s.in.close()
	return nil
}

var _ io.ReadWriteCloser = (*guestSession)(nil)
