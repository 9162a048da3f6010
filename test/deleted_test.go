package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/testkit"
)

// TestHazard26DeleteDuringBoot deletes a template while sandboxes of it start, on every
// path and several at once, and collects its files at once. Each start either gives a
// sandbox that works, or says that the template was deleted; what ran before runs on; and
// nothing is left.
func TestHazard26DeleteDuringBoot(t *testing.T) {
	s := newServer(t)
	before := s.blobs()
	for round := range testkit.Rounds(1, 10) {
		for _, started := range []int{0, 1, 4} {
			t.Run(fmt.Sprintf("%d starts under way", started), func(t *testing.T) {
				d := &doomed{server: s.in(t), name: fmt.Sprintf("doomed-%d-%d", round, started)}
				d.build(1)
				d.startAndDelete(started)
			})
		}
	}
	s.leaveNothing(before)
}

// TestHazard26RebuildDuringBoot promotes one version after the other while sandboxes start,
// and keeps no old one: every start nevertheless gives a sandbox that works.
func TestHazard26RebuildDuringBoot(t *testing.T) {
	s := newServerWith(t, "[gc]\nkeep = 1\n")
	before := s.blobs()
	d := &doomed{server: s, name: "rebuilt"}
	d.build(1)
	var all sync.WaitGroup
	over := make(chan struct{})
	for i := range 4 {
		mode := []string{"", "cold"}[i%2]
		all.Go(func() {
			for n := 0; n < 1 || !closed(over); n++ {
				if outcome := d.create(mode); outcome.err != "" {
					t.Error(outcome.err)
				}
			}
		})
	}
	all.Go(func() {
		for !closed(over) {
			d.must("gc")
		}
	})
	for n := range testkit.Rounds(2, 20) {
		d.build(n + 2)
	}
	close(over)
	all.Wait()
	d.must("templates", "delete", d.name)
	s.leaveNothing(before)
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// doomed is a template with one file that says which version it is.
type doomed struct {
	*server
	name string
}

func (d *doomed) build(number int) {
	d.t.Helper()
	dir := busyboxContext(d.t, "COPY number /number\n")
	if err := os.WriteFile(filepath.Join(dir, "number"), fmt.Appendln(nil, d.name, number), 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.must("templates", "build", d.name, dir)
}

// outcome is what became of one start.
type outcome struct{ id, err string }

// create starts a sandbox, has it show its version and ends it.
func (d *doomed) create(mode string) outcome {
	args := []string{"sandbox", "create", "-t", d.name}
	if mode != "" {
		args = append(args, "--boot-mode", mode)
	}
	r := d.kiln(args...)
	if r.code != 0 {
		return outcome{err: fmt.Sprintf("%s start: exit code %d: %s", mode, r.code, r.stderr)}
	}
	o := outcome{id: strings.TrimSpace(r.stdout)}
	if r := d.kiln("sandbox", "exec", o.id, "--", "cat", "/number"); r.code != 0 || !strings.HasPrefix(r.stdout, d.name+" ") {
		o.err = fmt.Sprintf("%s start: the sandbox printed %q, exit code %d: %s", mode, r.stdout, r.code, r.stderr)
	}
	if r := d.kiln("sandbox", "destroy", o.id); r.code != 0 {
		o.err += "destroy: " + r.stderr
	}
	return o
}

// startAndDelete starts sandboxes on all paths and deletes the template when so many of them
// have begun.
func (d *doomed) startAndDelete(started int) {
	d.t.Helper()
	survivor := strings.TrimSpace(d.must("sandbox", "create", "-t", d.name))
	begun := created(d.t, filepath.Join(d.dataDir, "sandboxes"))
	outcomes := make([]outcome, 6)
	var all sync.WaitGroup
	for i := range outcomes {
		mode := []string{"cold", "snapshot", ""}[i%3]
		all.Go(func() { outcomes[i] = d.create(mode) })
	}
	begun(started)
	d.must("templates", "delete", d.name)
	all.Go(func() { d.must("gc") })
	late := d.create("")
	all.Wait()
	works, deleted := 0, fmt.Sprintf("template %q was deleted", d.name)
	for i, o := range outcomes {
		if o.err == "" {
			works++
		} else if o.id != "" || !strings.Contains(o.err, deleted) {
			d.t.Errorf("start %d: %s", i, o.err)
		}
	}
	if late.id != "" || !strings.Contains(late.err, deleted) {
		d.t.Errorf("a start after the deletion: %+v", late)
	}
	d.t.Logf("%d of %d starts gave a sandbox", works, len(outcomes))

	// One that ran already lives its whole life.
	d.must("gc")
	d.must("sandbox", "pause", survivor)
	d.must("gc")
	fork := strings.TrimSpace(d.must("sandbox", "fork", survivor))
	for _, id := range []string{survivor, fork} {
		if got := d.must("sandbox", "exec", id, "--", "cat", "/number"); got != d.name+" 1\n" {
			d.t.Errorf("sandbox %s printed %q", id, got)
		}
		d.must("sandbox", "destroy", id)
	}
}

// created returns a function that waits until so many files and folders were made in dir.
func created(t *testing.T, dir string) (wait func(n int)) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	t.Cleanup(func() { events.Close() })
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_ONLYDIR); err != nil {
		t.Fatal(err)
	}
	if err := events.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return func(n int) {
		t.Helper()
		// Just room for one event, so that each read is one.
		event := make([]byte, unix.SizeofInotifyEvent+32)
		for range n {
			if _, err := events.Read(event); err != nil {
				t.Fatalf("fewer than %d were made in %s: %v", n, dir, err)
			}
		}
	}
}
