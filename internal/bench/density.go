package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnvm/kiln/internal/api"
)

// DensityAim is the most memory that one more clone should take, in MiB.
const DensityAim = 45

// Density keeps many sandboxes alive at once, each of which has run a command, and measures
// the memory that they take, which the server's host must be this one.
func Density(ctx context.Context, o BurstOptions) (r *Report, err error) {
	var made []api.Sandbox
	defer func() { err = errors.Join(err, o.destroy(ctx, made)) }()
	failed := 0
	for i := range o.Count {
		if i%20 == 0 {
			o.Progress(fmt.Sprintf("%d of %d sandboxes", i, o.Count))
		}
		sb, err := o.verified(ctx, i)
		made = append(made, sb)
		if err != nil {
			failed++
			o.Progress(err.Error())
		}
	}
	o.Progress("asking all of them again")
	var pss []int
	for i, sb := range made {
		if sb.ID == "" {
			continue
		}
		if err := o.verify(ctx, sb.ID, i); err != nil {
			failed++
			o.Progress(err.Error())
		}
		kib, err := proportional(sb.ID)
		if err != nil {
			return nil, err
		}
		pss = append(pss, kib)
	}
	if len(pss) == 0 {
		return nil, errors.New("no sandbox started")
	}
	slices.Sort(pss)
	r = &Report{Name: "density"}
	for _, f := range []struct {
		what  string
		value int
	}{{"median", pss[len(pss)/2]}, {"largest", pss[len(pss)-1]}} {
		r.Ratios = append(r.Ratios, Ratio{What: fmt.Sprintf("MiB of one of %d sandboxes (PSS), %s", len(pss), f.what), Value: float64(f.value) / 1024, Aim: DensityAim})
	}
	r.Ratios = append(r.Ratios, Ratio{What: "sandboxes that failed", Value: float64(failed), Aim: 0})
	return r, nil
}

// proportional returns the proportional set size of a sandbox's VMM in KiB.
func proportional(id string) (int, error) {
	pid, err := vmmOf(id)
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
			return strconv.Atoi(f[1])
		}
	}
	return 0, fmt.Errorf("process %s has no proportional set size", pid)
}

// vmmOf finds the process of a sandbox by the folder that it works in.
func vmmOf(id string) (string, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		return "", err
	}
	for _, cwd := range dirs {
		if dir, err := os.Readlink(cwd); err == nil && filepath.Base(dir) == id {
			return filepath.Base(filepath.Dir(cwd)), nil
		}
	}
	return "", fmt.Errorf("sandbox %s has no process on this host: run the benchmark beside its server", id)
}

// ticksPerSecond is USER_HZ, the same on every Linux that Kiln runs on.
const ticksPerSecond = 100

// hostCPU returns the CPU time that the host has used since it booted (proc(5), "stat").
func hostCPU() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	var ticks int64
	for i, field := range strings.Fields(first) {
		const idle, wait, guest = 4, 5, 9 // guest time is in user time already
		if i == 0 || i == idle || i == wait || i >= guest {
			continue
		}
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}
