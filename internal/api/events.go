package api

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// eventPing is how often a silent stream proves that both ends are there.
const eventPing = 15 * time.Second

// eventWrite is how long a reader may take nothing before it counts as gone.
const eventWrite = 30 * time.Second

// events writes server-sent events (the WHATWG HTML standard, section 9.2) with JSON
// data. It is safe for concurrent use.
type events struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu  sync.Mutex
	w   http.ResponseWriter
	rc  *http.ResponseController
	err error
}

func newEvents(ctx context.Context, w http.ResponseWriter) *events {
	ctx, cancel := context.WithCancel(ctx)
	e := &events{ctx: ctx, cancel: cancel, w: w, rc: http.NewResponseController(w)}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	e.wg.Add(1)
	go e.ping()
	return e
}

// Context ends when the reader has gone or the stream is closed.
func (e *events) Context() context.Context { return e.ctx }

// Close stops the pings and gives the connection back as it was. The response ends when
// the handler returns.
func (e *events) Close() {
	e.cancel()
	e.wg.Wait()
	_ = e.rc.SetWriteDeadline(time.Time{})
}

// Send writes one event. An empty name leaves the event unnamed.
func (e *events) Send(name string, data any) error { return e.SendFrom("", name, data) }

// SendFrom is Send for an event with an ID. A reader whose connection broke, as a browser's
// EventSource does by itself, sends the last one back in the header Last-Event-ID.
func (e *events) SendFrom(id, name string, data any) error {
	var buf bytes.Buffer
	if id != "" {
		buf.WriteString("id: " + id + "\n")
	}
	if name != "" {
		buf.WriteString("event: " + name + "\n")
	}
	buf.WriteString("data: ")
	if err := json.NewEncoder(&buf).Encode(data); err != nil { // ends with a newline
		return err
	}
	buf.WriteByte('\n')
	return e.write(buf.Bytes())
}

func (e *events) write(b []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return e.err
	}
	_ = e.rc.SetWriteDeadline(time.Now().Add(eventWrite)) // not every test's writer has one
	if _, e.err = e.w.Write(b); e.err == nil {
		e.err = e.rc.Flush()
	}
	if e.err != nil {
		e.cancel()
	}
	return e.err
}

func (e *events) ping() {
	defer e.wg.Done()
	tick := time.NewTicker(eventPing)
	defer tick.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-tick.C:
			if e.write([]byte(": ping\n\n")) != nil {
				return
			}
		}
	}
}

// eventStream documents a response of server-sent events.
func eventStream(description string) map[string]*huma.Response {
	return map[string]*huma.Response{"200": {
		Description: description,
		Content:     map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}},
	}}
}
