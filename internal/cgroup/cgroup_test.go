package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func open(t *testing.T) *Tree {
	t.Helper()
	tree, err := Open(fmt.Sprintf("test-%d", os.Getpid()), "machines")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Sweep(context.Background()); err != nil {
			t.Error(err)
		}
		tree.Close()
		if dirs := tree.h.dirs(tree.root); len(dirs) > 0 {
			t.Errorf("%v are left", dirs)
		}
	})
	return tree
}

// gated starts a shell in a group, which runs script when let is called.
func gated(t *testing.T, tree *Tree, name, script string) (cmd *exec.Cmd, let func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd = exec.Command("/bin/sh", "-c", "read go; "+script)
	cmd.Stdin = r
	if err := tree.Start(name, cmd); err != nil {
		t.Fatal(err)
	}
	return cmd, func() {
		fmt.Fprintln(w)
		w.Close()
	}
}

// read returns the value of the first of the files that a folder of the group has.
func read(t *testing.T, tree *Tree, name string, files ...string) string {
	t.Helper()
	for _, dir := range tree.Dirs(name) {
		for _, f := range files {
			if b, err := os.ReadFile(dir + "/" + f); err == nil {
				return strings.TrimSpace(string(b))
			}
		}
	}
	t.Fatalf("none of %v in %v", files, tree.Dirs(name))
	return ""
}

func TestLimitsReachTheKernel(t *testing.T) {
	tree := open(t)
	if err := tree.Make("a", Limits{CPUWeight: 50, CPUPercent: 150, MemoryMiB: 96, PIDs: 33}); err != nil {
		t.Fatal(err)
	}
	weight, quota := "512", "150000" // version 1: shares
	if cgroups.Mode() == cgroups.Unified {
		weight, quota = "50", "150000 100000"
	}
	type setting struct {
		want  string
		files []string
	}
	settings := []setting{
		{weight, []string{"cpu.weight", "cpu.shares"}},
		{quota, []string{"cpu.max", "cpu.cfs_quota_us"}},
		{strconv.Itoa(96 << 20), []string{"memory.max", "memory.limit_in_bytes"}},
		{"33", []string{"pids.max"}},
	}
	if cgroups.Mode() == cgroups.Unified {
		settings = append(settings, setting{"default 50", []string{"io.weight"}})
	}
	for _, tt := range settings {
		if got := read(t, tree, "a", tt.files...); got != tt.want {
			t.Errorf("%v is %q, want %q", tt.files, got, tt.want)
		}
	}
}

func TestProcessIsBounded(t *testing.T) {
	tree := open(t)
	if err := tree.Make("bounded", Limits{MemoryMiB: 32, PIDs: 4}); err != nil {
		t.Fatal(err)
	}
	cmd, let := gated(t, tree, "bounded", "x=x; while :; do x=$x$x; done") // more memory than it may have
	if u, err := tree.Usage("bounded"); err != nil || u.PIDs != 1 {
		t.Errorf("usage %+v, error %v; want one process", u, err)
	}
	let()
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("a process beyond its memory ended with %v, want it killed", err)
	}
}

func TestRemoveEndsWhatIsLeft(t *testing.T) {
	tree := open(t)
	if err := tree.Make("left", Limits{CPUWeight: 100, PIDs: 64}); err != nil {
		t.Fatal(err)
	}
	cmd, let := gated(t, tree, "left", "sleep 1000 & sleep 1000")
	let()
	// Another tree object finds it by its name alone, as a new server would.
	again, err := Open(fmt.Sprintf("test-%d", os.Getpid()), "machines")
	if err != nil {
		t.Fatal(err)
	}
	if names, err := again.List(); err != nil || !slices.Equal(names, []string{"left"}) {
		t.Fatalf("groups %v, error %v", names, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := again.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("the process ended by itself")
	}
	if names, err := tree.List(); err != nil || len(names) > 0 {
		t.Errorf("groups %v are left, error %v", names, err)
	}
	if err := tree.Remove(ctx, "left"); err != nil {
		t.Errorf("removing twice: %v", err)
	}
}

// A process that is started in a group is in all of its hierarchies, and the thread that
// started it is where it was.
func TestStartInAGroup(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tree := open(t)
	if err := tree.Make("born", Limits{MemoryMiB: 32, PIDs: 8}); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sleep", "1000")
	if err := tree.Start("born", cmd); err != nil {
		t.Fatal(err)
	}
	for _, dir := range tree.Dirs("born") {
		in, err := os.ReadFile(dir + "/cgroup.procs")
		if err != nil || strings.TrimSpace(string(in)) != strconv.Itoa(cmd.Process.Pid) {
			t.Errorf("%s has processes %q, %v, want %d", dir, in, err, cmd.Process.Pid)
		}
	}
	if after, err := os.ReadFile("/proc/thread-self/cgroup"); err != nil || string(after) != string(before) {
		t.Errorf("the thread is in\n%s%v\nand was in\n%s", after, err, before)
	}
	if err := tree.Start("absent", exec.Command("/bin/true")); err == nil {
		t.Error("a process was started in a group that is not there")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
}

// A full group refuses to have a process born in it. It would not refuse one that is moved there
// (Documentation/admin-guide/cgroup-v2.rst on pids.max).
func TestProcessIsBornInItsGroup(t *testing.T) {
	tree := open(t)
	if err := tree.Make("full", Limits{MemoryMiB: 32, PIDs: 8}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range tree.Dirs("full") {
		if err := os.WriteFile(dir+"/pids.max", []byte("0"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/bin/true")
	if err := tree.Start("full", cmd); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a process was started in a full group: %v", err)
		_ = cmd.Wait()
	}
}
