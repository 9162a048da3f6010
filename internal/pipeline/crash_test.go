package pipeline

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
)

// The test binary runs itself as the server that is killed: childDir names its data
// directory, childStage where it stops and waits for its end.
const (
	childDir   = "KILN_TEST_PIPELINE_DIR"
	childStage = "KILN_TEST_PIPELINE_STAGE"
)

// Places to die beside the stages: right after the request was answered, and at a moment
// soon after that chance chooses, so that the database's transactions get their share.
const (
	queued   kiln.Stage = "queued"
	anywhere kiln.Stage = "anywhere"
)

// child takes up or requests a build and hangs in one stage, after telling so.
func child(dir string) int {
	stage := kiln.Stage(os.Getenv(childStage))
	ctx := context.Background()
	r, _, err := startRig(ctx, dir, func(_ *Options, s *stages) {
		s.hook = func(_ context.Context, now kiln.Stage) error {
			if now == stage {
				fmt.Println("reached")
				select {}
			}
			return nil
		}
	})
	if err != nil {
		fmt.Println("start:", err)
		return 1
	}
	if err := r.findOrCreate(ctx); err != nil {
		fmt.Println("create:", err)
		return 1
	}
	if stage == queued || stage == anywhere {
		fmt.Println("reached")
	}
	select {}
}

// findOrCreate requests a build of template "a" unless there is one.
func (r *rig) findOrCreate(ctx context.Context) error {
	_, err := r.store.FindTemplate(ctx, org, "a")
	if kiln.CodeOf(err) != kiln.CodeNotFound {
		return err
	}
	content, err := files{}.tar()
	if err != nil {
		return err
	}
	_, err = r.Create(ctx, org, NewTemplate{Name: "a", Context: bytes.NewReader(content)})
	return err
}

// killIn runs a server on dir until it is in a stage, then kills it with -9.
// killRounds is how often a server is killed in each place.
func killRounds() int {
	if os.Getenv(postgresDir) != "" {
		return 2 // a new database takes its time, and the queue is the same
	}
	return 20
}

func killIn(t *testing.T, dir string, stage kiln.Stage) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childStage+"="+string(stage))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, _ := out.Read(buf)
	if got := strings.TrimSpace(string(buf[:n])); got != "reached" {
		t.Errorf("child says %q", got)
	}
	if stage == anywhere {
		time.Sleep(rand.N(60 * time.Millisecond))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
}

func TestHazard24KilledServerResumesItsBuilds(t *testing.T) {
	for _, stage := range append([]kiln.Stage{queued, anywhere}, allStages...) {
		t.Run(string(stage), func(t *testing.T) {
			for range killRounds() {
				dir := dataDir(t)
				killIn(t, dir, stage)
				begun := time.Now()
				r := newRig(t, dir, nil)
				tmpl, err := r.store.FindTemplate(t.Context(), org, "a")
				if err != nil {
					t.Fatal(err)
				}
				v, err := r.Wait(t.Context(), tmpl.Latest.BuildID)
				if err != nil || v.Status != kiln.VersionReady {
					t.Fatalf("%+v, %v", v, err)
				}
				if took := time.Since(begun); took > time.Minute {
					t.Errorf("took %s", took)
				}
				if stage == kiln.StageSnapshot && len(r.take()) != 1 {
					t.Error("stages that had finished ran again")
				}
				r.tidy(t)
			}
		})
	}
}

func TestHazard24BuildThatKillsTheServerFails(t *testing.T) {
	dir := dataDir(t)
	for range 3 {
		killIn(t, dir, kiln.StageImage)
	}
	r := newRig(t, dir, nil)
	tmpl, err := r.store.FindTemplate(t.Context(), org, "a")
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.Wait(t.Context(), tmpl.Latest.BuildID)
	if err != nil || v.Status != kiln.VersionFailed || !strings.Contains(v.BuildError.Message, "died 3 times") {
		t.Errorf("%+v, %v", v, err)
	}
	r.tidy(t)
}

func TestOrderlyStopPutsBuildsBack(t *testing.T) {
	dir := dataDir(t)
	entered := make(chan struct{}, 1)
	r, stop, err := startRig(t.Context(), dir, func(_ *Options, s *stages) { s.hook = blockIn(kiln.StageSnapshot, entered) })
	if err != nil {
		t.Fatal(err)
	}
	res := r.create(t, "a", nil)
	<-entered
	if err := stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "blobs", "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	again := newRig(t, dir, nil)
	b, err := again.store.Build(t.Context(), res.Version.BuildID)
	if err != nil {
		t.Fatal(err)
	}
	v := again.ready(t, res)
	if b.Attempts > 1 {
		t.Errorf("an orderly stop counts as attempt: %d", b.Attempts)
	}
	lines, _ := texts(t, again, v.BuildID, 0, false)
	if all := strings.Join(lines, "\n"); !strings.Contains(all, "interrupted") || !strings.Contains(all, "is ready") {
		t.Errorf("log %q", all)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("did not happen")
		}
		time.Sleep(time.Millisecond)
	}
}
