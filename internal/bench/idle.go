package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kilnvm/kiln/internal/client"
)

// IdleAim is the most that a server with paused slots should use, in percent of a core.
const IdleAim = 1

// IdleOptions says what [Idle] measures. All fields are required.
type IdleOptions struct {
	Client         *client.Client
	Server         int // process ID of the server, which must be on this host
	Template, Size string
	Slots          int
	For            time.Duration
	Progress       func(string)
}

// Idle keeps warm slots and measures the processor time that the server and its VMs use
// while nobody asks for anything.
func Idle(ctx context.Context, o IdleOptions) (r *Report, err error) {
	err = withSlots(ctx, o.Client, o.Template, o.Size, o.Slots, func() error {
		r, err = o.measure(ctx)
		return err
	})
	return r, err
}

func (o *IdleOptions) measure(ctx context.Context) (*Report, error) {
	if err := o.filled(ctx); err != nil {
		return nil, err
	}
	const settle = 10 * time.Second // the last slot's own work, and that of the collector of garbage
	if err := wait(ctx, settle); err != nil {
		return nil, err
	}
	o.Progress(fmt.Sprintf("%d slots wait; measuring for %v", o.Slots, o.For))
	before, err := treeCPU(o.Server)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := wait(ctx, o.For); err != nil {
		return nil, err
	}
	took := time.Since(begun)
	after, err := treeCPU(o.Server)
	if err != nil {
		return nil, err
	}
	r := &Report{Name: "idle"}
	r.figure(fmt.Sprintf("percent of a core that a server with %d paused slots uses", o.Slots), 100*float64(after-before)/float64(took), IdleAim, false)
	return r, nil
}

// filled waits until all slots are ready.
func (o *IdleOptions) filled(ctx context.Context) error {
	const look = time.Second
	for told := -1; ; {
		s, err := slotsOf(ctx, o.Client, o.Template, o.Size)
		if err != nil {
			return err
		}
		if s.Error != "" {
			return fmt.Errorf("warm slots of %s: %s", o.Template, s.Error)
		}
		if s.Ready >= o.Slots {
			return nil
		}
		if s.Ready/10 > told {
			told = s.Ready / 10
			o.Progress(fmt.Sprintf("%d of %d slots", s.Ready, o.Slots))
		}
		if err := wait(ctx, look); err != nil {
			return err
		}
	}
}

// treeCPU returns the processor time of a process and all below it (proc(5), "stat").
func treeCPU(root int) (time.Duration, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	ticks, children := map[int]int64{}, map[int][]int{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		pid, parent, used, err := parseStat(string(text))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		ticks[pid] = used
		children[parent] = append(children[parent], pid)
	}
	if _, ok := ticks[root]; !ok {
		return 0, fmt.Errorf("the server's process %d is not on this host: run the benchmark beside its server", root)
	}
	total := int64(0)
	for next := []int{root}; len(next) > 0; {
		pid := next[0]
		next = append(next[1:], children[pid]...)
		total += ticks[pid]
	}
	return time.Duration(total) * time.Second / ticksPerSecond, nil
}

// parseStat returns what a process' stat file says: its ID, its parent's, and the ticks of
// processor time that it has used.
func parseStat(text string) (pid, parent int, ticks int64, err error) {
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')') // around a name that may hold both
	if open < 0 || end < open {
		return 0, 0, 0, errors.New("no process name")
	}
	const parentField, userField, systemField = 1, 11, 12 // counted from behind the name
	fields := strings.Fields(text[end+1:])
	if len(fields) <= systemField {
		return 0, 0, 0, errors.New("too few fields")
	}
	pid, err = strconv.Atoi(strings.TrimSpace(text[:open]))
	parent, perr := strconv.Atoi(fields[parentField])
	user, uerr := strconv.ParseInt(fields[userField], 10, 64)
	system, serr := strconv.ParseInt(fields[systemField], 10, 64)
	return pid, parent, user + system, errors.Join(err, perr, uerr, serr)
}
