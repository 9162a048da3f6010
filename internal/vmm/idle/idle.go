// Package idle tells when a VM has come to rest.
package idle

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	// idleSpan is how long a process must use next to no CPU time to count as idle.
	idleSpan = 250 * time.Millisecond
	// idleShare is the part of idleSpan that an idle process may use: a guest's clock ticks.
	idleShare = 0.1
	// idlePatience bounds the wait for a guest that is never idle, such as one with a server
	// that polls.
	idlePatience = 3 * time.Second
)

// Await returns when the process of a VM has been idle, or has had its chance to be. Nothing
// tells of that: CPU time is looked at in intervals.
func Await(ctx context.Context, pid int) error {
	tick := time.NewTicker(idleSpan)
	defer tick.Stop()
	last, _, err := Used(pid)
	if err != nil {
		return err
	}
	for begun := time.Now(); time.Since(begun) < idlePatience; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		now, _, err := Used(pid)
		if err != nil {
			return err
		}
		if now-last < time.Duration(idleShare*float64(idleSpan)) {
			return nil
		}
		last = now
	}
	return nil
}

// Used returns what the living threads of a process have used of the CPUs, and how long they
// have waited for one, from the first two fields of their schedstat files
// (Documentation/scheduler/sched-stats.rst in Linux).
func Used(pid int) (cpu, waited time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, 0, err
	}
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // that thread has ended
		}
		var c, w time.Duration
		if _, err := fmt.Sscan(string(b), &c, &w); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", path, err)
		}
		cpu, waited = cpu+c, waited+w
	}
	return cpu, waited, nil
}
