package link

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

var testNonce = nonce{0xDE, 0xAD, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}

func hello() []byte {
	return appendFrame(make([]byte, maxHostFrame), kindHello, testNonce.epoch(), testNonce[:])
}

// frames reads all frames of b and counts the interruptions.
func readAll(t testing.TB, b []byte) (frames []frame, breaks int) {
	t.Helper()
	fr := newFrameReader(bytes.NewReader(b), maxHostPayload)
	for {
		f, err := fr.next()
		switch {
		case errors.Is(err, io.EOF):
			return frames, breaks
		case errors.Is(err, errCut), errors.Is(err, errLost):
			breaks++
		case err != nil:
			t.Fatal(err)
		default:
			f.payload = bytes.Clone(f.payload)
			frames = append(frames, f)
		}
	}
}

// A frame that is cut off anywhere is dropped as a whole, and the hello after it is read.
func TestEveryCutIsHealedByAHandshake(t *testing.T) {
	for _, size := range []int{0, 1, 255, 256, 3000, maxHostPayload} {
		whole := appendFrame(nil, kindData, 7, bytes.Repeat([]byte{0x55}, size))
		for cut := range len(whole) {
			if size > 300 && cut > 20 && cut < len(whole)-20 && cut%97 != 0 {
				continue
			}
			frames, _ := readAll(t, append(bytes.Clone(whole[:cut]), hello()...))
			if len(frames) != 1 || frames[0].kind != kindHello || nonce(frames[0].payload) != testNonce {
				t.Fatalf("payload of %d bytes cut after %d: got %d frames", size, cut, len(frames))
			}
		}
	}
}

func TestWholeFramesSurviveAHandshake(t *testing.T) {
	out := outgoing{epoch: 7, limit: maxHostPayload}
	in := out.add(bytes.Repeat([]byte("abc"), 5000))
	frames, breaks := readAll(t, append(in, hello()...))
	if breaks != 0 || len(frames) != 5 {
		t.Fatalf("got %d frames and %d breaks, want 5 and 0", len(frames), breaks)
	}
	var got []byte
	for _, f := range frames[:4] {
		got = append(got, f.payload...)
	}
	if !bytes.Equal(got, bytes.Repeat([]byte("abc"), 5000)) {
		t.Fatal("payload changed")
	}
}

// Whatever was on the stream, the next handshake is understood.
func FuzzFrameReader(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte{0, 0, 0})
	f.Add([]byte{kindData})
	f.Add([]byte{kindData, 0xFF, 0xFF})
	f.Add([]byte{99, 1, 2, 3})
	f.Add(hello()[:maxHostFrame+9])
	f.Add(appendFrame(nil, kindData, 7, []byte("payload")))
	f.Fuzz(func(t *testing.T, garbage []byte) {
		frames, _ := readAll(t, append(bytes.Clone(garbage), hello()...))
		if len(frames) == 0 {
			t.Fatal("nothing was read")
		}
		last := frames[len(frames)-1]
		if last.kind != kindHello || !bytes.Equal(last.payload, testNonce[:]) {
			t.Fatalf("last frame is %+v, want the hello", last)
		}
	})
}
