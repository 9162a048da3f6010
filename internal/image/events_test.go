package image

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/kilnvm/kiln"
)

// eventRecorder keeps what a log would keep.
type eventRecorder struct {
	recorder
	steps  []string
	events []json.RawMessage
}

func (r *eventRecorder) Step(_ kiln.Stage, line string) { r.steps = append(r.steps, line) }

func (r *eventRecorder) Event(_ kiln.Stage, event json.RawMessage) {
	r.events = append(r.events, event)
}

// TestHazard11EventRedaction keeps secrets out of events too, even those that two events
// share, and keeps events small.
func TestHazard11EventRedaction(t *testing.T) {
	rec := &eventRecorder{}
	w := newEventWriter(rec, newRedactor(map[string][]byte{"key": []byte("QUJDREVG")}))
	now := time.Now()
	status := &client.SolveStatus{
		Vertexes: []*client.Vertex{{Digest: "sha256:a", Name: "RUN echo QUJDREVG", Started: &now}},
		Logs:     []*client.VertexLog{{Vertex: "sha256:a", Data: []byte("one\nx QUJD"), Timestamp: now}},
	}
	w.write(status)
	if status.Vertexes[0].Name != "RUN echo QUJDREVG" {
		t.Error("the event of the other reader was changed")
	}
	w.write(&client.SolveStatus{
		Vertexes: []*client.Vertex{{Digest: "sha256:a", Name: "RUN", Started: &now, Completed: &now, Error: "QUJDREVG failed"}},
		Logs:     []*client.VertexLog{{Vertex: "sha256:a", Data: []byte("REVG y\n" + strings.Repeat("z\n", kiln.MaxLogEvent) + "QUJDREVG"), Timestamp: now}},
	})
	w.flush()
	var output strings.Builder
	var failure string
	for _, event := range rec.events {
		if len(event) > kiln.MaxLogEvent {
			t.Errorf("an event of %d bytes", len(event))
		}
		var got client.SolveStatus
		if err := json.Unmarshal(event, &got); err != nil {
			t.Fatal(err)
		}
		for _, v := range got.Vertexes {
			failure = v.Error
			if strings.Contains(v.Name, "QUJD") {
				t.Errorf("name %q", v.Name)
			}
		}
		for _, l := range got.Logs {
			output.Write(l.Data)
		}
	}
	if want := "one\nx *** y\n" + strings.Repeat("z\n", kiln.MaxLogEvent) + "***"; output.String() != want {
		t.Errorf("output of %d bytes, want %d: %.40q", output.Len(), len(want), output.String())
	}
	if failure != "*** failed" {
		t.Errorf("error %q", failure)
	}
}

// A reader that takes events learns which lines say the same.
func TestStepsAreMarked(t *testing.T) {
	rec := &eventRecorder{}
	w := &lineWriter{progress: rec, redact: newRedactor(nil)}
	if _, err := w.Write([]byte("#1 DONE 0.1s\n")); err != nil {
		t.Fatal(err)
	}
	if len(rec.steps) != 1 || len(rec.lines) != 0 {
		t.Errorf("steps %q, lines %q", rec.steps, rec.lines)
	}
}
