package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/link"
)

// portName is the virtio-serial port on which the daemon listens.
const portName = "kiln.0"

// serial is a virtio-serial port that a link makes many connections of.
type serial struct {
	conn   *net.UnixConn // host end of the port
	theirs *os.File
	done   <-chan struct{}

	dialing  chan struct{} // holds one token; its holder may use what follows
	session  *link.Session
	captured bool
}

func newSerial(done <-chan struct{}) (*serial, error) {
	conn, theirs, err := socketpair("link")
	if err != nil {
		return nil, err
	}
	return &serial{conn: conn, theirs: theirs, done: done, dialing: make(chan struct{}, 1)}, nil
}

func (s *serial) arguments(fd int) []string {
	return []string{
		"-device", "virtio-serial-device,max_ports=2",
		"-chardev", fmt.Sprintf("socket,id=link,fd=%d", fd),
		"-device", "virtserialport,chardev=link,name=" + portName,
	}
}

func (s *serial) end() *os.File { return s.theirs }

func (s *serial) close() { _ = s.conn.Close() }

// enter takes the token and returns what puts it back.
func (s *serial) enter(ctx context.Context) (leave func(), err error) {
	select {
	case s.dialing <- struct{}{}:
		return func() { <-s.dialing }, nil
	case <-s.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dial opens a connection of the link's session, which is made anew when it has ended.
func (s *serial) dial(ctx context.Context) (net.Conn, error) {
	session, err := s.linked(ctx)
	if err != nil {
		return nil, err
	}
	return session.Open(ctx)
}

// linked returns the session of the link. One caller at a time makes it.
func (s *serial) linked(ctx context.Context) (*link.Session, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if s.captured {
		return nil, errCaptured()
	}
	if s.session != nil {
		select {
		case <-s.session.Done():
			_ = s.session.Close() // its end is known; the next one starts afresh
		default:
			return s.session, nil
		}
	}
	session, err := link.Dial(ctx, s.conn)
	if err != nil {
		return nil, err
	}
	s.session = session
	return session, nil
}

func (s *serial) call(ctx context.Context, request []byte) ([]byte, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if s.session != nil || s.captured || len(request) > link.MaxCall {
		return nil, errors.ErrUnsupported
	}
	return link.Call(ctx, s.conn, request)
}

// attentive bounds the wait for a guest that is to be attentive.
const attentive = 5 * time.Second

// attend leaves a guest that does not answer as it is: its clones are only slower.
func (s *serial) attend(ctx context.Context) {
	short, cancel := context.WithTimeout(ctx, attentive)
	defer cancel()
	_ = link.Attend(short, s.conn)
}

func (s *serial) hangUp(ctx context.Context) error {
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	s.captured = true
	if s.session != nil {
		_ = s.session.Close() // ended either way
		s.session = nil
	}
	return nil
}

// unread asks the kernel, in its own accounting.
func (s *serial) unread() (int, error) {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	n, nerr := 0, error(nil)
	err = raw.Control(func(fd uintptr) { n, nerr = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n, errors.Join(err, nerr)
}
