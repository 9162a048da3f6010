package link

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

const (
	kindHello   = 1
	kindWelcome = 2
	kindData    = 3
	kindBye     = 4
	kindCall    = 5
	kindReply   = 6
	kindAttend  = 7

	headerSize = 1 + 2 + 8
	overhead   = headerSize + 1
	endByte    = 0xA5

	// A host frame fits into one page, the size of the buffers that Linux offers for
	// reception on a virtio-serial port, and keeps the zeros of a handshake short.
	maxHostFrame   = 4096
	maxHostPayload = maxHostFrame - overhead
	// A guest frame fits into one write to the port: Linux passes on 32 KiB at a time.
	maxGuestFrame   = 32768
	maxGuestPayload = maxGuestFrame - overhead

	nonceSize = 16
)

// nonce names one session. Its first eight bytes are the epoch.
type nonce [nonceSize]byte

func (n nonce) epoch() uint64 { return binary.BigEndian.Uint64(n[:8]) }

// appendFrame appends one encoded frame to dst. Its payload is given in pieces.
func appendFrame(dst []byte, kind byte, epoch uint64, payload ...[]byte) []byte {
	length := 0
	for _, piece := range payload {
		length += len(piece)
	}
	dst = append(dst, kind)
	dst = binary.BigEndian.AppendUint16(dst, uint16(length))
	dst = binary.BigEndian.AppendUint64(dst, epoch)
	for _, piece := range payload {
		dst = append(dst, piece...)
	}
	return append(dst, endByte)
}

// frame is one decoded frame. Its payload is valid until the next one is read.
type frame struct {
	kind    byte
	epoch   uint64
	payload []byte
}

var (
	// errCut means that a frame was completed by the zeros of a handshake.
	errCut = errors.New("link: frame was cut off")
	// errLost means that the stream makes no sense; the reader waits for a handshake.
	errLost = errors.New("link: lost the start of frames")
)

// frameReader takes frames from a stream.
type frameReader struct {
	r       *bufio.Reader
	limit   int // of the payload
	header  [headerSize - 1]byte
	payload []byte
	lost    bool
}

func newFrameReader(r io.Reader, limit int) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, limit+overhead), limit: limit, payload: make([]byte, limit+1)}
}

// next returns the next frame. After errCut and errLost reading can go on; any other
// error comes from the stream, and a frame that it interrupts is forgotten.
func (fr *frameReader) next() (frame, error) {
	if fr.lost {
		if err := fr.skipToHandshake(); err != nil {
			return frame{}, err
		}
	}
	kind, err := fr.skipZeros()
	if err != nil {
		return frame{}, err
	}
	h := fr.header[:]
	if err := fr.full(h); err != nil {
		return frame{}, err
	}
	length := int(binary.BigEndian.Uint16(h[:2]))
	if kind > kindAttend || length > fr.limit {
		fr.lost = true
		return frame{}, errLost
	}
	body := fr.payload[:length+1]
	if err := fr.full(body); err != nil {
		return frame{}, err
	}
	switch body[length] {
	case endByte:
	case 0:
		return frame{}, errCut
	default:
		fr.lost = true
		return frame{}, errLost
	}
	return frame{kind: kind, epoch: binary.BigEndian.Uint64(h[2:]), payload: body[:length]}, nil
}

// full fills b. The end of the stream within b is an ordinary end.
func (fr *frameReader) full(b []byte) error {
	_, err := io.ReadFull(fr.r, b)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}

// skipZeros returns the first byte that is not zero.
func (fr *frameReader) skipZeros() (byte, error) {
	for {
		b, err := fr.r.ReadByte()
		if err != nil || b != 0 {
			return b, err
		}
	}
}

// skipToHandshake reads past the next run of zeros that is as long as a handshake's. The
// first few may have been taken for the rest of a header.
func (fr *frameReader) skipToHandshake() error {
	for zeros := 0; zeros < maxHostFrame-headerSize; {
		b, err := fr.r.ReadByte()
		if err != nil {
			return err
		}
		if b == 0 {
			zeros++
		} else {
			zeros = 0
		}
	}
	fr.lost = false
	return nil
}
