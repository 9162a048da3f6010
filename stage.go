package kiln

import "time"

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

// DiscardProgress is a [Progress] that ignores everything.
var DiscardProgress Progress = discard{}

type discard struct{}

func (discard) Log(Stage, string) {}
