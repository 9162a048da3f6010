package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	buildkit "github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
)

// Values of --progress.
const (
	progressAuto  = "auto"
	progressPlain = "plain"
	progressTTY   = "tty"
	progressJSON  = "json"
)

// addProgress gives a command that shows a build its --progress. A wrong value is refused
// before anything is built.
func (a *app) addProgress(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.progressMode, "progress", progressAuto, "how to show the build: auto, plain, tty or json")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		switch a.progressMode {
		case progressAuto, progressPlain, progressJSON:
			return nil
		case progressTTY:
			if isTerminal(a.progress()) {
				return nil
			}
			return usageError{kiln.Errorf(kiln.CodeInvalid, "--progress tty: the output is not a terminal").WithHint("use plain or json")}
		}
		return usageError{kiln.Errorf(kiln.CodeInvalid, "unknown progress %q", a.progressMode).WithHint("use auto, plain, tty or json")}
	}
}

// display shows the log of a build.
type display interface {
	record(api.LogLine) error
	// end takes the build as it was after the last record, or nil if nobody knows.
	end(*api.Build) error
}

// watch shows the log of a build on w and returns the build as it was after the last record.
func (a *app) watch(ctx context.Context, c *client.Client, w io.Writer, id string, o client.LogOptions) (*api.Build, error) {
	d, events, err := a.display(w, o.Follow)
	if err != nil {
		return nil, err
	}
	o.Events = events
	arrived := func() {}
	if o.Follow {
		arrived = a.sayIfQueued(ctx, c, id)
	}
	build, err := c.BuildLog(ctx, id, o, func(l api.LogLine) error {
		arrived()
		return d.record(l)
	})
	arrived()
	return build, errors.Join(err, d.end(build))
}

// silence is after how long it is looked up whether a build without any record has begun.
const silence = 2 * time.Second

// sayIfQueued tells on standard error that a build waits for others, if nothing of it arrives
// soon. The function that it returns is to be called when something has.
func (a *app) sayIfQueued(ctx context.Context, c *client.Client, id string) (arrived func()) {
	var mu sync.Mutex
	begun := false
	timer := time.AfterFunc(silence, func() {
		b, err := c.GetBuild(ctx, id)
		mu.Lock()
		defer mu.Unlock()
		if err == nil && b.Status == api.BuildQueued && !begun {
			fmt.Fprintf(a.stderr, "the build of %s version %d waits for others to end\n", b.Name, b.Version)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		begun = true
		timer.Stop()
	}
}

// display chooses how a build is shown, and says whether that needs its events.
func (a *app) display(w io.Writer, live bool) (_ display, events bool, err error) {
	switch a.progressMode {
	case progressJSON:
		return &jsonDisplay{w}, true, nil
	case progressPlain:
		return &plainDisplay{w}, false, nil
	case progressAuto:
		if term, _ := a.lookupEnv("TERM"); !live || term == "dumb" || !isTerminal(w) {
			return &plainDisplay{w}, false, nil
		}
	}
	d, err := newTTYDisplay(w)
	return d, true, err
}

// plainDisplay prints lines as BuildKit's plain progress does; other stages are named.
type plainDisplay struct{ w io.Writer }

func (d *plainDisplay) record(l api.LogLine) error {
	if l.Kind.ForDisplay() {
		return nil
	}
	line := l.Line
	if l.Stage != kiln.StageImage {
		line = "[" + string(l.Stage) + "] " + line
	}
	_, err := fmt.Fprintln(d.w, line)
	return err
}

func (d *plainDisplay) end(*api.Build) error { return nil }

// jsonDisplay prints every record as a line of JSON, and at last the build.
type jsonDisplay struct{ w io.Writer }

func (d *jsonDisplay) record(l api.LogLine) error { return d.print(l) }

func (d *jsonDisplay) end(b *api.Build) error {
	if b == nil {
		return nil
	}
	return d.print(struct {
		Kind  string     `json:"kind"`
		Build *api.Build `json:"build"`
	}{"build", b})
}

func (d *jsonDisplay) print(v any) error {
	enc := json.NewEncoder(d.w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// ttyDisplay is BuildKit's own display. Each stage of Kiln's is one more step in it.
type ttyDisplay struct {
	statuses chan *buildkit.SolveStatus
	ended    chan error
	stage    *buildkit.Vertex                   // the step that stands for the running stage
	implied  kiln.Stage                         // the running stage, if nothing but a line says that it runs
	running  map[digest.Digest]*buildkit.Vertex // BuildKit's steps
	failed   bool                               // one of those, which tells why its stage failed
}

func newTTYDisplay(w io.Writer) (*ttyDisplay, error) {
	ui, err := progressui.NewDisplay(w, progressui.TtyMode)
	if err != nil {
		return nil, fmt.Errorf("--progress tty: %w", err)
	}
	d := &ttyDisplay{statuses: make(chan *buildkit.SolveStatus), ended: make(chan error, 1), running: map[digest.Digest]*buildkit.Vertex{}}
	go func() {
		// Its own end: the display must see how an interrupted build ended.
		_, err := ui.UpdateFrom(context.Background(), d.statuses)
		d.ended <- err
	}()
	return d, nil
}

func (d *ttyDisplay) record(l api.LogLine) error {
	switch l.Kind {
	case kiln.LogEvent:
		status := &buildkit.SolveStatus{}
		if err := json.Unmarshal(l.Event, status); err != nil {
			return fmt.Errorf("build log: event before %d: %w", l.Next, err)
		}
		d.note(status)
		d.statuses <- status
	case kiln.LogBegin:
		d.begin(l.Stage, l.Time)
	case kiln.LogText:
		d.text(l)
	case kiln.LogStep: // the events say it
	}
	return nil
}

// note remembers which of BuildKit's steps run, and whether one has failed.
func (d *ttyDisplay) note(status *buildkit.SolveStatus) {
	for _, v := range status.Vertexes {
		if v.Started == nil || v.Completed != nil {
			delete(d.running, v.Digest)
		} else {
			d.running[v.Digest] = v
		}
		d.failed = d.failed || v.Error != "" && !strings.HasSuffix(v.Error, context.Canceled.Error())
	}
}

// begin adds the step of a stage. A stage that was not finished is tried again.
func (d *ttyDisplay) begin(stage kiln.Stage, at time.Time) {
	implied := d.implied
	d.implied = ""
	if d.stage != nil && stage == implied {
		return
	}
	d.complete(at, context.Canceled.Error())
	d.stage = &buildkit.Vertex{
		Digest: digest.FromString(string(stage) + " " + at.Format(time.RFC3339Nano)), Name: "[kiln] " + string(stage), Started: &at,
	}
	d.update()
}

// text shows a line of a stage's own, and the end of the stage if that is what it tells.
func (d *ttyDisplay) text(l api.LogLine) {
	if d.failed && strings.HasPrefix(l.Line, "failed: ") {
		return // the step that failed tells it
	}
	if d.stage == nil {
		d.begin(l.Stage, l.Time)
		d.implied = l.Stage
	}
	d.statuses <- &buildkit.SolveStatus{Logs: []*buildkit.VertexLog{
		{Vertex: d.stage.Digest, Stream: 1, Data: []byte(l.Line + "\n"), Timestamp: l.Time},
	}}
	if l.Result == nil {
		return
	}
	d.stage.Cached = l.Result.Cached
	if l.Result.Detail != "" {
		d.stage.Name += " " + l.Result.Detail
	}
	d.complete(l.Time, "")
}

// complete ends the running step, if any, with an error if it failed.
func (d *ttyDisplay) complete(at time.Time, failure string) {
	if d.stage == nil {
		return
	}
	d.stage.Completed, d.stage.Error = &at, failure
	d.update()
	d.stage = nil
}

// update tells the display about the running step; it keeps what it is given.
func (d *ttyDisplay) update() {
	v := *d.stage
	d.statuses <- &buildkit.SolveStatus{Vertexes: []*buildkit.Vertex{&v}}
}

// interrupt ends all that runs.
func (d *ttyDisplay) interrupt(at time.Time) {
	status := &buildkit.SolveStatus{}
	for _, v := range d.running {
		v := *v
		v.Completed, v.Error = &at, context.Canceled.Error()
		status.Vertexes = append(status.Vertexes, &v)
	}
	d.statuses <- status
	d.complete(at, context.Canceled.Error())
}

func (d *ttyDisplay) end(b *api.Build) error {
	switch {
	case b == nil:
		d.interrupt(time.Now())
	case b.EndedAt != nil && d.failed:
		d.complete(*b.EndedAt, "")
	case b.EndedAt != nil:
		d.complete(*b.EndedAt, b.Error)
	}
	close(d.statuses)
	return <-d.ended
}
