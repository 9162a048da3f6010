package guest

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guestapi/process"
)

// Command is a command to run in a sandbox. No shell is involved.
type Command struct {
	// Args is the command, looked up in the sandbox's PATH, and its arguments.
	Args []string
	// Env is laid over the environment of the template and the sandbox.
	Env  map[string]string
	Dir  string // "" means the template's working directory
	User string // "" means the template's; else in the notation of an image's USER
	// Stdin is copied to the command; nil means an empty one. A Read that is under way
	// when the command ends is waited for by nobody.
	Stdin io.Reader
	// Stdout and Stderr get the output, from one goroutine; nil discards. A write error
	// kills the command, and a write that blocks holds up Wait. With a terminal all output
	// goes to Stdout.
	Stdout, Stderr io.Writer
	// TTY runs the command in a terminal.
	TTY *TTY
}

// TTY is a terminal.
type TTY struct {
	Size TTYSize
	// Resize may be nil. Each size that arrives is given to the terminal.
	Resize <-chan TTYSize
}

// TTYSize is the size of a terminal in characters.
type TTYSize struct{ Cols, Rows uint16 }

// Process is a started command.
type Process struct {
	PID uint32

	client  *Client
	command Command
	cancel  context.CancelFunc // ends the stream
	done    chan struct{}      // closed when exit and err are set
	exit    Exit
	err     error
}

// cleanupTimeout bounds what is done after the caller's context has ended.
const cleanupTimeout = 5 * time.Second

// Run runs a command to its end. When ctx ends first, the command is killed and the code of
// the error is timeout or canceled. A command that cannot be started is no error: as with
// a shell, it exits with 127 (not found) or 126 (not executable) and the reason stands on
// Stderr.
func (c *Client) Run(ctx context.Context, cmd Command) (Exit, error) {
	p, err := c.Start(ctx, cmd)
	var start *StartError
	if errors.As(err, &start) {
		report := cmd.Stderr
		if cmd.TTY != nil {
			report = cmd.Stdout
		}
		if report != nil {
			if _, err := fmt.Fprintf(report, "%v\n", err); err != nil {
				return Exit{}, fmt.Errorf("command output: %w", err)
			}
		}
		return Exit{Code: start.Code}, nil
	}
	if err != nil {
		return Exit{}, err
	}
	return p.Wait(ctx)
}

// Start starts a command and returns when it runs; ctx bounds the start only. Output is
// copied until the command ends or the process is detached: do one of [Process.Wait] and
// [Process.Detach]. A command that cannot be started gives an error that wraps a
// [StartError].
func (c *Client) Start(ctx context.Context, cmd Command) (*Process, error) {
	if len(cmd.Args) == 0 {
		return nil, kiln.Errorf(kiln.CodeInvalid, "no command given")
	}
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	stream, err := c.process.Start(streamCtx, startRequest(cmd))
	if err != nil {
		cancel()
		return nil, translateStart(ctx, cmd.User, err)
	}
	if !stream.Receive() {
		err := stream.Err()
		cancel()
		_ = stream.Close()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return nil, translateStart(ctx, cmd.User, err)
	}
	p := &Process{
		PID: stream.Msg().GetEvent().GetStart().GetPid(), client: c, command: cmd, cancel: cancel, done: make(chan struct{}),
	}
	if !stop() { // ctx ended just now, and the stream with it
		_ = stream.Close()
		_ = p.Kill(context.WithoutCancel(ctx))
		return nil, translate(ctx, ctx.Err())
	}
	p.follow(streamCtx, eventsOf[*process.StartResponse]{stream})
	return p, nil
}

func startRequest(cmd Command) *connect.Request[process.StartRequest] {
	config := &process.ProcessConfig{Cmd: cmd.Args[0], Args: cmd.Args[1:], Envs: cmd.Env}
	if cmd.Dir != "" {
		config.Cwd = &cmd.Dir
	}
	withInput := cmd.Stdin != nil
	message := &process.StartRequest{Process: config, Stdin: &withInput}
	if cmd.TTY != nil {
		message.Pty = terminal(cmd.TTY.Size)
	}
	r := connect.NewRequest(message)
	setUser(r.Header(), cmd.User)
	return r
}

func terminal(size TTYSize) *process.PTY {
	return &process.PTY{Size: &process.PTY_Size{Cols: uint32(size.Cols), Rows: uint32(size.Rows)}}
}

// setUser names the account to act as. The header that E2B's protocol has for it holds a
// user only, so a group goes next to it.
func setUser(h http.Header, user string) {
	if user == "" {
		return
	}
	name, group, _ := strings.Cut(user, ":")
	h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(name+":")))
	if group != "" {
		h.Set("X-Kiln-Group", group)
	}
}

// pump copies the output and finds out how the command ended.
func (p *Process) pump(ctx context.Context, stream events) {
	defer close(p.done)
	defer p.cancel()
	defer func() { _ = stream.Close() }()
	var end *process.ProcessEvent_EndEvent
	for {
		received, more := stream.next()
		if !more {
			break
		}
		switch event := received.GetEvent().(type) {
		case *process.ProcessEvent_Data:
			if err := p.output(event.Data); err != nil {
				p.err = fmt.Errorf("command output: %w", err)
				_ = p.Kill(context.WithoutCancel(ctx))
				return
			}
		case *process.ProcessEvent_End:
			end = event.End
		}
	}
	switch err := stream.Err(); {
	case end != nil:
		p.exit = exitOf(end)
	case err != nil:
		p.err = translate(ctx, err)
	default:
		p.err = gone(io.ErrUnexpectedEOF)
	}
}

func (p *Process) output(data *process.ProcessEvent_DataEvent) error {
	to, b := p.command.Stdout, data.GetStdout()
	switch data.GetOutput().(type) {
	case *process.ProcessEvent_DataEvent_Stderr:
		to, b = p.command.Stderr, data.GetStderr()
	case *process.ProcessEvent_DataEvent_Pty:
		b = data.GetPty()
	}
	if to == nil {
		return nil
	}
	_, err := to.Write(b)
	return err
}

// inputChunk is how much of Stdin is sent at once, in bytes, and bulk is how much no dialogue
// has in one piece.
const (
	inputChunk = 256 << 10
	bulk       = 16 << 10
)

// endOfTransmission is what a terminal takes for the end of its input.
const endOfTransmission = 4

// feed copies Stdin to the command. That the command does not want it, or has ended, is no
// error: writers to a pipe learn the same way.
func (p *Process) feed(ctx context.Context) {
	buffer := make([]byte, inputChunk)
	for {
		n, err := p.command.Stdin.Read(buffer)
		if n >= bulk && err == nil && p.command.TTY == nil {
			if p.stream(ctx, buffer, n) != nil {
				return
			}
			err = io.EOF
		} else if n > 0 && p.send(ctx, buffer[:n]) != nil {
			return
		}
		if err != nil {
			p.closeStdin(ctx)
			return
		}
	}
}

// stream sends the first n bytes of buffer and the rest of Stdin in one call, so that no
// piece waits for the answer to the one before. Pieces of a dialogue are sent each in a call
// of its own, because a proxy on the way might keep a request until its end.
func (p *Process) stream(ctx context.Context, buffer []byte, n int) error {
	calls := p.client.process.StreamInput(ctx)
	start := &process.StreamInputRequest_StartEvent{Process: p.selector()}
	err := calls.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Start{Start: start}})
	for more := error(nil); err == nil; n, more = p.command.Stdin.Read(buffer) {
		if n > 0 {
			data := &process.StreamInputRequest_DataEvent{Input: stdin(buffer[:n])}
			err = calls.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Data{Data: data}})
		}
		if more != nil {
			break
		}
	}
	_, closed := calls.CloseAndReceive()
	return errors.Join(err, closed)
}

func stdin(b []byte) *process.ProcessInput {
	return &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: b}}
}

func (p *Process) send(ctx context.Context, b []byte) error {
	input := stdin(b)
	if p.command.TTY != nil {
		input.Input = &process.ProcessInput_Pty{Pty: b}
	}
	_, err := p.client.process.SendInput(ctx, connect.NewRequest(&process.SendInputRequest{Process: p.selector(), Input: input}))
	return err
}

func (p *Process) closeStdin(ctx context.Context) {
	if p.command.TTY != nil {
		_ = p.send(ctx, []byte{endOfTransmission})
		return
	}
	_, _ = p.client.process.CloseStdin(ctx, connect.NewRequest(&process.CloseStdinRequest{Process: p.selector()}))
}

func (p *Process) resize(ctx context.Context) {
	for {
		select {
		case size, open := <-p.command.TTY.Resize:
			if !open {
				return
			}
			_, _ = p.client.process.Update(ctx, connect.NewRequest(&process.UpdateRequest{Process: p.selector(), Pty: terminal(size)}))
		case <-ctx.Done():
			return
		}
	}
}

func (p *Process) selector() *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: p.PID}}
}

// Wait returns how the command ended. When ctx ends first, the command is killed.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.done:
		return p.exit, p.err
	case <-ctx.Done():
	}
	err := p.Kill(context.WithoutCancel(ctx))
	timeout := time.NewTimer(cleanupTimeout)
	defer timeout.Stop()
	if err == nil {
		select { // what the command has written is still copied
		case <-p.done:
		case <-timeout.C:
		}
	}
	p.Detach()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return Exit{}, kiln.Errorf(kiln.CodeTimeout, "command %q ran out of time and was killed: %w", p.command.Args[0], ctx.Err())
	}
	return Exit{}, kiln.Errorf(kiln.CodeCanceled, "command %q was cancelled and killed: %w", p.command.Args[0], ctx.Err())
}

// Done is closed when the command has ended or the process was detached.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill kills the command and the processes of its group. That it has ended already is no
// error.
func (p *Process) Kill(ctx context.Context) error {
	return p.signal(ctx, process.Signal_SIGNAL_SIGKILL)
}

// Terminate asks the command to end (SIGTERM).
func (p *Process) Terminate(ctx context.Context) error {
	return p.signal(ctx, process.Signal_SIGNAL_SIGTERM)
}

func (p *Process) signal(ctx context.Context, signal process.Signal) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	_, err := p.client.process.SendSignal(ctx, connect.NewRequest(&process.SendSignalRequest{Process: p.selector(), Signal: signal}))
	if connect.CodeOf(err) == connect.CodeNotFound {
		return nil
	}
	return translate(ctx, err)
}

// Detach lets the command run on by itself. Its output is dropped from now on, and no
// connection stays open for it.
func (p *Process) Detach() {
	p.cancel()
	<-p.done
}
