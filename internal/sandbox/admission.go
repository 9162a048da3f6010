package sandbox

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/kilnvm/kiln"
)

// admission decides whether the host can take one more sandbox, and how many start at
// once.
type admission struct {
	limits Limits
	memory func() (hostMemory, error)
	starts chan struct{} // one element per start under way

	mu       sync.Mutex
	admitted int
	promised int // MiB
}

func newAdmission(limits Limits) *admission {
	return &admission{limits: limits, memory: readHostMemory, starts: make(chan struct{}, limits.MaxStarting)}
}

// reserve promises memory to a sandbox, or says why it cannot. What it returns gives the
// promise back, once.
func (a *admission) reserve(size kiln.Size) (release func(), err error) {
	host, err := a.memory()
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.limits.MaxRunning > 0 && a.admitted >= a.limits.MaxRunning {
		return nil, kiln.Errorf(kiln.CodeExhausted, "%d sandboxes are running, which is the limit", a.admitted).
			WithHint("destroy one, or raise max_running")
	}
	budget := int(a.limits.Overcommit * float64(host.totalMiB-a.limits.ReserveMiB))
	if left := budget - a.promised; size.MemoryMiB > left {
		return nil, kiln.Errorf(kiln.CodeExhausted, "%s needs %d MiB of memory; %d MiB of this host are not promised yet",
			size.Name, size.MemoryMiB, max(0, left)).WithHint("destroy a sandbox or choose a smaller size")
	}
	if free := host.availableMiB - a.limits.ReserveMiB; size.MemoryMiB > free {
		return nil, kiln.Errorf(kiln.CodeExhausted, "%s needs %d MiB of memory; %d MiB of this host are free",
			size.Name, size.MemoryMiB, max(0, free)).WithHint("destroy a sandbox or choose a smaller size")
	}
	a.admitted++
	a.promised += size.MemoryMiB
	return sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.admitted--
		a.promised -= size.MemoryMiB
	}), nil
}

// begin waits for a turn to start a VM. What it returns ends the turn, once.
func (a *admission) begin(ctx context.Context) (done func(), err error) {
	select {
	case a.starts <- struct{}{}:
		return sync.OnceFunc(func() { <-a.starts }), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

type hostMemory struct{ totalMiB, availableMiB int }

// readHostMemory reads what /proc/meminfo says: MemAvailable counts what the kernel
// would give up, such as cached files, as free.
func readHostMemory() (hostMemory, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return hostMemory{}, err
	}
	defer f.Close()
	var m hostMemory
	for s := bufio.NewScanner(f); s.Scan(); {
		name, rest, _ := strings.Cut(s.Text(), ":")
		kib, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		switch name {
		case "MemTotal":
			m.totalMiB = kib >> 10
		case "MemAvailable":
			m.availableMiB = kib >> 10
		}
	}
	if m.totalMiB == 0 || m.availableMiB == 0 {
		return hostMemory{}, fmt.Errorf("/proc/meminfo lacks MemTotal or MemAvailable")
	}
	return m, nil
}
