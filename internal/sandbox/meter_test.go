package sandbox

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// notes is a Meter that writes everything down.
type notes struct {
	mu    sync.Mutex
	lines []string
}

func (n *notes) add(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, fmt.Sprintf(format, args...))
}

func (n *notes) Started(t *kiln.Template, path kiln.BootMode, took time.Duration) {
	n.add("%s started %s, some time: %v", t.Name, path, took > 0)
}
func (n *notes) StartFailed(t *kiln.Template)        { n.add("%s failed", t.Name) }
func (n *notes) Refused(why error)                   { n.add("refused: %s", kiln.CodeOf(why)) }
func (n *notes) Claimed(t *kiln.Template, slot bool) { n.add("%s claimed: %v", t.Name, slot) }
func (n *notes) Command()                            { n.add("command") }

func (n *notes) check(t *testing.T, when string, want ...string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Equal(n.lines, want) {
		t.Errorf("%s: noted %q, want %q", when, n.lines, want)
	}
	n.lines = nil
}

// Starts are counted by their path, refusals by their reason, and commands if somebody
// asked for them: what the pool tries out for itself is not one.
func TestSandboxesAreCounted(t *testing.T) {
	n := &notes{}
	h := newHost(t, func(o *Options) {
		o.Meter, o.Limits.MaxPerOrg, o.Warm = n, 2, WarmLimits{Targets: map[string]int{"hello": 1}}
	})
	restored := h.create(t, hello())
	n.check(t, "restore", "hello claimed: false", "hello started snapshot, some time: true")
	g, err := h.Guest(t.Context(), restored.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Run(t.Context(), guest.Command{Args: []string{"true"}}); err != nil {
		t.Fatal(err)
	}
	n.check(t, "command", "command")
	if err := h.Destroy(t.Context(), restored.ID); err != nil {
		t.Fatal(err)
	}

	keepWarm(t, h.Manager)
	awaitWarm(t, h.Manager, "a slot is made", withReady(1))
	n.check(t, "slot")
	h.create(t, hello())
	n.check(t, "warm start", "hello claimed: true", "hello started warm, some time: true")

	if counts := h.Counts(); counts[kiln.SandboxRunning] != 1 || len(counts) != 1 {
		t.Errorf("sandboxes by state: %v", counts)
	}
	cold := h.create(t, CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: kiln.BootCold})
	n.check(t, "cold start", "hello started cold, some time: true")
	_, err = h.Create(t.Context(), CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: kiln.BootCold})
	wantCode(t, err, kiln.CodeLimit)
	n.check(t, "too many", "refused: limit")
	if err := h.Destroy(t.Context(), cold.ID); err != nil {
		t.Fatal(err)
	}
	h.admission.memory = func() (hostMemory, error) { return hostMemory{totalMiB: 513, availableMiB: 513}, nil }
	_, err = h.Create(t.Context(), CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: kiln.BootCold})
	wantCode(t, err, kiln.CodeExhausted)
	n.check(t, "no memory", "refused: exhausted")
}
