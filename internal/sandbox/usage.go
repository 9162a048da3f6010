package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
)

// Usage returns what the living sandboxes of an organisation take from this host, oldest
// first. It asks the host only: it wakes nobody and is no use of a sandbox.
func (m *Manager) Usage(_ context.Context, orgID string) ([]kiln.SandboxUsage, error) {
	var list []kiln.SandboxUsage
	for _, b := range m.boxes() {
		s := b.snapshot()
		if s.OrgID != orgID {
			continue
		}
		u := kiln.SandboxUsage{ID: s.ID, Template: s.Template, Version: s.Version, Size: s.Size, Status: s.Status, CreatedAt: s.CreatedAt}
		if s.Process.PID > 0 {
			u.CPUTime, u.MemoryBytes = processUsage(s.Process.PID)
		}
		list = append(list, u)
	}
	slices.SortFunc(list, func(a, b kiln.SandboxUsage) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return list, nil
}

// userHZ is the unit of CPU times in /proc on every Linux that Go runs on.
const userHZ = 100

// processUsage returns the CPU time and the memory (PSS: shared pages count in shares) of
// a process, as far as the kernel tells: it may just have ended.
func processUsage(pid int) (cpu time.Duration, memory int64) {
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		_, rest, _ := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(") "))
		fields := strings.Fields(string(rest))
		const user, system = 14 - 3, 15 - 3 // proc_pid_stat(5) counts from 1; two fields are cut off
		if len(fields) > system {
			u, _ := strconv.ParseInt(fields[user], 10, 64)
			s, _ := strconv.ParseInt(fields[system], 10, 64)
			cpu = time.Duration(u+s) * time.Second / userHZ
		}
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return cpu, 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
			return cpu, kib << 10
		}
	}
	return cpu, 0
}

// Console returns where the guest of a living sandbox prints to, and what is closed when
// the sandbox ends. The file is bounded: its older half goes when it is full.
func (m *Manager) Console(ctx context.Context, id string) (path string, ended <-chan struct{}, err error) {
	b, err := m.livingBox(ctx, id)
	if err != nil {
		return "", nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.console == "" {
		return "", nil, errStarting(id)
	}
	return filepath.Join(b.dir, b.console), b.ended, nil
}
