package kiln

import (
	"encoding/json"
	"time"
)

// Stage is one step of the pipeline that turns a source into snapshots.
type Stage string

const (
	StageSource   Stage = "source"
	StageImage    Stage = "image"
	StageRootfs   Stage = "rootfs"
	StageSnapshot Stage = "snapshot"
	StagePromote  Stage = "promote"
)

// Stages lists the stages of a build in the order in which they run.
func Stages() []Stage {
	return []Stage{StageSource, StageImage, StageRootfs, StageSnapshot, StagePromote}
}

// StageResult reports one finished stage of a build.
type StageResult struct {
	Stage    Stage         `json:"stage"`
	Cached   bool          `json:"cached"`
	Key      Digest        `json:"key,omitempty"`
	Duration time.Duration `json:"duration_ns"`
	Detail   string        `json:"detail,omitempty"` // "python3 -c … (shared-cpu-1x)", for people
}

// Progress receives what a build wants to tell its user. Implementations are safe for
// concurrent use and never block for long. Output of user commands is passed to Log
// unchanged, line by line and without the line end.
type Progress interface {
	Log(stage Stage, line string)
}

// EventProgress is a [Progress] that also takes the events of the engine that builds
// images, for readers that draw its display themselves.
type EventProgress interface {
	Progress
	// Step is Log for a line that says what an event says too.
	Step(stage Stage, line string)
	// Event takes one event, free of secrets and at most [MaxLogEvent] bytes long.
	Event(stage Stage, event json.RawMessage)
}

// MaxLogEvent is the size in bytes of the largest event that a build's log takes.
const MaxLogEvent = 64 << 10

// LogKind tells the records of a build's log apart.
type LogKind string

const (
	LogText  LogKind = ""      // a line of Kiln's own, with a result if a stage is done
	LogStep  LogKind = "step"  // a line about a step of the image, or of its output
	LogEvent LogKind = "event" // an event of the engine: BuildKit's SolveStatus as JSON
	LogBegin LogKind = "begin" // a stage has begun
)

// ForDisplay reports whether the record is only for readers that draw a display: it has
// no line.
func (k LogKind) ForDisplay() bool { return k == LogEvent || k == LogBegin }

// DiscardProgress is a [Progress] that ignores everything.
var DiscardProgress Progress = discard{}

type discard struct{}

func (discard) Log(Stage, string) {}
