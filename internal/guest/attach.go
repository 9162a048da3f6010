package guest

import (
	"context"
	"io"

	"connectrpc.com/connect"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guestapi/process"
)

// ProcessInfo describes a command that runs in a sandbox.
type ProcessInfo struct {
	PID  uint32   `json:"pid"`
	Args []string `json:"args"`
	Dir  string   `json:"cwd,omitempty"` // as it was asked for
	Tag  string   `json:"tag,omitempty"`
}

// Processes returns the commands that run, in the order of their start. Processes that
// commands have started are not among them.
func (c *Client) Processes(ctx context.Context) ([]ProcessInfo, error) {
	answer, err := c.process.List(ctx, connect.NewRequest(&process.ListRequest{}))
	if err != nil {
		return nil, translate(ctx, err)
	}
	list := make([]ProcessInfo, 0, len(answer.Msg.GetProcesses()))
	for _, p := range answer.Msg.GetProcesses() {
		list = append(list, ProcessInfo{
			PID: p.GetPid(), Args: append([]string{p.GetConfig().GetCmd()}, p.GetConfig().GetArgs()...),
			Dir: p.GetConfig().GetCwd(), Tag: p.GetTag(),
		})
	}
	return list, nil
}

// Attach follows a command that was started before: cmd says where its input comes from
// and its output goes; its other fields mean nothing. What the command printed while
// nobody followed is lost. Do one of [Process.Wait] and [Process.Detach]. How a command
// ended can be asked for some seconds longer.
func (c *Client) Attach(ctx context.Context, pid uint32, cmd Command) (*Process, error) {
	cmd.Args = []string{"process"}
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	p := &Process{PID: pid, client: c, command: cmd, cancel: cancel, done: make(chan struct{})}
	stream, err := c.process.Connect(streamCtx, connect.NewRequest(&process.ConnectRequest{Process: p.selector()}))
	if err == nil && !stream.Receive() { // the first event says that it runs
		if err = stream.Err(); err == nil {
			err = io.ErrUnexpectedEOF
		}
		_ = stream.Close()
	}
	if err == nil && !stop() {
		_ = stream.Close()
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, translate(ctx, err)
	}
	p.follow(streamCtx, eventsOf[*process.ConnectResponse]{stream})
	return p, nil
}

// Signal sends a signal, by its Linux number, to a command and the processes of its group.
func (c *Client) Signal(ctx context.Context, pid uint32, signal int) error {
	p := &Process{PID: pid}
	_, err := c.process.SendSignal(ctx, connect.NewRequest(&process.SendSignalRequest{
		Process: p.selector(), Signal: process.Signal(signal),
	}))
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return kiln.Errorf(kiln.CodeInvalid, "there is no signal %d", signal)
	}
	return translate(ctx, err)
}

// eventStream is what a process sends, whether it has been started or attached to.
type eventStream[M any] interface {
	Receive() bool
	Msg() M
	Err() error
	Close() error
}

// events are the events of a stream.
type events interface {
	next() (*process.ProcessEvent, bool)
	Err() error
	Close() error
}

type eventsOf[M interface{ GetEvent() *process.ProcessEvent }] struct{ eventStream[M] }

func (e eventsOf[M]) next() (*process.ProcessEvent, bool) {
	if !e.Receive() {
		return nil, false
	}
	return e.Msg().GetEvent(), true
}

// follow carries input, output and sizes until the stream ends.
func (p *Process) follow(ctx context.Context, from events) {
	go p.pump(ctx, from)
	if p.command.Stdin != nil {
		go p.feed(ctx)
	}
	if p.command.TTY != nil && p.command.TTY.Resize != nil {
		go p.resize(ctx)
	}
}
