package link

import (
	"encoding/binary"
	"io"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

// past is a deadline that interrupts what is going on.
var past = time.Unix(1, 0)

// muxConfig returns yamux's settings, the same on both sides.
func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false // a paused guest is not a dead one
	c.StreamOpenTimeout = 0   // its expiry would end all connections; the caller has a context
	c.StreamCloseTimeout = 30 * time.Second
	c.ConnectionWriteTimeout = 30 * time.Second
	c.LogOutput = io.Discard // errors reach the users of connections
	return c
}

// stream is one connection of a session.
type stream struct{ *yamux.Stream }

// Close ends both directions. (yamux's own Close ends only one, and leaves a Read that
// waits to wait on.)
func (s *stream) Close() error {
	err := s.Stream.Close()
	_ = s.SetReadDeadline(past) // only sets a value
	return err
}

// CloseWrite tells the other side that nothing more will be written.
func (s *stream) CloseWrite() error { return s.Stream.Close() }

var _ net.Conn = (*stream)(nil)

// A message of yamux is a header and what it announces, if it announces data. It writes the
// two one after the other.
const (
	muxHeaderSize = 12
	muxTypeAt     = 1
	muxLengthAt   = 8
	muxTypeData   = 0
)

// outgoing turns what yamux writes into frames. Header and data go into one frame, and with
// one write into the port.
type outgoing struct {
	epoch  uint64
	limit  int    // of a frame's payload
	header []byte // of data that yamux will write next
	frames []byte
}

// add returns the frames to send now that yamux has written p, valid until the next call.
func (o *outgoing) add(p []byte) []byte {
	if len(o.header) == 0 && announcesData(p) {
		o.header = append(o.header, p...)
		return nil
	}
	n := min(len(p), o.limit-len(o.header))
	o.frames = appendFrame(o.frames[:0], kindData, o.epoch, o.header, p[:n])
	o.header = o.header[:0]
	for p = p[n:]; len(p) > 0; p = p[n:] {
		n = min(len(p), o.limit)
		o.frames = appendFrame(o.frames, kindData, o.epoch, p[:n])
	}
	return o.frames
}

func announcesData(p []byte) bool {
	return len(p) == muxHeaderSize && p[muxTypeAt] == muxTypeData && binary.BigEndian.Uint32(p[muxLengthAt:]) > 0
}
