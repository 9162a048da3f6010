package image

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/kilnvm/kiln"
)

const (
	maxEventText = 2 << 10  // bytes of a name or an error
	maxEventLog  = 16 << 10 // bytes of output in one record
	maxHeldLine  = 64 << 10 // bytes of a line that has not ended; what follows is dropped
)

// eventWriter passes BuildKit's events on as JSON: without secrets, without what no
// display shows, and in records of bounded size. Output is held back until its line has
// ended, because a secret may be spread over two events.
type eventWriter struct {
	progress kiln.EventProgress // nil: nobody wants events
	redact   redactor
	held     map[digest.Digest]*client.VertexLog // the unfinished line of each vertex
}

func newEventWriter(progress kiln.Progress, redact redactor) *eventWriter {
	p, _ := progress.(kiln.EventProgress)
	return &eventWriter{progress: p, redact: redact, held: map[digest.Digest]*client.VertexLog{}}
}

// write passes on a copy of status, which stays as it is.
func (w *eventWriter) write(status *client.SolveStatus) {
	if w.progress == nil {
		return
	}
	var out client.SolveStatus
	for _, v := range status.Vertexes {
		out.Vertexes = append(out.Vertexes, w.vertex(v))
	}
	for _, s := range status.Statuses {
		c := *s
		c.ID, c.Name = w.text(s.ID), w.text(s.Name)
		out.Statuses = append(out.Statuses, &c)
	}
	for _, l := range status.Logs {
		out.Logs = append(out.Logs, w.lines(l)...)
	}
	for _, v := range status.Vertexes {
		if v.Completed != nil {
			out.Logs = append(out.Logs, w.rest(v.Digest)...)
		}
	}
	for _, n := range status.Warnings {
		out.Warnings = append(out.Warnings, &client.VertexWarning{Vertex: n.Vertex, Level: n.Level, Short: []byte(w.text(string(n.Short)))})
	}
	w.send(&out)
}

// flush passes on the lines that have not ended.
func (w *eventWriter) flush() {
	var out client.SolveStatus
	for d := range w.held {
		out.Logs = append(out.Logs, w.rest(d)...)
	}
	w.send(&out)
}

func (w *eventWriter) vertex(v *client.Vertex) *client.Vertex {
	c := *v
	c.Inputs = nil
	c.Name, c.Error = w.text(v.Name), w.text(v.Error)
	if g := v.ProgressGroup; g != nil {
		c.ProgressGroup = &pb.ProgressGroup{Id: g.Id, Name: w.text(g.Name), Weak: g.Weak}
	}
	return &c
}

func (w *eventWriter) text(s string) string {
	s = w.redact.clean(s)
	if len(s) > maxEventText {
		s = strings.ToValidUTF8(s[:maxEventText], "") + "…"
	}
	return s
}

// lines returns the output that l completes.
func (w *eventWriter) lines(l *client.VertexLog) []*client.VertexLog {
	h := w.held[l.Vertex]
	if h == nil {
		h = &client.VertexLog{Vertex: l.Vertex}
		w.held[l.Vertex] = h
	}
	h.Stream, h.Timestamp = l.Stream, l.Timestamp
	end := bytes.LastIndexByte(l.Data, '\n') + 1
	var whole []*client.VertexLog
	if end > 0 {
		whole = w.output(h, append(h.Data, l.Data[:end]...))
		h.Data = nil
	}
	h.Data = append(h.Data, l.Data[end:]...)
	if len(h.Data) > maxHeldLine {
		h.Data = h.Data[:maxHeldLine]
	}
	return whole
}

// rest returns the unfinished line of a vertex.
func (w *eventWriter) rest(vertex digest.Digest) []*client.VertexLog {
	h := w.held[vertex]
	delete(w.held, vertex)
	if h == nil || len(h.Data) == 0 {
		return nil
	}
	return w.output(h, h.Data)
}

// output cleans whole lines and cuts them into records like of.
func (w *eventWriter) output(of *client.VertexLog, data []byte) (logs []*client.VertexLog) {
	data = []byte(w.redact.clean(string(data)))
	for len(data) > 0 {
		n := min(len(data), maxEventLog)
		logs = append(logs, &client.VertexLog{Vertex: of.Vertex, Stream: of.Stream, Timestamp: of.Timestamp, Data: data[:n]})
		data = data[n:]
	}
	return logs
}

// send passes status on whole if it is small enough, else one part at a time.
func (w *eventWriter) send(status *client.SolveStatus) {
	parts := len(status.Vertexes) + len(status.Statuses) + len(status.Logs) + len(status.Warnings)
	if parts == 0 || w.progress == nil {
		return
	}
	event, err := json.Marshal(status)
	if err != nil {
		return // a display without it is no reason to lose the build
	}
	if len(event) <= kiln.MaxLogEvent {
		w.progress.Event(kiln.StageImage, event)
		return
	}
	if parts == 1 {
		return
	}
	for i := range status.Vertexes {
		w.send(&client.SolveStatus{Vertexes: status.Vertexes[i : i+1]})
	}
	for i := range status.Statuses {
		w.send(&client.SolveStatus{Statuses: status.Statuses[i : i+1]})
	}
	for i := range status.Logs {
		w.send(&client.SolveStatus{Logs: status.Logs[i : i+1]})
	}
	for i := range status.Warnings {
		w.send(&client.SolveStatus{Warnings: status.Warnings[i : i+1]})
	}
}
