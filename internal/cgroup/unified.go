package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
)

// unified is version 2: one hierarchy for all controllers.
type unified struct{}

func newUnified() (unified, error) {
	root, err := cgroup2.Load("/")
	if err != nil {
		return unified{}, err
	}
	have, err := root.RootControllers()
	if err != nil {
		return unified{}, err
	}
	for _, name := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(have, name) {
			return unified{}, fmt.Errorf("the controller %q is not enabled", name)
		}
	}
	return unified{}, nil
}

func (unified) make(group string, l Limits) error {
	r := &cgroup2.Resources{CPU: &cgroup2.CPU{}, Memory: &cgroup2.Memory{}, Pids: &cgroup2.Pids{Max: int64(l.PIDs)}}
	if l.CPUWeight > 0 {
		weight := uint64(l.CPUWeight)
		r.CPU.Weight = &weight
	}
	if l.CPUPercent > 0 {
		quota, per := int64(l.CPUPercent)*period/100, uint64(period)
		r.CPU.Max = cgroup2.NewCPUMax(&quota, &per)
	}
	if l.MemoryMiB > 0 {
		limit := int64(l.MemoryMiB) << 20
		r.Memory.Max = &limit
	}
	m, err := cgroup2.NewManager(mountpoint, group, r)
	if err != nil {
		return err
	}
	return weighIO(m, group, l.CPUWeight)
}

// weighIO gives a group its share of the disks, on kernels and with I/O schedulers that
// know such shares.
func weighIO(m *cgroup2.Manager, group string, weight int) error {
	controllers, err := m.RootControllers()
	if err != nil || weight == 0 || !slices.Contains(controllers, "io") {
		return err
	}
	if err := m.ToggleControllers([]string{"io"}, cgroup2.Enable); err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(below(mountpoint, group), "io.weight"), fmt.Appendf(nil, "default %d", weight), 0o644)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) { // the file cannot be made: there is none
		return nil
	}
	return err
}

func (unified) load(group string) (*cgroup2.Manager, error) { return cgroup2.Load(group) }

// start has the kernel make the process in the group (CLONE_INTO_CGROUP, clone(2)): version 2
// does not let a single thread enter the group of another program, and to move a process
// would stop every other one from starting threads meanwhile.
func (unified) start(group string, cmd *exec.Cmd) error {
	dir, err := os.Open(below(mountpoint, group))
	if err != nil {
		return err
	}
	defer dir.Close()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	return cmd.Start()
}

func (h unified) processes(group string) ([]int, error) {
	if len(h.dirs(group)) == 0 {
		return nil, nil
	}
	m, err := h.load(group)
	if err != nil {
		return nil, err
	}
	list, err := m.Procs(true)
	pids := make([]int, len(list))
	for i, pid := range list {
		pids[i] = int(pid)
	}
	return pids, err
}

func (h unified) usage(group string) (Usage, error) {
	m, err := h.load(group)
	if err != nil {
		return Usage{}, err
	}
	s, err := m.Stat()
	if err != nil {
		return Usage{}, err
	}
	return Usage{
		CPU:    time.Duration(s.GetCPU().GetUsageUsec()) * time.Microsecond,
		Memory: int64(s.GetMemory().GetUsage()),
		PIDs:   int(s.GetPids().GetCurrent()),
	}, nil
}

func (h unified) remove(group string) error {
	if len(h.dirs(group)) == 0 {
		return nil
	}
	m, err := h.load(group)
	if err != nil {
		return err
	}
	return m.Delete()
}

func (unified) dirs(group string) []string { return present([]string{below(mountpoint, group)}) }
