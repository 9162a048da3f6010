package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

func texts(t *testing.T, r *rig, buildID string, offset int64, follow bool) (lines []string, offsets []int64) {
	t.Helper()
	for line, err := range r.Logs(t.Context(), org, buildID, offset, follow) {
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%s: %s", line.Stage, line.Line))
		offsets = append(offsets, line.Next)
	}
	return lines, offsets
}

func TestLogCanBeFollowedAndResumed(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	r := newRig(t, dataDir(t), func(_ *Options, s *stages) {
		s.hook = func(_ context.Context, stage kiln.Stage) error {
			if stage == kiln.StageImage {
				close(entered)
				<-release
			}
			return nil
		}
	})
	res := r.create(t, "a", nil)
	id := res.Version.BuildID
	var followed []string
	done := make(chan struct{})
	first := make(chan struct{})
	go func() {
		defer close(done)
		for line, err := range r.Logs(t.Context(), org, id, 0, true) {
			if err != nil {
				t.Error(err)
				return
			}
			followed = append(followed, fmt.Sprintf("%s: %s", line.Stage, line.Line))
			if strings.Contains(line.Line, "RUN") {
				close(first)
			}
		}
	}()
	<-entered
	<-first // the line arrives while the build runs
	sofar, _ := texts(t, r, id, 0, false)
	close(release)
	r.ready(t, res)
	<-done
	all, offsets := texts(t, r, id, 0, false)
	if !slices.Equal(followed, all) {
		t.Errorf("followed %q\nstored   %q", followed, all)
	}
	if len(sofar) >= len(all) || !slices.Equal(sofar, all[:len(sofar)]) {
		t.Errorf("so far %q", sofar)
	}
	for i, at := range offsets {
		if rest, _ := texts(t, r, id, at, true); !slices.Equal(rest, all[i+1:]) {
			t.Errorf("from %d: %q", at, rest)
		}
	}
	for _, want := range []string{"image: RUN something", "rootfs: a note", "promote: version 1 is ready"} {
		if !slices.Contains(all, want) {
			t.Errorf("no %q in %q", want, all)
		}
	}
	for line, err := range r.Logs(t.Context(), org, id, 3, false) {
		if kiln.CodeOf(err) != kiln.CodeInvalid {
			t.Errorf("offset within a line: %+v, %v", line, err)
		}
	}
	end := offsets[len(offsets)-1]
	if rest, _ := texts(t, r, id, end, true); rest != nil {
		t.Errorf("from the end: %q", rest)
	}
	refused := func(offset int64, code kiln.ErrorCode, why string) {
		t.Helper()
		asked := false
		for line, err := range r.Logs(t.Context(), org, id, offset, true) {
			asked = true
			if kiln.CodeOf(err) != code || !strings.Contains(err.Error(), why) {
				t.Errorf("offset %d: %+v, %v", offset, line, err)
			}
		}
		if !asked {
			t.Errorf("offset %d is an empty log", offset)
		}
	}
	refused(end+1, kiln.CodeInvalid, fmt.Sprintf("past its end, %d", end))
	defer func() {
		if err := r.DropLog(id); err != nil {
			t.Error(err)
		}
		refused(0, kiln.CodeConflict, "no longer kept")
		refused(end, kiln.CodeConflict, "no longer kept")
	}()
	for _, err := range r.Logs(t.Context(), "org_b", id, 0, false) {
		if kiln.CodeOf(err) != kiln.CodeNotFound {
			t.Errorf("another organisation: %v", err)
		}
	}
	r.tidy(t)
}

func TestFollowEndsWithItsContext(t *testing.T) {
	entered := make(chan struct{}, 1)
	r := newRig(t, dataDir(t), func(_ *Options, s *stages) { s.hook = blockIn(kiln.StageImage, entered) })
	res := r.create(t, "a", nil)
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	var last error
	for line, err := range r.Logs(ctx, org, res.Version.BuildID, 0, true) {
		if last = err; strings.Contains(line.Line, "RUN") {
			cancel()
		}
	}
	cancel()
	if !errors.Is(last, context.Canceled) {
		t.Errorf("ended with %v", last)
	}
	if _, err := r.Wait(ctx, res.Version.BuildID); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	if err := r.Cancel(t.Context(), org, res.Version.BuildID); err != nil {
		t.Fatal(err)
	}
	r.wait(t, res)
}

func TestLogSurvivesCrashAndRubbish(t *testing.T) {
	l, err := newBuildLogs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w, err := l.open("b")
	if err != nil {
		t.Fatal(err)
	}
	w.Log(kiln.StageImage, "one")
	w.Log(kiln.StageImage, "bad \xff byte\nand a newline")
	w.Log(kiln.StageImage, strings.Repeat("x", 3*maxLogLine))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w.Log(kiln.StageImage, "after close is dropped")
	f, err := os.OpenFile(l.path("b"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"time":"2026-` + strings.Repeat("y", 3*maxLogLine)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if w, err = l.open("b"); err != nil {
		t.Fatal(err)
	}
	w.Log(kiln.StageRootfs, "two")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line, err := range l.lines(t.Context(), "b", 0, nil) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, line.Line)
	}
	want := []string{"one", "bad \uFFFD byte\nand a newline", strings.Repeat("x", maxLogLine) + "…", "two"}
	if !slices.Equal(got, want) {
		t.Errorf("got %.80q", got)
	}
}

// Events lie among the lines, and every record is a place to go on from.
func TestLogKeepsEventsBesideLines(t *testing.T) {
	l, err := newBuildLogs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w, err := l.open("b")
	if err != nil {
		t.Fatal(err)
	}
	w.begin(kiln.StageImage)
	w.Event(kiln.StageImage, []byte(`{"vertexes":[]}`))
	w.Event(kiln.StageImage, []byte(`"`+strings.Repeat("x", kiln.MaxLogEvent)+`"`)) // too large
	w.Step(kiln.StageImage, "#1 DONE")
	w.end(kiln.StageResult{Stage: kiln.StageImage, Cached: true}, "unchanged")
	w.size = maxEvents + 1
	w.Event(kiln.StageImage, []byte(`{}`)) // too late
	w.Log(kiln.StageImage, "still there")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	read := func(offset int64) (got []string, offsets []int64) {
		for r, err := range l.lines(t.Context(), "b", offset, nil) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%s|%s|%s|%v", r.Kind, r.Line, r.Event, r.Result != nil && r.Result.Cached))
			offsets = append(offsets, r.Next)
		}
		return got, offsets
	}
	all, offsets := read(0)
	want := []string{"begin|||false", `event||{"vertexes":[]}|false`, "step|#1 DONE||false", "|unchanged||true", "|still there||false"}
	if !slices.Equal(all, want) {
		t.Errorf("got %q", all)
	}
	for i, at := range offsets {
		if rest, _ := read(at); !slices.Equal(rest, all[i+1:]) {
			t.Errorf("from %d: %q", at, rest)
		}
	}
}

func TestLogIsBounded(t *testing.T) {
	l, err := newBuildLogs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w, err := l.open("b")
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("z", maxLogLine)
	for range maxBuildLog/maxLogLine + 100 {
		w.Log(kiln.StageImage, line)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(l.path("b"))
	if err != nil || info.Size() > maxBuildLog+3*maxLogLine {
		t.Errorf("%v, %v", info.Size(), err)
	}
	var last string
	for line, err := range l.lines(t.Context(), "b", 0, nil) {
		if err != nil {
			t.Fatal(err)
		}
		last = line.Line
	}
	if !strings.Contains(last, "64 MiB") {
		t.Errorf("the last line is %.80q", last)
	}
}
