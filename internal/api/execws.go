package api

import (
	"context"
	"encoding/json"
	"errors"
	"sync"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// maxSocketCommands bounds how many commands one connection runs at once.
const maxSocketCommands = 64

// socketRequest is a frame from the client: a command, or the end of one.
type socketRequest struct {
	ID     string `json:"id"`
	Cancel bool   `json:"cancel,omitempty"`
	ExecRequest
}

// socketAnswer is a frame to the client.
type socketAnswer struct {
	ID     string `json:"id"`
	Stream string `json:"stream,omitempty"` // stdout or stderr
	Data   string `json:"data,omitempty"`
	Exit   *int   `json:"exit,omitempty"`
	Error  string `json:"error,omitempty"`
}

func (s *Server) execWebSocket(ctx context.Context, in *SandboxID) (*huma.StreamResponse, error) {
	g, err := s.opts.Sandboxes.Guest(ctx, orgOf(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		r, w := humago.Unwrap(hctx)
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return // Accept has answered
		}
		defer conn.CloseNow()
		conn.SetReadLimit(maxJSONBody)
		sock := &execSocket{server: s, guest: g, conn: conn, running: map[string]context.CancelFunc{}}
		sock.serve(r.Context())
	}}, nil
}

// execSocket runs the commands of one WebSocket connection. When the connection ends,
// so do they.
type execSocket struct {
	server *Server
	guest  Guest
	conn   *websocket.Conn
	wg     sync.WaitGroup

	mu      sync.Mutex
	running map[string]context.CancelFunc
}

func (e *execSocket) serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer e.wg.Wait()
	defer cancel()
	for {
		_, data, err := e.conn.Read(ctx)
		if err != nil {
			return
		}
		var req socketRequest
		if err := json.Unmarshal(data, &req); err != nil {
			_ = e.send(ctx, socketAnswer{ID: req.ID, Error: "the frame is not a JSON object of the expected form"})
			continue
		}
		if req.Cancel {
			e.cancel(req.ID)
			continue
		}
		if err := e.start(ctx, req); err != nil {
			_ = e.send(ctx, socketAnswer{ID: req.ID, Error: errorFor(ctx, e.server.log, "exec", err).Message})
		}
	}
}

func (e *execSocket) cancel(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if stop := e.running[id]; stop != nil {
		stop()
	}
}

func (e *execSocket) start(ctx context.Context, req socketRequest) error {
	cmd, err := req.command()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.running[req.ID] != nil:
		cancel()
		return kiln.Errorf(kiln.CodeConflict, "exec: a command with id %q is running", req.ID)
	case len(e.running) == maxSocketCommands:
		cancel()
		return kiln.Errorf(kiln.CodeExhausted, "exec: %d commands are running on this connection", maxSocketCommands)
	}
	e.running[req.ID] = cancel
	e.wg.Add(1)
	go func() {
		defer e.wg.Done()
		defer cancel()
		e.run(ctx, req, cmd)
	}()
	return nil
}

func (e *execSocket) run(ctx context.Context, req socketRequest, cmd guest.Command) {
	output := func(stream string) *textWriter {
		return newTextWriter(func(text string) error {
			return e.send(ctx, socketAnswer{ID: req.ID, Stream: stream, Data: text})
		})
	}
	stdout, stderr := output("stdout"), output("stderr")
	cmd.Stdout, cmd.Stderr = stdout, stderr
	exit, err := e.server.runCommand(ctx, e.guest, cmd, req.timeout())
	_, _ = stdout.Flush(), stderr.Flush()

	e.mu.Lock()
	delete(e.running, req.ID) // before the answer, so that its reader may use the ID again
	e.mu.Unlock()
	last := socketAnswer{ID: req.ID, Exit: &exit.ExitCode}
	switch {
	case errors.Is(err, context.Canceled):
		last = socketAnswer{ID: req.ID, Error: "cancelled"}
	case err != nil:
		last = socketAnswer{ID: req.ID, Error: errorFor(ctx, e.server.log, "exec", err).Message}
	}
	_ = e.send(context.WithoutCancel(ctx), last)
}

func (e *execSocket) send(ctx context.Context, a socketAnswer) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	// A write that is cancelled half-way closes the connection, which other commands
	// share: cancelling one command must not cancel a write.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventWrite)
	defer cancel()
	return e.conn.Write(ctx, websocket.MessageText, data)
}
