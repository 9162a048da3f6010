package link

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
)

// wire stands in for a virtio-serial port: one guest end that lives on, and host ends
// that come, are cut off after any number of bytes, and go.
type wire struct {
	mu      sync.Mutex
	changed *sync.Cond
	in      []byte   // on the way to the guest
	host    net.Conn // nil: nobody is connected
	eof     bool     // the guest has yet to be told that the host went
	budget  int      // bytes that still pass to the host before the cut
	closed  bool
	reads   int
}

const wireBuffer = 4096

func newWire() *wire {
	w := &wire{}
	w.changed = sync.NewCond(&w.mu)
	return w
}

// attach connects a host. Its connection is cut after toGuest or toHost bytes (negative:
// never); the guest notices only if tell is set.
func (w *wire) attach(t testing.TB, toGuest, toHost int, tell bool) net.Conn {
	t.Helper()
	host, far := socketPair(t)
	w.mu.Lock()
	w.host, w.budget, w.eof = far, toHost, false // a port with a host never tells of a former one
	w.changed.Broadcast()
	w.mu.Unlock()
	go func() {
		w.pump(far, toGuest)
		w.detach(far, tell)
	}()
	return host
}

func (w *wire) detach(far net.Conn, tell bool) {
	_ = far.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.host == far {
		w.host = nil
		w.eof = w.eof || tell
		w.changed.Broadcast()
	}
}

// pump moves bytes from the host to the guest until limit or the end.
func (w *wire) pump(far net.Conn, limit int) {
	buf := make([]byte, 1500)
	for limit != 0 {
		n, err := far.Read(buf)
		if err != nil {
			return
		}
		if limit > 0 {
			n = min(n, limit)
			limit -= n
		}
		w.mu.Lock()
		for len(w.in) > wireBuffer && !w.closed && w.host == far {
			w.changed.Wait()
		}
		if w.host != far { // its successor has connected: what it had left to say is lost
			w.mu.Unlock()
			return
		}
		w.in = append(w.in, buf[:n]...)
		w.changed.Broadcast()
		w.mu.Unlock()
	}
}

func (w *wire) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads++
	for len(w.in) == 0 && !w.eof && !w.closed {
		w.changed.Wait()
	}
	if w.closed {
		return 0, os.ErrClosed
	}
	if len(w.in) == 0 {
		w.eof = false
		return 0, io.EOF
	}
	n := copy(p, w.in)
	w.in = w.in[n:]
	w.changed.Broadcast()
	return n, nil
}

// Write loses the tail of p when the connection is cut within p, as QEMU does.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	for w.host == nil && !w.closed {
		w.changed.Wait()
	}
	if w.closed {
		w.mu.Unlock()
		return 0, os.ErrClosed
	}
	far, n, cut := w.host, len(p), false
	if w.budget >= 0 {
		n = min(n, w.budget)
		w.budget -= n
		cut = w.budget == 0
	}
	w.mu.Unlock()
	_, _ = far.Write(p[:n])
	if cut {
		_ = far.Close()
	}
	return len(p), nil
}

func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.host != nil {
		_ = w.host.Close()
	}
	w.changed.Broadcast()
	return nil
}

func (w *wire) readCount() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reads
}

// socketPair returns two connected Unix stream sockets.
func socketPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conns[i], err = net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conns[i].Close() })
	}
	return conns[0], conns[1]
}
