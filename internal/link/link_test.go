package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// serve runs handle for every connection that arrives on w.
func serve(t testing.TB, w *wire, handle func(net.Conn)) *Listener {
	t.Helper()
	l := Serve(t.Context(), w)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); handle(c) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func dial(t testing.TB, conn net.Conn) *Session {
	t.Helper()
	s, err := Dial(testContext(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func roundTrip(ctx context.Context, s *Session, b []byte) ([]byte, error) {
	c, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	go func() {
		_, _ = c.Write(b)
		_ = c.(*stream).CloseWrite()
	}()
	return io.ReadAll(c)
}

func TestConcurrentConnections(t *testing.T) {
	w := newWire()
	serve(t, w, echo)
	s := dial(t, w.attach(t, -1, -1, false))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			want := bytes.Repeat([]byte{byte(i)}, 1+i*30_000)
			got, err := roundTrip(testContext(t), s, want)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("connection %d: %d bytes back of %d, %v", i, len(got), len(want), err)
			}
		})
	}
	wg.Wait()
}

// The central promise: hosts are cut off anywhere, in either direction, with and without
// the guest noticing, and no session ever sees a byte of another.
func TestCutsNeverMixSessions(t *testing.T) {
	w := newWire()
	var mixed sync.Map
	serve(t, w, func(c net.Conn) {
		var first [1]byte
		if _, err := io.ReadFull(c, first[:]); err != nil {
			return
		}
		buf := make([]byte, 8192)
		for {
			n, err := c.Read(buf)
			for _, b := range buf[:n] {
				if b != first[0] {
					mixed.Store(fmt.Sprintf("guest saw %#x in a connection of %#x", b, first[0]), true)
				}
			}
			if err != nil {
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 150 {
		mark := byte(i%250 + 1)
		toGuest, toHost := -1, -1
		if rng.IntN(2) == 0 {
			toGuest = 1 + rng.IntN(30_000)
		} else {
			toHost = 1 + rng.IntN(30_000)
		}
		conn := w.attach(t, toGuest, toHost, rng.IntN(3) == 0)
		ctx, cancel := context.WithTimeout(testContext(t), 10*time.Second)
		if s, err := Dial(ctx, conn); err == nil {
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					got, _ := roundTrip(ctx, s, bytes.Repeat([]byte{mark}, 20_000))
					if n := bytes.Count(got, []byte{mark}); n != len(got) {
						t.Errorf("session %d saw %d foreign bytes", i, len(got)-n)
					}
				})
			}
			wg.Wait()
			_ = s.Close()
		}
		_ = conn.Close()
		cancel()
	}
	mixed.Range(func(k, _ any) bool { t.Error(k); return true })

	got, err := roundTrip(testContext(t), dial(t, w.attach(t, -1, -1, false)), []byte("xxxx"))
	if err != nil || string(got) != "xxx" {
		t.Fatalf("after all cuts: %q, %v", got, err)
	}
}

func TestDialAgainOnTheSameConnection(t *testing.T) {
	w := newWire()
	serve(t, w, echo)
	conn := w.attach(t, -1, -1, false)
	for i := range 20 {
		s := dial(t, conn)
		c, err := s.Open(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(bytes.Repeat([]byte{byte(i)}, 100_000)); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil { // with 100 kB on their way back
			t.Fatal(err)
		}
		<-s.Done()
	}
	got, err := roundTrip(testContext(t), dial(t, conn), []byte("still there"))
	if err != nil || string(got) != "still there" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestDialWaitsForTheGuest(t *testing.T) {
	w := newWire()
	conn := w.attach(t, -1, -1, false)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := Dial(ctx, conn)
		failed <- err
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want context.Canceled", err)
	}
	serve(t, w, echo)
	if got, err := roundTrip(testContext(t), dial(t, conn), []byte("hi")); err != nil || string(got) != "hi" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestDialFailsWhenTheStreamEnds(t *testing.T) {
	a, b := socketPair(t)
	_ = b.Close()
	if _, err := Dial(testContext(t), a); err == nil {
		t.Fatal("no error")
	}
}

func TestGuestGarbageDoesNotStopAHandshake(t *testing.T) {
	w := newWire()
	serve(t, w, echo)
	conn := w.attach(t, -1, -1, false)
	if _, err := w.Write(bytes.Repeat([]byte{kindWelcome, 0, 16, 9, 9}, 5000)); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.in = append(w.in, 0x77, 0x77, 0x77)
	w.mu.Unlock()
	if got, err := roundTrip(testContext(t), dial(t, conn), []byte("hi")); err != nil || string(got) != "hi" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestCloseInterruptsRead(t *testing.T) {
	w := newWire()
	serve(t, w, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) })
	s := dial(t, w.attach(t, -1, -1, false))
	c, err := s.Open(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	_ = c.Close()
	if err := <-ended; err == nil {
		t.Fatal("read succeeded")
	}
}

func TestHostGoneEndsConnections(t *testing.T) {
	w := newWire()
	ended := make(chan struct{})
	serve(t, w, func(c net.Conn) {
		echo(c)
		close(ended)
	})
	conn := w.attach(t, -1, -1, true)
	c, err := dial(t, conn).Open(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	<-ended
	if n := w.readCount(); n > 1000 {
		t.Fatalf("the guest read %d times", n)
	}
}

// A guest that is told has nothing of the session left when it is captured.
func TestCloseEndsTheGuestsConnections(t *testing.T) {
	w := newWire()
	ended := make(chan struct{})
	serve(t, w, func(c net.Conn) {
		echo(c)
		close(ended)
	})
	s := dial(t, w.attach(t, -1, -1, false))
	c, err := s.Open(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended
}

func TestListenerClose(t *testing.T) {
	w := newWire()
	l := serve(t, w, echo)
	_ = l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("got %v, want net.ErrClosed", err)
	}
}

func BenchmarkHandshake(b *testing.B) {
	w := newWire()
	serve(b, w, echo)
	conn := w.attach(b, -1, -1, false)
	for b.Loop() {
		s, err := Dial(b.Context(), conn)
		if err != nil {
			b.Fatal(err)
		}
		_ = s.Close()
	}
}
