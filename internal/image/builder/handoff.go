package builder

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// handoffMessage is one packet on the handoff socket. The child sends {Ready} together
// with a directory descriptor; the parent answers {Release} when it has read the tree.
// {Started} is the child's first packet: BuildKit serves.
type handoffMessage struct {
	Started bool   `json:"started,omitempty"`
	Ready   string `json:"ready,omitempty"`
	Release string `json:"release,omitempty"`
}

// maxHandoffMessage bounds a packet in bytes; messages hold one token.
const maxHandoffMessage = 4096

// handoffConn is one end of a SOCK_SEQPACKET pair: packets keep their boundaries and a
// descriptor travels with its packet. Sending is safe for concurrent use.
type handoffConn struct {
	conn *net.UnixConn
	mu   sync.Mutex
}

func newHandoffConn(f *os.File) (*handoffConn, error) {
	conn, err := fileConn(f)
	if err != nil {
		return nil, err
	}
	return &handoffConn{conn: conn}, nil
}

// fileConn turns an inherited socket into a connection and closes f.
func fileConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", f.Name(), err)
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("socket %s: not a Unix socket", f.Name())
	}
	return unixConn, nil
}

// send writes one packet, with dir attached unless it is nil. dir stays open.
func (h *handoffConn) send(m handoffMessage, dir *os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if dir != nil {
		rights = unix.UnixRights(int(dir.Fd()))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	_, _, err = h.conn.WriteMsgUnix(b, rights, nil)
	return err
}

// receive reads the next packet. The descriptor that came with it, if any, is the
// caller's to close. It returns io.EOF when the other end is gone.
func (h *handoffConn) receive() (handoffMessage, *os.File, error) {
	var m handoffMessage
	b := make([]byte, maxHandoffMessage)
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := h.conn.ReadMsgUnix(b, oob)
	if err != nil {
		return m, nil, err
	}
	if n == 0 {
		return m, nil, io.EOF
	}
	dir, err := attachedFile(oob[:oobn])
	if err != nil {
		return m, nil, err
	}
	if err := json.Unmarshal(b[:n], &m); err != nil {
		if dir != nil {
			dir.Close()
		}
		return m, nil, fmt.Errorf("handoff packet: %w", err)
	}
	return m, dir, nil
}

func attachedFile(oob []byte) (*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("handoff packet: %w", err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), "root filesystem"), nil
		}
	}
	return nil, nil
}

func (h *handoffConn) close() error { return h.conn.Close() }

// socketPair returns both ends of a Unix socket pair, closed on exec.
func socketPair(kind int, name string) (parent, child *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair for %s: %w", name, err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}
