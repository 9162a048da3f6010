package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// separate is version 1: one hierarchy per controller.
type separate struct{ subsystems []cgroup1.Subsystem }

// needed are the controllers without which limits would be empty promises.
func needed() []cgroup1.Name { return []cgroup1.Name{cgroup1.Cpu, cgroup1.Memory, cgroup1.Pids} }

func newSeparate() (*separate, error) {
	all, err := cgroup1.Default()
	if err != nil {
		return nil, err
	}
	useful := append(needed(), cgroup1.Cpuacct, cgroup1.Blkio)
	h := &separate{}
	for _, s := range all {
		if slices.Contains(useful, s.Name()) {
			h.subsystems = append(h.subsystems, s)
		}
	}
	for _, name := range needed() {
		if !slices.ContainsFunc(h.subsystems, func(s cgroup1.Subsystem) bool { return s.Name() == name }) {
			return nil, fmt.Errorf("the controller %q is not mounted", name)
		}
	}
	return h, nil
}

func (h *separate) hierarchy() ([]cgroup1.Subsystem, error) { return h.subsystems, nil }

func (h *separate) load(group string) (cgroup1.Cgroup, error) {
	return cgroup1.Load(cgroup1.StaticPath(group), cgroup1.WithHierarchy(h.hierarchy))
}

// period of CPU quotas in microseconds, the kernel's default.
const period = 100_000

func (h *separate) make(group string, l Limits) error {
	r := &specs.LinuxResources{CPU: &specs.LinuxCPU{}}
	if l.CPUWeight > 0 {
		shares := uint64(max(2, l.CPUWeight*1024/100)) // a usual process has 1024
		r.CPU.Shares = &shares
	}
	if l.CPUPercent > 0 {
		quota, per := int64(l.CPUPercent)*period/100, uint64(period)
		r.CPU.Quota, r.CPU.Period = &quota, &per
	}
	if l.MemoryMiB > 0 {
		limit := int64(l.MemoryMiB) << 20
		r.Memory = &specs.LinuxMemory{Limit: &limit}
	}
	if l.PIDs > 0 {
		n := int64(l.PIDs)
		r.Pids = &specs.LinuxPids{Limit: &n}
	}
	// Only some I/O schedulers know weights.
	if _, err := os.Stat(filepath.Join(mountpoint, string(cgroup1.Blkio), "blkio.weight")); err == nil && l.CPUWeight > 0 {
		weight := uint16(min(1000, max(10, l.CPUWeight)))
		r.BlockIO = &specs.LinuxBlockIO{Weight: &weight}
	}
	_, err := cgroup1.New(cgroup1.StaticPath(group), r, cgroup1.WithHierarchy(h.hierarchy))
	return err
}

// start has the calling thread enter the group, so that what it starts is born there, and
// return. To move a process would keep the kernel from starting any thread or program, this
// process among them, for an RCU grace period per controller; a thread that moves itself
// waits for nothing (cgroup_procs_write_start in the kernel's kernel/cgroup/cgroup.c).
func (h *separate) start(group string, cmd *exec.Cmd) (err error) {
	runtime.LockOSThread()
	home, err := cgroup1.ParseCgroupFile("/proc/thread-self/cgroup")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if lerr := h.move(func(name cgroup1.Name) string { return home[string(name)] }); lerr != nil {
			err = errors.Join(err, lerr) // locked, the thread ends with its goroutine
			return
		}
		runtime.UnlockOSThread()
	}()
	if err := h.move(func(cgroup1.Name) string { return group }); err != nil {
		return err
	}
	return cmd.Start()
}

// move moves the calling thread, in every hierarchy, to the group that to names.
func (h *separate) move(to func(controller cgroup1.Name) string) error {
	const self = "0"
	for _, s := range h.subsystems {
		tasks := filepath.Join(below(filepath.Join(mountpoint, string(s.Name())), to(s.Name())), "tasks")
		if err := os.WriteFile(tasks, []byte(self), 0); err != nil {
			return err
		}
	}
	return nil
}

func (h *separate) processes(group string) ([]int, error) {
	c, err := h.load(group)
	if errors.Is(err, cgroup1.ErrCgroupDeleted) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// A process may be in the groups of some controllers only, if whoever moved it died.
	var pids []int
	for _, s := range c.Subsystems() {
		list, err := c.Processes(s.Name(), false)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, p := range list {
			if !slices.Contains(pids, p.Pid) {
				pids = append(pids, p.Pid)
			}
		}
	}
	return pids, nil
}

func (h *separate) usage(group string) (Usage, error) {
	c, err := h.load(group)
	if err != nil {
		return Usage{}, err
	}
	m, err := c.Stat(cgroup1.IgnoreNotExist)
	if err != nil {
		return Usage{}, err
	}
	return Usage{
		CPU:    time.Duration(m.GetCPU().GetUsage().GetTotal()),
		Memory: int64(m.GetMemory().GetUsage().GetUsage()),
		PIDs:   int(m.GetPids().GetCurrent()),
	}, nil
}

func (h *separate) remove(group string) error {
	c, err := h.load(group)
	if errors.Is(err, cgroup1.ErrCgroupDeleted) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.Delete()
}

func (h *separate) dirs(group string) []string {
	var dirs []string
	for _, s := range h.subsystems {
		dirs = append(dirs, below(filepath.Join(mountpoint, string(s.Name())), group))
	}
	return present(dirs)
}
