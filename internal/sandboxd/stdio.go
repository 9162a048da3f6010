package sandboxd

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/guestapi/process"
)

// Sizes of the pieces in which output is read, in bytes. Those of a pipe grow to the largest
// while they come filled, and the pipe with them: each piece has its price, and so has each
// turn between the daemon and the command.
const (
	pipeChunk     = 32 << 10
	pipeChunkMax  = 256 << 10
	terminalChunk = 16 << 10
)

// stdio is both ends of what connects a process to the daemon.
type stdio struct {
	child   []*os.File // descriptors 0, 1 and 2 of the process
	input   *os.File   // nil when the process reads /dev/null
	outputs []output
	tty     *os.File // the terminal's controlling end; nil without a terminal
}

type output struct {
	kind        outputKind
	file        *os.File
	chunk, most int // bytes of a piece, at first and at most
}

// widen lets a pipe hold size bytes, if it may. A small one serves as well.
func widen(pipe *os.File, size int) {
	raw, err := pipe.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, size) })
}

// openPipes connects a process by pipes that belong to its account, so that it can open them
// again as /dev/stdin and /dev/stdout.
func openPipes(withInput bool, owner account) (_ *stdio, err error) {
	s := &stdio{}
	defer func() {
		if err != nil {
			s.closeAll()
		}
	}()
	var in *os.File
	if withInput {
		in, s.input, err = os.Pipe()
	} else {
		in, err = os.Open(os.DevNull)
	}
	if err != nil {
		return nil, err
	}
	s.child = append(s.child, in)
	for _, kind := range []outputKind{stdout, stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		s.child = append(s.child, w)
		s.outputs = append(s.outputs, output{kind, r, pipeChunk, pipeChunkMax})
	}
	pipes := s.child
	if !withInput {
		pipes = pipes[1:] // /dev/null stays root's
	}
	for _, p := range pipes {
		if err := p.Chown(int(owner.uid), -1); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// openTerminal connects a process by a terminal that belongs to its account.
func openTerminal(size *process.PTY_Size, owner account) (*stdio, error) {
	controlling, process, err := pty.Open()
	if err != nil {
		return nil, err
	}
	s := &stdio{
		child:   []*os.File{process, process, process},
		input:   controlling,
		outputs: []output{{terminal, controlling, terminalChunk, terminalChunk}},
		tty:     controlling,
	}
	err = errors.Join(resize(controlling, size), process.Chown(int(owner.uid), -1))
	if err != nil {
		s.closeAll()
		return nil, err
	}
	return s, nil
}

func resize(tty *os.File, size *process.PTY_Size) error {
	if size.GetCols() == 0 && size.GetRows() == 0 {
		return nil
	}
	if size.GetCols() > 0xffff || size.GetRows() > 0xffff {
		return errorf(connect.CodeInvalidArgument, "terminal size %d×%d is too large", size.GetCols(), size.GetRows())
	}
	return pty.Setsize(tty, &pty.Winsize{Cols: uint16(size.GetCols()), Rows: uint16(size.GetRows())})
}

func (s *stdio) closeChild() {
	for _, f := range s.child {
		_ = f.Close() // a terminal is in the list three times
	}
}

func (s *stdio) closeAll() {
	s.closeChild()
	if s.input != nil {
		_ = s.input.Close()
	}
	for _, o := range s.outputs {
		_ = o.file.Close()
	}
}

// input is what a process reads. Writers take turns, so that a piece stays in one piece.
type input struct {
	file *os.File // nil when there is none
	turn chan struct{}
	wide bool // the pipe was made as large as large pieces want it; used in turn
	mu   sync.Mutex
	shut bool
}

func newInput(file *os.File) *input { return &input{file: file, turn: make(chan struct{}, 1)} }

var errNoInput = errors.New("the process takes no more input")

// write returns when the process, or the pipe to it, has taken all of b, or ctx ends.
func (in *input) write(ctx context.Context, b []byte) error {
	if in.file == nil {
		return errorf(connect.CodeFailedPrecondition, "the process was started without standard input")
	}
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-ctx.Done():
		return contextError(ctx)
	}
	if len(b) > pipeChunk && !in.wide {
		in.wide = true
		widen(in.file, pipeChunkMax) // a terminal is no pipe
	}
	reset := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(reset)
		_ = in.file.SetWriteDeadline(time.Unix(1, 0))
	})
	_, err := in.file.Write(b)
	if !stop() {
		<-reset
		_ = in.file.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return contextError(ctx)
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EIO), errors.Is(err, os.ErrClosed):
		return connect.NewError(connect.CodeFailedPrecondition, errNoInput)
	}
	return errorf(connect.CodeInternal, "standard input: %w", err)
}

// close makes the process read end of file. It may be called more than once.
func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.file != nil && !in.shut {
		in.shut = true
		_ = in.file.Close()
	}
}

func contextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
	}
	return connect.NewError(connect.CodeCanceled, ctx.Err())
}
