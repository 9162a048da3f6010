package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/fsnotify/fsnotify"

	"github.com/kilnvm/kiln"
)

// Observer tells what sandboxes do without touching them. Every method sees only the
// organisation's own.
type Observer interface {
	// Usage returns what living sandboxes take from the host.
	Usage(ctx context.Context, orgID string) ([]kiln.SandboxUsage, error)
	// Console returns the file that the guest's console goes to, and what is closed when
	// the sandbox ends.
	Console(ctx context.Context, orgID, id string) (path string, ended <-chan struct{}, err error)
}

// SandboxUsage is what one sandbox takes from the host.
type SandboxUsage struct {
	kiln.SandboxUsage
	CPUMS int64 `json:"cpu_ms" doc:"CPU time since it started or woke last"`
}

type (
	usageOutput  struct{ Body []SandboxUsage }
	consoleInput struct {
		SandboxID
		Follow bool `query:"follow" doc:"Go on, as server-sent events, until the sandbox ends"`
	}
	lineEvent struct {
		Line string `json:"line"`
	}
)

func (s *Server) registerUsage() {
	tags := []string{"sandboxes"}
	register(s, route{Operation: huma.Operation{
		OperationID: "sandboxUsage", Method: http.MethodGet, Path: "/v1/usage", Tags: tags,
		Summary: "What living sandboxes take from the host; asking wakes nobody",
	}}, s.usage)
	register(s, route{Operation: huma.Operation{
		OperationID: "sandboxLogs", Method: http.MethodGet, Path: "/v1/sandboxes/{id}/logs", Tags: tags,
		Summary: "What the guest printed on its console, at most the last 2 MiB",
		Responses: map[string]*huma.Response{"200": {Description: "Text; with follow, events named line with {line}", Content: map[string]*huma.MediaType{
			"text/plain":        {Schema: &huma.Schema{Type: huma.TypeString}},
			"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}},
		}}},
	}, unbounded: true}, s.sandboxLogs)
}

func (s *Server) usage(ctx context.Context, _ *struct{}) (*usageOutput, error) {
	list, err := s.opts.Observer.Usage(ctx, orgOf(ctx))
	if err != nil {
		return nil, err
	}
	out := &usageOutput{Body: make([]SandboxUsage, 0, len(list))}
	for _, u := range list {
		out.Body = append(out.Body, SandboxUsage{SandboxUsage: u, CPUMS: u.CPUTime.Milliseconds()})
	}
	return out, nil
}

func (s *Server) sandboxLogs(ctx context.Context, in *consoleInput) (*huma.StreamResponse, error) {
	path, ended, err := s.opts.Observer.Console(ctx, orgOf(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		defer file.Close()
		r, w := humago.Unwrap(hctx)
		if !in.Follow {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			if _, err := io.Copy(w, file); err != nil {
				panic(http.ErrAbortHandler) // a cut connection, not a short log that looks whole
			}
			return
		}
		events := newEvents(r.Context(), w)
		defer events.Close()
		err := followLines(events.Context(), file, ended, func(line string) error { return events.Send("line", lineEvent{line}) })
		if err != nil && events.Context().Err() == nil {
			_ = events.Send("error", errorFor(r.Context(), s.log, "logs", err))
		}
	}}, nil
}

// followLines sends the lines of a file that grows, and begins anew when it was cut.
func followLines(ctx context.Context, file *os.File, ended <-chan struct{}, send func(string) error) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer watcher.Close()
	if err := watcher.Add(file.Name()); err != nil {
		return err
	}
	tail := &lineTail{file: file}
	for over := false; ; {
		if err := tail.read(send); err != nil {
			return err
		}
		if over {
			return tail.flush(send)
		}
		select {
		case <-watcher.Events:
		case err := <-watcher.Errors:
			return err
		case <-ended:
			over = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lineTail reads what has been added to a file.
type lineTail struct {
	file *os.File
	at   int64
	rest []byte // a line without its end
}

func (t *lineTail) read(send func(string) error) error {
	if info, err := t.file.Stat(); err == nil && info.Size() < t.at {
		t.at, t.rest = 0, nil
	}
	buffer := make([]byte, 64<<10)
	for {
		n, err := t.file.ReadAt(buffer, t.at)
		t.at += int64(n)
		t.rest = append(t.rest, buffer[:n]...)
		for {
			line, rest, found := bytes.Cut(t.rest, []byte("\n"))
			if !found {
				break
			}
			if err := send(cleanLine(line)); err != nil {
				return err
			}
			t.rest = rest
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func (t *lineTail) flush(send func(string) error) error {
	if len(t.rest) == 0 {
		return nil
	}
	return send(cleanLine(t.rest))
}

func cleanLine(line []byte) string {
	return strings.ToValidUTF8(strings.TrimSuffix(string(line), "\r"), "\uFFFD")
}
