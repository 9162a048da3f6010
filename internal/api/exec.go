package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// maxOutput bounds what a plain exec keeps of each output stream.
const maxOutput = 16 << 20

// defaultExecTimeout is how long a command may run when the request does not say.
const defaultExecTimeout = 10 * time.Minute

// ExecRequest asks for one command. Either cmd or args is given.
type ExecRequest struct {
	_              struct{}          `additionalProperties:"true"`
	Cmd            string            `json:"cmd,omitempty" doc:"A command line for /bin/sh"`
	Args           []string          `json:"args,omitempty" doc:"A command and its arguments, without a shell"`
	TimeoutSeconds float64           `json:"timeout_seconds,omitempty" minimum:"0" maximum:"86400" doc:"Default 600"`
	Env            map[string]string `json:"env,omitempty"`
	Dir            string            `json:"cwd,omitempty" doc:"Default the template's working directory"`
	User           string            `json:"user,omitempty" doc:"Default the template's user"`
	Stdin          []byte            `json:"stdin,omitempty" doc:"Input, base64"`
}

// ExecResult is how a command ended and what it printed. Bytes that are not UTF-8 are
// replaced; the daemon's own protocol carries them unchanged.
type ExecResult struct {
	Stdout     string `json:"stdout"`
	Stderr     string `json:"stderr"`
	ExitCode   int    `json:"exit_code" doc:"128 plus the number of the signal for a command that one ended"`
	Signal     string `json:"signal,omitempty"`
	DurationMS int64  `json:"duration_ms"`
	Truncated  bool   `json:"truncated,omitempty" doc:"Output beyond 16 MiB was dropped"`
}

type (
	execInput struct {
		SandboxID
		Body ExecRequest
	}
	execOutput struct{ Body ExecResult }
)

// chunkEvent, exitEvent and errorEvent are the data of exec/stream events.
type (
	chunkEvent struct {
		Chunk string `json:"chunk"`
	}
	exitEvent struct {
		ExitCode   int    `json:"exit_code"`
		Signal     string `json:"signal,omitempty"`
		DurationMS int64  `json:"duration_ms"`
	}
)

func (s *Server) registerExec() {
	tags := []string{"exec"}
	register(s, route{Operation: huma.Operation{
		OperationID: "exec", Method: http.MethodPost, Path: "/v1/sandboxes/{id}/exec", Tags: tags,
		Summary: "Run a command and answer when it has ended",
	}, unbounded: true}, s.exec)
	register(s, route{Operation: huma.Operation{
		OperationID: "execStream", Method: http.MethodPost, Path: "/v1/sandboxes/{id}/exec/stream", Tags: tags,
		Summary:   "Run a command and stream its output as server-sent events",
		Responses: eventStream("stdout and stderr carry {chunk}, exit carries {exit_code}, error carries {error}"),
	}, unbounded: true}, s.execStream)
	register(s, route{Operation: huma.Operation{
		OperationID: "execWebSocket", Method: http.MethodGet, Path: "/v1/sandboxes/{id}/exec/ws", Tags: tags,
		Summary:     "Run commands over a WebSocket",
		Description: "Frames are JSON. To the server: {id,cmd,timeout_seconds} and {id,cancel}. From it: {id,stream,data}, {id,exit}, {id,error}.",
		Responses:   map[string]*huma.Response{"101": {Description: "Switching to WebSocket"}},
	}, unbounded: true}, s.execWebSocket)
}

// command checks a request and returns the command it asks for.
func (r *ExecRequest) command() (guest.Command, error) {
	cmd := guest.Command{Args: r.Args, Env: r.Env, Dir: r.Dir, User: r.User}
	switch {
	case r.Cmd != "" && len(r.Args) > 0:
		return cmd, kiln.Errorf(kiln.CodeInvalid, "exec: give cmd or args, not both")
	case r.Cmd != "":
		cmd.Args = []string{"/bin/sh", "-c", r.Cmd}
	case len(r.Args) == 0 || r.Args[0] == "":
		return cmd, kiln.Errorf(kiln.CodeInvalid, "exec: no command given")
	}
	for _, arg := range cmd.Args {
		if strings.Contains(arg, "\x00") {
			return cmd, kiln.Errorf(kiln.CodeInvalid, "exec: an argument holds a NUL byte")
		}
	}
	if len(r.Stdin) > 0 {
		cmd.Stdin = bytes.NewReader(r.Stdin)
	}
	return cmd, checkEnv(r.Env)
}

func (r *ExecRequest) timeout() time.Duration {
	if r.TimeoutSeconds == 0 {
		return defaultExecTimeout
	}
	return time.Duration(r.TimeoutSeconds * float64(time.Second))
}

// runCommand runs cmd in a sandbox. Its error is a *kiln.Error with code timeout when
// the command's own time was up.
func (s *Server) runCommand(ctx context.Context, g Guest, cmd guest.Command, timeout time.Duration) (exitEvent, error) {
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	exit, err := g.Run(bounded, cmd)
	if err != nil && ctx.Err() == nil && errors.Is(bounded.Err(), context.DeadlineExceeded) {
		return exitEvent{}, kiln.Errorf(kiln.CodeTimeout, "exec: timeout: the command ran longer than %v and was killed", timeout)
	}
	if err != nil {
		return exitEvent{}, err
	}
	return exitEvent{ExitCode: exit.Code, Signal: exit.Signal, DurationMS: time.Since(start).Milliseconds()}, nil
}

func (s *Server) exec(ctx context.Context, in *execInput) (*execOutput, error) {
	cmd, err := in.Body.command()
	if err != nil {
		return nil, err
	}
	g, err := s.opts.Sandboxes.Guest(ctx, orgOf(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	var stdout, stderr ExecOutput
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	exit, err := s.runCommand(ctx, g, cmd, in.Body.timeout())
	if err != nil {
		return nil, err
	}
	return &execOutput{Body: ExecResult{
		Stdout: stdout.String(), Stderr: stderr.String(), ExitCode: exit.ExitCode, Signal: exit.Signal,
		DurationMS: exit.DurationMS, Truncated: stdout.Truncated || stderr.Truncated,
	}}, nil
}

func (s *Server) execStream(ctx context.Context, in *execInput) (*huma.StreamResponse, error) {
	cmd, err := in.Body.command()
	if err != nil {
		return nil, err
	}
	g, err := s.opts.Sandboxes.Guest(ctx, orgOf(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		r, w := humago.Unwrap(hctx)
		events := newEvents(r.Context(), w)
		defer events.Close()
		stdout := newTextWriter(func(text string) error { return events.Send("stdout", chunkEvent{text}) })
		stderr := newTextWriter(func(text string) error { return events.Send("stderr", chunkEvent{text}) })
		cmd.Stdout, cmd.Stderr = stdout, stderr
		exit, err := s.runCommand(events.Context(), g, cmd, in.Body.timeout())
		if err := errors.Join(stdout.Flush(), stderr.Flush()); err != nil {
			return // the reader has gone
		}
		if err != nil {
			_ = events.Send("error", errorFor(r.Context(), s.log, "exec", err))
			return
		}
		_ = events.Send("exit", exit)
	}}, nil
}

// ExecOutput keeps the first 16 MiB of a command's output for an [ExecResult] and swallows
// the rest, so that the command is neither blocked nor killed for printing much.
type ExecOutput struct {
	Truncated bool

	buf bytes.Buffer
}

func (b *ExecOutput) Write(p []byte) (int, error) {
	if room := maxOutput - b.buf.Len(); room < len(p) {
		b.Truncated = true
		b.buf.Write(p[:room])
		return len(p), nil
	}
	return b.buf.Write(p)
}

func (b *ExecOutput) String() string { return strings.ToValidUTF8(b.buf.String(), "\uFFFD") }

// textWriter passes bytes on as text without cutting a character in two.
type textWriter struct {
	send func(string) error
	rest []byte // the beginning of a character
}

func newTextWriter(send func(string) error) *textWriter { return &textWriter{send: send} }

var _ io.Writer = (*textWriter)(nil)

func (w *textWriter) Write(p []byte) (int, error) {
	data := append(w.rest, p...)
	whole := len(data) - incomplete(data)
	w.rest = append([]byte(nil), data[whole:]...)
	if whole == 0 {
		return len(p), nil
	}
	if err := w.send(strings.ToValidUTF8(string(data[:whole]), "\uFFFD")); err != nil {
		return 0, fmt.Errorf("send output: %w", err)
	}
	return len(p), nil
}

// Flush sends what was kept back; it was no character after all.
func (w *textWriter) Flush() error {
	if len(w.rest) == 0 {
		return nil
	}
	w.rest = nil
	return w.send("\uFFFD")
}

// incomplete returns how many bytes at the end of b begin a character that more bytes
// could complete.
func incomplete(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		tail := b[len(b)-n:]
		if utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}
