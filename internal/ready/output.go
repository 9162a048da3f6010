package ready

import (
	"bytes"
	"slices"
	"sync"

	"github.com/kilnvm/kiln"
)

// Bounds of what is remembered of a command's output.
const (
	keptLines    = 20
	maxLineBytes = 4 << 10
)

// output passes what a command prints to progress, line by line, and remembers the end.
type output struct {
	progress kiln.Progress

	mu    sync.Mutex
	lines []string
	rest  []byte // the line that has no end yet
}

// Write never fails: a failing one would kill the command.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for chunk := range bytes.Lines(p) {
		o.rest = append(o.rest, chunk...)
		if o.rest[len(o.rest)-1] == '\n' || len(o.rest) >= maxLineBytes {
			o.add(string(bytes.TrimRight(o.rest, "\r\n")))
			o.rest = o.rest[:0]
		}
	}
	return len(p), nil
}

func (o *output) add(line string) {
	o.progress.Log(kiln.StageSnapshot, line)
	o.lines = append(o.lines, line)
	if extra := len(o.lines) - keptLines; extra > 0 {
		o.lines = slices.Delete(o.lines, 0, extra)
	}
}

// last returns the last lines, an unfinished one included.
func (o *output) last() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := slices.Clone(o.lines)
	if len(o.rest) > 0 {
		lines = append(lines, string(o.rest))
	}
	return lines
}
