package reap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// subReaper makes orphans of this process's descendants come to it, as they come to PID 1.
func subReaper(t *testing.T) *Registry {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	r := &Registry{}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() { r.ReapOrphans(ctx); close(stopped) }()
	t.Cleanup(func() { cancel(); <-stopped })
	return r
}

func start(t *testing.T, r *Registry, out *os.File, script string) *Child {
	t.Helper()
	c, err := r.Start("/bin/sh", []string{"sh", "-c", script},
		&os.ProcAttr{Files: []*os.File{nil, out, nil}, Sys: &unix.SysProcAttr{Setpgid: true}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestShortLivedChildrenKeepTheirStatus races children that end at once, each leaving an
// orphan, against the reaper: no status may be lost and no orphan may stay a zombie.
func TestShortLivedChildrenKeepTheirStatus(t *testing.T) {
	r := subReaper(t)
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	read := make(chan struct{})
	go func() { _, _ = io.Copy(&output, pr); close(read) }()

	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 40 {
				want := (worker*40 + i) % 100
				c, err := r.Start("/bin/sh", []string{"sh", "-c", fmt.Sprintf("(sleep 0.01; exit 3) & echo $!; exit %d", want)},
					&os.ProcAttr{Files: []*os.File{nil, pw, nil}})
				if err != nil {
					t.Error(err)
					return
				}
				if state, err := c.Wait(); err != nil || state.ExitCode() != want {
					t.Errorf("exit status %v, %v; want %d", state, err, want)
				}
			}
		})
	}
	wg.Wait()
	pw.Close()
	<-read
	orphans := strings.Fields(output.String())
	if len(orphans) != 320 {
		t.Fatalf("%d orphans were announced, want 320", len(orphans))
	}
	for _, pid := range orphans {
		awaitGone(t, pid)
	}
	if len(r.owned) != 0 {
		t.Errorf("%d children are still registered", len(r.owned))
	}
}

// awaitGone waits until pid is not even a zombie. The end of a process that is not ours to
// wait for is no event we can subscribe to, hence the polling.
func awaitGone(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for unix.Kill(n, 0) == nil {
		if time.Now().After(deadline) {
			stat, _ := os.ReadFile("/proc/" + pid + "/stat")
			t.Fatalf("orphan %s was not reaped: %s", pid, stat)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSignalGroupReachesEveryMember(t *testing.T) {
	r := subReaper(t)
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, r, pw, "sleep 1000 & echo $!; wait")
	pw.Close()
	line := make([]byte, 16)
	n, err := pr.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SignalGroup(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	state, err := c.Wait()
	if err != nil || state.String() != "signal: killed" {
		t.Errorf("ended with %v, %v", state, err)
	}
	awaitGone(t, strings.TrimSpace(string(line[:n])))
	if err := c.SignalGroup(unix.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestStartErrorLeavesNothingRegistered(t *testing.T) {
	r := subReaper(t)
	if _, err := r.Start("/no/such/program", []string{"x"}, &os.ProcAttr{}); !os.IsNotExist(err) {
		t.Errorf("error %v, want not exist", err)
	}
	if len(r.owned) != 0 {
		t.Error("a failed start is registered")
	}
}
