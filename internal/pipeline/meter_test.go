package pipeline

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/kilnvm/kiln"
)

// notes is a Meter that writes everything down.
type notes struct {
	mu    sync.Mutex
	lines []string
}

func (n *notes) add(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, fmt.Sprintf(format, args...))
}

func (n *notes) take() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	lines := n.lines
	n.lines = nil
	return lines
}

func (n *notes) StageDone(r kiln.StageResult)        { n.add("%s %v", r.Stage, r.Cached) }
func (n *notes) BuildReady()                         { n.add("ready") }
func (n *notes) BuildCancelled()                     { n.add("cancelled") }
func (n *notes) BuildFailed(s kiln.Stage, ours bool) { n.add("failed in %s, ours %v", s, ours) }
func (n *notes) changed()                            { n.add("current changed") }
func (n *notes) check(t *testing.T, want ...string) {
	t.Helper()
	if got := n.take(); !slices.Equal(got, want) {
		t.Errorf("noted %q, want %q", got, want)
	}
}

// Builds are counted by how they end, stages by whether they ran; whoever keeps something
// of the current version is told when it may be another.
func TestBuildsAreCounted(t *testing.T) {
	n := &notes{}
	var fail func(context.Context, kiln.Stage) error
	entered := make(chan struct{}, 1)
	r := newRig(t, dataDir(t), func(o *Options, s *stages) {
		o.Meter, o.CurrentChanged, o.Attempts = n, n.changed, 2
		s.hook = func(ctx context.Context, stage kiln.Stage) error {
			if fail == nil {
				return nil
			}
			return fail(ctx, stage)
		}
	})
	r.ready(t, r.create(t, "a", nil))
	n.check(t, "source false", "image false", "rootfs false", "snapshot false", "current changed", "promote false", "ready")
	r.ready(t, r.create(t, "b", nil))
	n.check(t, "source true", "image true", "rootfs true", "snapshot true", "current changed", "promote false", "ready")

	for _, c := range []struct {
		name string
		err  error
		want []string
	}{
		{"mistake", &kiln.BuildError{Stage: kiln.StageImage, Message: "exit code 1"}, []string{"source false", "failed in image, ours false"}},
		{"fault", fmt.Errorf("a disk broke"), []string{"source false", "source true", "failed in image, ours true"}},
	} {
		fail = func(context.Context, kiln.Stage) error { return c.err }
		if v := r.wait(t, r.create(t, c.name, files{"f": c.name})); v.Status != kiln.VersionFailed {
			t.Errorf("%s: %s", c.name, v.Status)
		}
		n.check(t, c.want...)
	}

	fail = blockIn(kiln.StageImage, entered)
	res := r.create(t, "c", files{"f": "c"})
	<-entered
	if err := r.Cancel(t.Context(), org, res.Version.BuildID); err != nil {
		t.Fatal(err)
	}
	r.wait(t, res)
	n.check(t, "source false", "cancelled")

	fail = nil
	next, err := r.Create(t.Context(), org, NewTemplate{Name: "a", Context: archive(t, files{"f": "2"}), Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	r.ready(t, next)
	n.take()
	if _, _, err := r.Rollback(t.Context(), org, "a", 0); err != nil {
		t.Fatal(err)
	}
	n.check(t, "current changed")
	if err := r.Delete(t.Context(), org, "a"); err != nil {
		t.Fatal(err)
	}
	n.check(t, "current changed")
}
