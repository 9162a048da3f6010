package pipeline

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/kilnvm/kiln"
)

const (
	maxLogLine  = 16 << 10 // bytes; longer lines are cut
	maxBuildLog = 64 << 20 // bytes; later lines are dropped
	maxEvents   = 32 << 20 // bytes of the log; later events are dropped, so that lines have room
)

// LogLine is one record of a build's log: a line, unless it is only for displays.
type LogLine struct {
	Time  time.Time  `json:"time"`
	Stage kiln.Stage `json:"stage"`
	Line  string     `json:"line"`

	Kind   kiln.LogKind      `json:"kind,omitempty"`
	Event  json.RawMessage   `json:"event,omitempty"`  // of LogEvent
	Result *kiln.StageResult `json:"result,omitempty"` // of the line that ends a stage

	// Next is the offset of the line after this one.
	Next int64 `json:"-"`
}

// buildLogs keeps one file of JSON lines per build and tells followers about news.
type buildLogs struct {
	dir string

	mu    sync.Mutex
	feeds map[string]*feed
}

// feed announces news of one build that has not ended.
type feed struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced when a line was written
	ended   chan struct{} // closed when the build has ended
}

func newBuildLogs(dir string) (*buildLogs, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("build logs: %w", err)
	}
	return &buildLogs{dir: dir, feeds: map[string]*feed{}}, nil
}

func (l *buildLogs) path(buildID string) string { return filepath.Join(l.dir, buildID+".log") }

// LogSize returns how many bytes the log of a build takes on disk; 0 if there is none.
func (s *Service) LogSize(buildID string) int64 {
	info, err := os.Stat(s.logs.path(buildID))
	if err != nil {
		return 0
	}
	return info.Size()
}

// DropLog removes the log of a build that has ended. It is no error if there is none.
func (s *Service) DropLog(buildID string) error {
	if err := os.Remove(s.logs.path(buildID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("build log: %w", err)
	}
	return nil
}

// feed returns the feed of a build, making it if need be. Whoever finds that the build
// has ended must call end, or the feed stays for ever.
func (l *buildLogs) feed(buildID string) *feed {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.feeds[buildID]
	if f == nil {
		f = &feed{changed: make(chan struct{}), ended: make(chan struct{})}
		l.feeds[buildID] = f
	}
	return f
}

// end tells everyone who waits that the build has ended. It is idempotent.
func (l *buildLogs) end(buildID string) {
	l.mu.Lock()
	f := l.feeds[buildID]
	delete(l.feeds, buildID)
	l.mu.Unlock()
	if f != nil {
		close(f.ended)
	}
}

func (f *feed) news() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *feed) announce() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.changed)
	f.changed = make(chan struct{})
}

// logWriter appends to the log of one build. It implements kiln.EventProgress. Losing the log
// is no reason to lose the build, so failures to write are only counted as dropped lines.
type logWriter struct {
	feed *feed

	mu   sync.Mutex
	file *os.File
	size int64
	full bool
}

// open returns a writer that appends. A line that a crash cut short is removed first.
func (l *buildLogs) open(buildID string) (*logWriter, error) {
	f, err := os.OpenFile(l.path(buildID), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("build log: %w", err)
	}
	size, err := endOfLastLine(f)
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		_, err = f.Seek(size, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("build log: %w", err)
	}
	return &logWriter{feed: l.feed(buildID), file: f, size: size}, nil
}

// endOfLastLine returns the offset after the last newline of f.
func endOfLastLine(f *os.File) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 2*maxLogLine)
	for end > 0 {
		start := max(0, end-int64(len(buf)))
		n, err := f.ReadAt(buf[:end-start], start)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return start + int64(i) + 1, nil
		}
		end = start
	}
	return 0, nil
}

// Log implements kiln.Progress.
func (w *logWriter) Log(stage kiln.Stage, line string) {
	w.append(LogLine{Stage: stage, Line: line})
}

// Step implements kiln.EventProgress.
func (w *logWriter) Step(stage kiln.Stage, line string) {
	w.append(LogLine{Stage: stage, Line: line, Kind: kiln.LogStep})
}

// Event implements kiln.EventProgress. Lines must not suffer from events: one that is too
// large or comes too late is dropped.
func (w *logWriter) Event(stage kiln.Stage, event json.RawMessage) {
	if len(event) <= kiln.MaxLogEvent {
		w.append(LogLine{Stage: stage, Kind: kiln.LogEvent, Event: event})
	}
}

// begin notes that a stage has begun.
func (w *logWriter) begin(stage kiln.Stage) { w.append(LogLine{Stage: stage, Kind: kiln.LogBegin}) }

// end notes that a stage is done, and says so.
func (w *logWriter) end(res kiln.StageResult, line string) {
	w.append(LogLine{Stage: res.Stage, Line: line, Result: &res})
}

func (w *logWriter) append(l LogLine) {
	if len(l.Line) > maxLogLine {
		l.Line = l.Line[:maxLogLine] + "…"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.full || w.file == nil || l.Kind == kiln.LogEvent && w.size > maxEvents {
		return
	}
	if w.size > maxBuildLog {
		w.full = true
		l = LogLine{Stage: l.Stage}
		l.Line = fmt.Sprintf("the log has reached %d MiB; what follows is not kept", maxBuildLog>>20)
	}
	l.Time, l.Line = time.Now().UTC(), strings.ToValidUTF8(l.Line, "\uFFFD")
	b, err := json.Marshal(l)
	if err != nil {
		return
	}
	n, err := w.file.Write(append(b, '\n'))
	if err != nil && n > 0 {
		_ = w.file.Truncate(w.size) // disk full: leave no half line
		_, _ = w.file.Seek(w.size, io.SeekStart)
		return
	}
	w.size += int64(n)
	w.feed.announce()
}

// Close makes the log durable. Lines logged later are dropped.
func (w *logWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.file
	w.file = nil
	return errors.Join(f.Sync(), f.Close())
}

// lines yields what the log holds from offset on. If follow is not nil it then waits for
// more until the build has ended.
func (l *buildLogs) lines(ctx context.Context, buildID string, offset int64, follow *feed) iter.Seq2[LogLine, error] {
	return func(yield func(LogLine, error) bool) {
		for {
			// Both are looked at before reading, so that no line written meanwhile is missed.
			var news <-chan struct{}
			ended := true
			if follow != nil {
				news = follow.news()
				select {
				case <-follow.ended:
				default:
					ended = false
				}
			}
			next, err := l.read(buildID, offset, func(line LogLine) bool { return yield(line, nil) })
			if errors.Is(err, errStop) {
				return
			}
			if err != nil {
				yield(LogLine{}, err)
				return
			}
			offset = next
			if ended {
				return
			}
			select {
			case <-news:
			case <-follow.ended:
			case <-ctx.Done():
				yield(LogLine{}, ctx.Err())
				return
			}
		}
	}
}

var errStop = errors.New("the reader has gone")

// read passes the complete lines from offset on and returns the offset after the last.
func (l *buildLogs) read(buildID string, offset int64, visit func(LogLine) bool) (int64, error) {
	f, err := os.Open(l.path(buildID))
	if errors.Is(err, fs.ErrNotExist) && offset == 0 {
		return offset, nil // not started yet
	}
	if errors.Is(err, fs.ErrNotExist) {
		return offset, kiln.Errorf(kiln.CodeInvalid, "build log: offset %d is past its end: it is empty", offset)
	}
	if err != nil {
		return offset, fmt.Errorf("build log: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return offset, fmt.Errorf("build log: %w", err)
	} else if offset > info.Size() {
		return offset, kiln.Errorf(kiln.CodeInvalid, "build log: offset %d is past its end, %d", offset, info.Size())
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return offset, fmt.Errorf("build log: %w", err)
	}
	r := bufio.NewReaderSize(f, 64<<10)
	for {
		raw, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return offset, nil
		}
		if err != nil {
			return offset, fmt.Errorf("build log: %w", err)
		}
		var line LogLine
		if err := json.Unmarshal(raw, &line); err != nil {
			return offset, kiln.Errorf(kiln.CodeInvalid, "build log: %d is not the offset of a line", offset)
		}
		offset += int64(len(raw))
		line.Next = offset
		if !visit(line) {
			return offset, errStop
		}
	}
}
