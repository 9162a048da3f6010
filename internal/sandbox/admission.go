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
	byOrg    map[string]int
	promised int // MiB
}

func newAdmission(limits Limits) *admission {
	return &admission{
		limits: limits, memory: readHostMemory, starts: make(chan struct{}, limits.MaxStarting), byOrg: map[string]int{},
	}
}

// seat counts one more sandbox of an organisation, or says which limit forbids it. What it
// returns gives the seat back, once.
func (a *admission) seat(orgID string) (release func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.limits.MaxRunning > 0 && a.admitted >= a.limits.MaxRunning {
		return nil, kiln.Errorf(kiln.CodeLimit, "%d sandboxes are running on this server, which is its limit sandbox.max_running", a.admitted).
			WithHint("destroy one, or have the limit raised in the server's configuration")
	}
	if limit := a.limits.ofOrg(orgID); limit > 0 && a.byOrg[orgID] >= limit {
		return nil, kiln.Errorf(kiln.CodeLimit, "organisation %s has %d sandboxes, which is its limit sandbox.max_per_org", orgID, a.byOrg[orgID]).
			WithHint("destroy one, or have the limit raised in the server's configuration")
	}
	a.admitted++
	a.byOrg[orgID]++
	return sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.admitted--
		if a.byOrg[orgID]--; a.byOrg[orgID] == 0 {
			delete(a.byOrg, orgID)
		}
	}), nil
}

// promise promises memory to a VM, or says why it cannot. What it returns gives the promise
// back, once.
func (a *admission) promise(size kiln.Size) (release func(), err error) {
	host, err := a.memory()
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	budget := int(a.limits.Overcommit * float64(host.totalMiB-a.limits.ReserveMiB))
	const hint = "destroy a sandbox, choose a smaller size, or have sandbox.overcommit raised in the server's configuration"
	if left := budget - a.promised; size.MemoryMiB > left {
		return nil, kiln.Errorf(kiln.CodeExhausted, "%s needs %d MiB of memory; of the %d MiB that this host promises (sandbox.overcommit = %g) %d are left",
			size.Name, size.MemoryMiB, budget, a.limits.Overcommit, max(0, left)).WithHint(hint)
	}
	if free := host.availableMiB - a.limits.ReserveMiB; size.MemoryMiB > free {
		return nil, kiln.Errorf(kiln.CodeExhausted, "%s needs %d MiB of memory; %d MiB of this host are free, beside the %d MiB of sandbox.reserve_mb",
			size.Name, size.MemoryMiB, max(0, free), a.limits.ReserveMiB).WithHint("destroy a sandbox or choose a smaller size")
	}
	a.promised += size.MemoryMiB
	return sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.promised -= size.MemoryMiB
	}), nil
}

// budget is how much memory may be promised in all, in MiB.
func (a *admission) budget() (int, error) {
	host, err := a.memory()
	return int(a.limits.Overcommit * float64(host.totalMiB-a.limits.ReserveMiB)), err
}

// calm reports whether so few starts are under way that another one disturbs none.
func (a *admission) calm() bool { return len(a.starts) < max(1, cap(a.starts)/2) }

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
