package link

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
	"testing/synctest"
)

// muxHeader is a header of yamux.
func muxHeader(kind byte, length int) []byte {
	h := make([]byte, muxHeaderSize)
	h[muxTypeAt] = kind
	binary.BigEndian.PutUint32(h[muxLengthAt:], uint32(length))
	return h
}

// A header of data travels with the data; everything else travels at once.
func TestOutgoingJoinsHeaderAndData(t *testing.T) {
	const limit = 100
	lookalike := muxHeader(muxTypeData, 7) // as data, it is data
	for name, c := range map[string]struct {
		writes [][]byte
		frames []int // how many frames each of the writes makes
	}{
		"window update":         {[][]byte{muxHeader(1, 5000)}, []int{1}},
		"end of stream":         {[][]byte{muxHeader(muxTypeData, 0)}, []int{1}},
		"data":                  {[][]byte{muxHeader(muxTypeData, 3), []byte("abc"), muxHeader(1, 1)}, []int{0, 1, 1}},
		"data like a header":    {[][]byte{muxHeader(muxTypeData, 12), lookalike, muxHeader(1, 1)}, []int{0, 1, 1}},
		"exactly one frame":     {[][]byte{muxHeader(muxTypeData, 88), make([]byte, 88)}, []int{0, 1}},
		"one byte more":         {[][]byte{muxHeader(muxTypeData, 89), make([]byte, 89)}, []int{0, 2}},
		"data of several frame": {[][]byte{muxHeader(muxTypeData, 288), make([]byte, 288), muxHeader(muxTypeData, 1), {9}}, []int{0, 3, 0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			out := outgoing{epoch: 7, limit: limit}
			var payload []byte
			for i, w := range c.writes {
				frames := newFrameReader(bytes.NewReader(out.add(w)), limit)
				n := 0
				for f, err := frames.next(); err == nil; f, err = frames.next() {
					if f.kind != kindData || f.epoch != 7 {
						t.Fatalf("frame of kind %d in epoch %d", f.kind, f.epoch)
					}
					payload = append(payload, f.payload...)
					n++
				}
				if n != c.frames[i] {
					t.Errorf("write %d made %d frames, want %d", i, n, c.frames[i])
				}
			}
			if want := bytes.Join(c.writes, nil); !bytes.Equal(payload, want) {
				t.Errorf("the frames hold %d bytes that are not the %d that were written", len(payload), len(want))
			}
		})
	}
}

// An inbox keeps order, holds no more than it should for a slow taker, and lets everybody go
// when it closes.
func TestInbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newInbox()
		piece := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, maxHostPayload) }
		const pieces = 100
		put := 0
		go func() {
			for ; put < pieces; put++ {
				b.put(piece(put))
			}
		}()
		synctest.Wait()
		if held := put * maxHostPayload; held > inboxSize || held < inboxSize-maxHostPayload {
			t.Errorf("the inbox took %d bytes while nobody took any, want nearly %d", held, inboxSize)
		}
		for i := range pieces {
			got := make([]byte, maxHostPayload)
			if _, err := io.ReadFull(readerFunc(b.take), got); err != nil || !bytes.Equal(got, piece(i)) {
				t.Fatalf("piece %d is not what was put: %v", i, err)
			}
		}
		ended := 0
		go func() {
			if _, err := b.take(make([]byte, 1)); err != nil {
				ended++
			}
		}()
		synctest.Wait()
		b.close()
		synctest.Wait()
		b.put(piece(0)) // does not wait
		if _, err := b.take(make([]byte, 1)); err == nil || ended != 1 {
			t.Errorf("a closed inbox: take gives %v, %d of 1 that waited have ended", err, ended)
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
