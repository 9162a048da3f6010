package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// bar shows on a terminal how far a transfer has come. nil shows nothing.
type bar struct {
	to    io.Writer
	what  string
	total int64 // bytes; 0 when nobody knows
	now   func() time.Time

	done         int64
	begun, shown time.Time
}

const (
	barDelay = 500 * time.Millisecond // what takes less needs no bar
	barPause = 100 * time.Millisecond // between two pictures
	barWidth = 24
)

// bar returns a bar for a transfer of total bytes, or nil when nobody looks.
func (a *app) bar(what string, total int64) *bar {
	if term, _ := a.lookupEnv("TERM"); term == "dumb" || a.json() || !isTerminal(a.stderr) {
		return nil
	}
	return newBar(a.stderr, what, total, time.Now)
}

func newBar(to io.Writer, what string, total int64, now func() time.Time) *bar {
	begun := now()
	return &bar{to: to, what: what, total: total, now: now, begun: begun, shown: begun.Add(barDelay - barPause)}
}

// Write implements [io.Writer]: it notes that p has passed.
func (b *bar) Write(p []byte) (int, error) {
	b.done += int64(len(p))
	if now := b.now(); now.Sub(b.shown) >= barPause {
		b.shown = now
		fmt.Fprint(b.to, "\r"+b.line(now)+clearToEnd)
	}
	return len(p), nil
}

// clearToEnd removes what an earlier, longer line left.
const clearToEnd = "\x1b[K"

func (b *bar) line(now time.Time) string {
	rate := float64(b.done) / now.Sub(b.begun).Seconds()
	if b.total <= 0 {
		return fmt.Sprintf("%s  %s  %s/s", b.what, mib(b.done), mib(int64(rate)))
	}
	part := min(1, float64(b.done)/float64(b.total))
	full := int(part * barWidth)
	left := time.Duration(float64(max(0, b.total-b.done)) / max(rate, 1) * float64(time.Second)).Round(time.Second)
	return fmt.Sprintf("%s  [%s%s] %3.0f %%  %s of %s  %s/s  %s left", b.what, strings.Repeat("#", full), strings.Repeat(" ", barWidth-full),
		100*part, mib(b.done), mib(b.total), mib(int64(rate)), left)
}

// end removes the bar.
func (b *bar) end() {
	if b != nil && b.shown.Sub(b.begun) >= barDelay {
		fmt.Fprint(b.to, "\r"+clearToEnd)
	}
}

// reader passes r on and shows what goes through.
func (b *bar) reader(r io.Reader) io.Reader {
	if b == nil {
		return r
	}
	return io.TeeReader(r, b)
}

// writer passes w on and shows what goes through.
func (b *bar) writer(w io.Writer) io.Writer {
	if b == nil {
		return w
	}
	return io.MultiWriter(w, b)
}
