package sandboxd

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/guestapi/process"
)

// processService implements processconnect.ProcessHandler.
type processService struct{ server *Server }

// List returns the running processes.
func (p *processService) List(context.Context, *connect.Request[process.ListRequest]) (*connect.Response[process.ListResponse], error) {
	response := &process.ListResponse{}
	for _, r := range p.server.processes.live() {
		response.Processes = append(response.Processes, r.info)
	}
	return connect.NewResponse(response), nil
}

// Start runs a command and streams its output. The command outlives the stream; it is
// killed at the deadline of the request, if there is one.
func (p *processService) Start(ctx context.Context, req *connect.Request[process.StartRequest], stream *connect.ServerStream[process.StartResponse]) error {
	c, err := p.server.resolveCommand(req)
	if err != nil {
		return fileError(err)
	}
	c.deadline, _ = ctx.Deadline()
	r, follower, err := p.server.processes.start(c)
	if err != nil {
		return fileError(err)
	}
	defer r.output.leave(follower)
	return forward(ctx, r, follower, req.Header(), func(event *process.ProcessEvent) error {
		return stream.Send(&process.StartResponse{Event: event})
	})
}

// resolveCommand finds out everything that a request leaves open.
func (s *Server) resolveCommand(req *connect.Request[process.StartRequest]) (command, error) {
	caller, err := s.caller(req.Header())
	if err != nil {
		return command{}, err
	}
	config := req.Msg.GetProcess()
	dir, err := s.startDir(config.GetCwd(), caller)
	if err != nil {
		return command{}, err
	}
	env := s.environment(caller, config.GetEnvs())
	if req.Msg.GetPty() != nil && env["TERM"] == "" {
		env["TERM"] = "xterm-256color"
	}
	path, err := findCommand(config.GetCmd(), dir, env["PATH"])
	if err != nil {
		return command{}, err
	}
	list, err := environList(env)
	if err != nil {
		return command{}, err
	}
	return command{
		config: config, tag: req.Msg.Tag, account: caller, path: path, dir: dir, env: list,
		terminal:  req.Msg.GetPty(),
		withInput: req.Msg.Stdin == nil || req.Msg.GetStdin(),
	}, nil
}

// Connect follows a command that was started before.
func (p *processService) Connect(ctx context.Context, req *connect.Request[process.ConnectRequest], stream *connect.ServerStream[process.ConnectResponse]) error {
	r, err := p.server.processes.find(req.Msg.GetProcess())
	if err != nil {
		return err
	}
	follower := r.output.follow()
	defer r.output.leave(follower)
	return forward(ctx, r, follower, req.Header(), func(event *process.ProcessEvent) error {
		return stream.Send(&process.ConnectResponse{Event: event})
	})
}

// forward sends the events of a process: start first, then output, keepalives in silence,
// end last.
func forward(ctx context.Context, r *running, from *follower, header http.Header, send func(*process.ProcessEvent) error) error {
	if err := send(startEvent(r.info.GetPid())); err != nil {
		return err
	}
	interval := keepaliveInterval(header)
	silence := time.NewTicker(interval)
	defer silence.Stop()
	for {
		var event *process.ProcessEvent
		select {
		case next, more := <-from.events:
			if !more {
				return nil
			}
			event = next
			silence.Reset(interval)
		case <-silence.C:
			event = &process.ProcessEvent{Event: &process.ProcessEvent_Keepalive{Keepalive: &process.ProcessEvent_KeepAlive{}}}
		case <-ctx.Done():
			return sendRest(ctx, from, send)
		}
		if err := send(event); err != nil {
			return err
		}
	}
}

// sendRest sends what is at hand when ctx has ended: maybe the end of the process, which
// the end of the daemon or the deadline has brought about.
func sendRest(ctx context.Context, from *follower, send func(*process.ProcessEvent) error) error {
	for {
		select {
		case event, more := <-from.events:
			if !more {
				return nil
			}
			if err := send(event); err != nil {
				return err
			}
		default:
			return contextError(ctx)
		}
	}
}

// defaultKeepalive is how long a stream stays silent when the request does not say.
const defaultKeepalive = 90 * time.Second

func keepaliveInterval(h http.Header) time.Duration {
	seconds, err := strconv.ParseUint(h.Get("Keepalive-Ping-Interval"), 10, 16)
	if err != nil || seconds == 0 {
		return defaultKeepalive
	}
	return time.Duration(seconds) * time.Second
}

// Update resizes the terminal of a process.
func (p *processService) Update(_ context.Context, req *connect.Request[process.UpdateRequest]) (*connect.Response[process.UpdateResponse], error) {
	r, err := p.server.processes.findLive(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if size := req.Msg.GetPty().GetSize(); size != nil {
		if r.tty == nil {
			return nil, errorf(connect.CodeFailedPrecondition, "process %d has no terminal", r.info.GetPid())
		}
		if err := resize(r.tty, size); err != nil {
			return nil, fileError(err)
		}
	}
	return connect.NewResponse(&process.UpdateResponse{}), nil
}

// StreamInput writes what the client streams to one process.
func (p *processService) StreamInput(ctx context.Context, stream *connect.ClientStream[process.StreamInputRequest]) (*connect.Response[process.StreamInputResponse], error) {
	var r *running
	for stream.Receive() {
		switch event := stream.Msg().GetEvent().(type) {
		case *process.StreamInputRequest_Start:
			found, err := p.server.processes.findLive(event.Start.GetProcess())
			if err != nil {
				return nil, err
			}
			r = found
		case *process.StreamInputRequest_Data:
			if r == nil {
				return nil, errorf(connect.CodeInvalidArgument, "the first message must be start")
			}
			if err := r.write(ctx, event.Data.GetInput()); err != nil {
				return nil, err
			}
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.StreamInputResponse{}), nil
}

// SendInput writes to a process, and returns when it or the pipe to it has taken all.
func (p *processService) SendInput(ctx context.Context, req *connect.Request[process.SendInputRequest]) (*connect.Response[process.SendInputResponse], error) {
	r, err := p.server.processes.findLive(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := r.write(ctx, req.Msg.GetInput()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.SendInputResponse{}), nil
}

func (r *running) write(ctx context.Context, in *process.ProcessInput) error {
	switch kind := in.GetInput().(type) {
	case *process.ProcessInput_Stdin:
		if r.tty != nil {
			return errorf(connect.CodeFailedPrecondition, "process %d has a terminal, not a standard input", r.info.GetPid())
		}
		return r.input.write(ctx, kind.Stdin)
	case *process.ProcessInput_Pty:
		if r.tty == nil {
			return errorf(connect.CodeFailedPrecondition, "process %d has no terminal", r.info.GetPid())
		}
		return r.input.write(ctx, kind.Pty)
	}
	return errorf(connect.CodeInvalidArgument, "the request holds no input")
}

// SendSignal signals a process and all others in its group.
func (p *processService) SendSignal(_ context.Context, req *connect.Request[process.SendSignalRequest]) (*connect.Response[process.SendSignalResponse], error) {
	r, err := p.server.processes.findLive(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	// The protocol names two signals by the numbers that Linux gives them; all others are
	// taken by those numbers as well.
	signal := unix.Signal(req.Msg.GetSignal())
	if unix.SignalName(signal) == "" {
		return nil, errorf(connect.CodeUnimplemented, "signal %v is not supported", req.Msg.GetSignal())
	}
	err = r.child.SignalGroup(signal)
	if errors.Is(err, os.ErrProcessDone) {
		return nil, unknownProcess(req.Msg.GetProcess())
	}
	if err != nil {
		return nil, errorf(connect.CodeInternal, "%w", err)
	}
	return connect.NewResponse(&process.SendSignalResponse{}), nil
}

// CloseStdin makes a process read end of file. Doing it twice is fine.
func (p *processService) CloseStdin(_ context.Context, req *connect.Request[process.CloseStdinRequest]) (*connect.Response[process.CloseStdinResponse], error) {
	r, err := p.server.processes.findLive(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if r.tty != nil {
		return nil, errorf(connect.CodeFailedPrecondition, "the input of a terminal cannot be closed; send an end-of-transmission byte (4)")
	}
	r.input.close()
	return connect.NewResponse(&process.CloseStdinResponse{}), nil
}
