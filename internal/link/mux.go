package link

import (
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
