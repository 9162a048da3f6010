package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
)

// serveCalls serves w with a listener that echoes connections, and calls behind a mark. It
// counts the calls that are carried out.
func serveCalls(t *testing.T, w *wire) *atomic.Int32 {
	t.Helper()
	l := serve(t, w, echo)
	var n atomic.Int32
	l.HandleCalls(func(request []byte) []byte {
		n.Add(1)
		return append([]byte("re: "), request...)
	})
	return &n
}

func TestCallThenSession(t *testing.T) {
	w := newWire()
	n := serveCalls(t, w)
	conn := w.attach(t, -1, -1, false)
	for _, size := range []int{0, 1, MaxCall - 4} {
		request := bytes.Repeat([]byte{0, 0xA5, 5}, MaxCall)[:size]
		reply, err := Call(testContext(t), conn, request)
		if err != nil || !bytes.Equal(reply, append([]byte("re: "), request...)) {
			t.Fatalf("request of %d bytes: reply of %d, %v", size, len(reply), err)
		}
	}
	if n.Load() != 3 {
		t.Errorf("%d calls were carried out, want 3", n.Load())
	}
	if got, err := roundTrip(testContext(t), dial(t, conn), []byte("hi")); err != nil || string(got) != "hi" {
		t.Fatalf("session after calls: %q, %v", got, err)
	}
	if _, err := Call(t.Context(), conn, make([]byte, MaxCall+1)); !errors.Is(err, ErrCallTooLong) {
		t.Errorf("got %v, want ErrCallTooLong", err)
	}
}

// The request waits for a guest that does not run yet.
func TestCallBeforeTheGuestListens(t *testing.T) {
	w := newWire()
	conn := w.attach(t, -1, -1, false)
	type result struct {
		reply []byte
		err   error
	}
	done := make(chan result, 1)
	go func() {
		reply, err := Call(testContext(t), conn, []byte("early"))
		done <- result{reply, err}
	}()
	serveCalls(t, w)
	if r := <-done; r.err != nil || string(r.reply) != "re: early" {
		t.Fatalf("%q, %v", r.reply, r.err)
	}
}

// A guest that waits for the rest of a frame hears the call when it is repeated, and the
// garbage that it had sent to somebody else does not hide the reply.
func TestCallHealsACutStream(t *testing.T) {
	w := newWire()
	n := serveCalls(t, w)
	conn := w.attach(t, -1, -1, false)
	cut := appendFrame(nil, kindData, 7, make([]byte, 1000))[:500]
	if _, err := conn.Write(cut); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(bytes.Repeat([]byte{kindReply, 0, 20, 9, 9}, 9000)); err != nil {
		t.Fatal(err)
	}
	reply, err := Call(testContext(t), conn, []byte("again"))
	if err != nil || string(reply) != "re: again" || n.Load() != 1 {
		t.Fatalf("%q, %v, carried out %d times", reply, err, n.Load())
	}
}

// A repeated call is answered again, but not carried out again.
func TestCallIsCarriedOutOnce(t *testing.T) {
	w := newWire()
	n := serveCalls(t, w)
	conn := w.attach(t, -1, -1, false)
	call := appendFrame(nil, kindCall, testNonce.epoch(), append(testNonce[:], "once"...))
	for range 3 {
		if _, err := conn.Write(call); err != nil {
			t.Fatal(err)
		}
		if reply, err := readReply(oneByOne{conn}, testNonce); err != nil || string(reply) != "re: once" {
			t.Fatalf("%q, %v", reply, err)
		}
	}
	if n.Load() != 1 {
		t.Errorf("carried out %d times", n.Load())
	}
}

// oneByOne reads single bytes, so that nothing is read ahead.
type oneByOne struct{ r io.Reader }

func (o oneByOne) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

func TestCallEndsWithItsContext(t *testing.T) {
	w := newWire()
	conn := w.attach(t, -1, -1, false)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := Call(ctx, conn, nil)
		failed <- err
	}()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	serveCalls(t, w)
	if reply, err := Call(testContext(t), conn, []byte("later")); err != nil || string(reply) != "re: later" {
		t.Errorf("%q, %v", reply, err)
	}
}

// An attentive guest answers like any other, calls and sessions alike.
func TestAttend(t *testing.T) {
	w := newWire()
	n := serveCalls(t, w)
	conn := w.attach(t, -1, -1, false)
	for range 2 {
		if err := Attend(testContext(t), conn); err != nil {
			t.Fatal(err)
		}
	}
	if n.Load() != 0 {
		t.Errorf("to attend was carried out as a call, %d times", n.Load())
	}
	if reply, err := Call(testContext(t), conn, []byte("x")); err != nil || string(reply) != "re: x" {
		t.Fatalf("call after that: %q, %v", reply, err)
	}
	if got, err := roundTrip(testContext(t), dial(t, conn), []byte("hi")); err != nil || string(got) != "hi" {
		t.Fatalf("session after that: %q, %v", got, err)
	}
}
