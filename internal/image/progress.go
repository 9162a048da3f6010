package image

import (
	"bytes"
	"strings"
	"sync"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/kilnvm/kiln"
)

// keptOutput is how many of a command's last lines an error repeats.
const keptOutput = 20

// redactor takes the values of secrets out of text.
type redactor struct{ replacer *strings.Replacer }

// minSecret is the shortest line of a secret that is worth hiding: replacing shorter
// ones would garble everything.
const minSecret = 4

func newRedactor(secrets map[string][]byte) redactor {
	var pairs []string
	for _, value := range secrets {
		for _, part := range append(bytes.Split(value, []byte("\n")), value) {
			part = bytes.TrimSpace(part)
			if len(part) >= minSecret {
				pairs = append(pairs, string(part), "***")
			}
		}
	}
	return redactor{strings.NewReplacer(pairs...)}
}

func (r redactor) clean(s string) string { return r.replacer.Replace(s) }

func (r redactor) cleanAll(lines []string) []string {
	for i, line := range lines {
		lines[i] = r.clean(line)
	}
	return lines
}

// lineWriter passes text on line by line.
type lineWriter struct {
	progress kiln.Progress
	redact   redactor
	mu       sync.Mutex
	partial  []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.partial = append(w.partial, p...)
	for {
		line, rest, ok := bytes.Cut(w.partial, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		w.log(line)
		w.partial = rest
	}
}

func (w *lineWriter) log(line []byte) {
	text := w.redact.clean(strings.TrimRight(string(line), "\r"))
	if p, ok := w.progress.(kiln.EventProgress); ok {
		p.Step(kiln.StageImage, text)
		return
	}
	w.progress.Log(kiln.StageImage, text)
}

// flush passes on what is left without a line end.
func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.partial) > 0 {
		w.log(w.partial)
		w.partial = nil
	}
}

// history remembers of each step what an error may have to tell.
type history struct {
	mu    sync.Mutex
	steps map[digest.Digest]*step
	order []*step
}

type step struct {
	name          string
	started, done bool
	failed        bool
	output        []string
	partial       string
}

func newHistory() *history { return &history{steps: map[digest.Digest]*step{}} }

func (h *history) record(status *client.SolveStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, v := range status.Vertexes {
		s := h.step(v.Digest)
		s.name = v.Name
		s.started = v.Started != nil
		s.done = v.Completed != nil
		s.failed = v.Error != ""
	}
	for _, l := range status.Logs {
		h.step(l.Vertex).add(string(l.Data))
	}
}

func (h *history) step(d digest.Digest) *step {
	s := h.steps[d]
	if s == nil {
		s = &step{}
		h.steps[d] = s
		h.order = append(h.order, s)
	}
	return s
}

func (s *step) add(text string) {
	lines := strings.Split(s.partial+text, "\n")
	s.partial = lines[len(lines)-1]
	for _, line := range lines[:len(lines)-1] {
		s.output = append(s.output, strings.TrimRight(line, "\r"))
	}
	if extra := len(s.output) - keptOutput; extra > 0 {
		s.output = append([]string(nil), s.output[extra:]...)
	}
}

// output returns the last lines of the step with that digest, or of the failed one.
func (h *history) output(d digest.Digest) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.steps[d]
	for _, other := range h.order {
		if s == nil && other.failed {
			s = other
		}
	}
	if s == nil {
		return nil
	}
	if s.partial == "" {
		return append([]string(nil), s.output...)
	}
	return append(append([]string(nil), s.output...), s.partial)
}

// running names the last step that was started and has not succeeded, or "". A step that
// was cancelled counts: it has failed by the time anybody asks.
func (h *history) running() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	name := ""
	for _, s := range h.order {
		if s.started && (!s.done || s.failed) {
			name = s.name
		}
	}
	return name
}

// failed names the step that failed first, or "".
func (h *history) failed() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.order {
		if s.failed {
			return s.name
		}
	}
	return ""
}
