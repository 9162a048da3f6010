package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"time"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
)

// mountpoint is where hosts mount control groups, by the convention of both versions.
const mountpoint = "/sys/fs/cgroup"

// top is the group that holds those of all servers.
const top = "/kiln"

// Limits bounds one group. Zero fields do not.
type Limits struct {
	CPUWeight  int // share under contention, 1 to 10000, 100 being a usual process's
	CPUPercent int // of one core
	MemoryMiB  int // all memory of the processes, their page cache included
	PIDs       int // processes and threads
}

// What a VMM may take beside its guest's memory and the threads of its virtual CPUs: its
// own heap, translated code where it emulates, the page cache of its disks; threads that
// do its input and output.
const (
	overheadMiB  = 256
	overheadPIDs = 96
)

// For returns the limits of a VM of that size.
func For(size kiln.Size) Limits {
	return Limits{
		CPUWeight: size.CPUWeight, CPUPercent: size.CPUPercent,
		MemoryMiB: size.MemoryMiB + overheadMiB, PIDs: size.VCPUs + overheadPIDs,
	}
}

// Usage is what a group has used.
type Usage struct {
	CPU    time.Duration
	Memory int64 // bytes now
	PIDs   int
}

// hierarchy is one version of control groups. Groups are named by their paths below the
// mount point.
type hierarchy interface {
	make(group string, l Limits) error
	start(group string, cmd *exec.Cmd) error
	processes(group string) ([]int, error)
	usage(group string) (Usage, error)
	remove(group string) error
	// dirs returns the folders that represent a group.
	dirs(group string) []string
}

// Tree is the groups of one kind of machine. Its methods are safe for concurrent use.
type Tree struct {
	h    hierarchy
	root string // "/kiln/<server>/<kind>"
}

// Open returns a tree after trying it out. server tells the trees of several servers of one
// host apart. A host that cannot bound memory, CPU time and processes gives an error with
// code unavailable.
func Open(server, kind string) (*Tree, error) {
	t := &Tree{root: path.Join(top, server, kind)}
	var err error
	if cgroups.Mode() == cgroups.Unified {
		t.h, err = newUnified()
	} else {
		t.h, err = newSeparate()
	}
	if err == nil {
		err = t.try()
	}
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "control groups cannot be used: %w", err).
			WithHint("run as root with a writable %s, or set sandbox.cgroups = \"off\" to run machines without limits", mountpoint)
	}
	return t, nil
}

func (t *Tree) try() error {
	const name = "try"
	err := t.Make(name, Limits{CPUWeight: 100, CPUPercent: 100, MemoryMiB: 64, PIDs: 16})
	return errors.Join(err, t.h.remove(t.path(name)))
}

func (t *Tree) path(name string) string { return path.Join(t.root, name) }

// Make makes the group of a machine.
func (t *Tree) Make(name string, l Limits) error {
	if err := t.h.make(t.path(name), l); err != nil {
		return fmt.Errorf("control group %s: %w", t.path(name), err)
	}
	return nil
}

// Start starts cmd in the group: its process is born there. It is started by the thread that
// Start is called on, which is locked meanwhile. After an error the process may be running.
func (t *Tree) Start(name string, cmd *exec.Cmd) error {
	if err := t.h.start(t.path(name), cmd); err != nil {
		return fmt.Errorf("control group %s: start a process: %w", t.path(name), err)
	}
	return nil
}

// Confine returns what makes the group of a machine and starts its process there.
func (t *Tree) Confine(name string, l Limits) func(cmd *exec.Cmd) error {
	return func(cmd *exec.Cmd) error {
		if err := t.Make(name, l); err != nil {
			return err
		}
		return t.Start(name, cmd)
	}
}

// Usage returns what a group has used.
func (t *Tree) Usage(name string) (Usage, error) {
	u, err := t.h.usage(t.path(name))
	if err != nil {
		return Usage{}, fmt.Errorf("control group %s: %w", t.path(name), err)
	}
	return u, nil
}

// Dirs returns the folders that represent the group of a machine, for whoever wants to look.
func (t *Tree) Dirs(name string) []string { return t.h.dirs(t.path(name)) }

// Remove removes a group, after killing what may still be in it. It is idempotent.
func (t *Tree) Remove(ctx context.Context, name string) error {
	group := t.path(name)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		pids, err := t.h.processes(group)
		if err != nil {
			return fmt.Errorf("control group %s: %w", group, err)
		}
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("control group %s: kill process %d: %w", group, pid, err)
			}
		}
		// Version 1 tells nobody when a group has become empty.
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("control group %s: processes %v do not end: %w", group, pids, context.Cause(ctx))
		}
	}
	if err := t.h.remove(group); err != nil {
		return fmt.Errorf("control group %s: %w", group, err)
	}
	return nil
}

// List returns the names of all groups.
func (t *Tree) List() ([]string, error) {
	seen := map[string]bool{}
	var names []string
	for _, dir := range t.h.dirs(t.root) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("control groups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && !seen[e.Name()] {
				seen[e.Name()] = true
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}

// Sweep removes every group: what another server left, before the first of this one.
func (t *Tree) Sweep(ctx context.Context) error {
	names, err := t.List()
	for _, name := range names {
		err = errors.Join(err, t.Remove(ctx, name))
	}
	return err
}

// Close removes the tree itself, unless a group is left in it.
func (t *Tree) Close() {
	for group := t.root; group != "/"; group = path.Dir(group) {
		for _, dir := range t.h.dirs(group) {
			_ = os.Remove(dir) // fails as long as it is not empty
		}
	}
}

// present returns those of the folders that exist.
func present(dirs []string) []string {
	var found []string
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err == nil {
			found = append(found, dir)
		}
	}
	return found
}

// below returns the folder of a group in the hierarchy that is mounted at mount.
func below(mount, group string) string { return filepath.Join(mount, filepath.FromSlash(group)) }
