package sandbox

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
)

// keepWarm looks after h's pool until the end of the test.
func keepWarm(t *testing.T, m *Manager) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); m.KeepWarm(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

// awaitWarm waits until the pool's only shelf is as ok says.
func awaitWarm(t *testing.T, m *Manager, what string, ok func(kiln.WarmShelf) bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
		list := m.Warm()
		if len(list) == 0 && ok(kiln.WarmShelf{}) || len(list) == 1 && ok(list[0]) {
			tick.Stop()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: the pool is %+v", what, list)
		}
	}
}

func withReady(n int) func(kiln.WarmShelf) bool {
	return func(s kiln.WarmShelf) bool { return s.Ready == n }
}

func warmHost(t *testing.T, slots int) *host {
	return newHost(t, func(o *Options) { o.Warm = WarmLimits{Targets: map[string]int{"hello": slots}} })
}

var operator = kiln.Principal{OrgID: kiln.LocalOrgID, Scopes: []kiln.Scope{kiln.ScopeAdmin}}

// Slots are of the current version, whichever that is.
func TestWarmTargetOfAPin(t *testing.T) {
	h := warmHost(t, 0)
	for ref, code := range map[string]kiln.ErrorCode{"hello": "", "hello@1": kiln.CodeInvalid, "hello:v1": kiln.CodeInvalid} {
		if _, err := h.WarmTarget(t.Context(), operator, ref, "", 1); kiln.CodeOf(err) != code {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestWarmStart(t *testing.T) {
	h := warmHost(t, 1)
	keepWarm(t, h.Manager)
	awaitWarm(t, h.Manager, "a slot is made", withReady(1))
	first := h.create(t, hello())
	if first.BootMode != kiln.BootWarm || first.BootTime <= 0 {
		t.Errorf("boot mode %s after %s, want %s", first.BootMode, first.BootTime, kiln.BootWarm)
	}
	awaitWarm(t, h.Manager, "the slot is replaced", withReady(1))
	second := h.create(t, CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: kiln.BootWarm})
	if second.BootMode != kiln.BootWarm || second.ID == first.ID || second.AccessToken == first.AccessToken {
		t.Errorf("second sandbox %+v", second)
	}
	third := h.create(t, CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: kiln.BootSnapshot})
	if third.BootMode != kiln.BootSnapshot {
		t.Errorf("boot mode %s where a snapshot was asked for", third.BootMode)
	}
	for _, s := range []*kiln.Sandbox{first, second} {
		row, err := h.store.Sandbox(t.Context(), s.ID)
		if err != nil || row.Process.PID == 0 || row.Status != kiln.SandboxRunning {
			t.Errorf("row %+v, error %v", row, err)
		}
	}
	list := h.Warm()
	if len(list) != 1 || list[0].Hits != 2 || list[0].Misses != 0 || list[0].Set != 1 {
		t.Errorf("pool %+v", list)
	}
}

func TestWarmStartThatIsInsistedOn(t *testing.T) {
	h := newHost(t)
	_, err := h.Create(t.Context(), CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: kiln.BootWarm})
	wantCode(t, err, kiln.CodeConflict)
	if err == nil || !strings.Contains(err.Error(), "kiln pool set") {
		t.Errorf("error %v does not say what to do", err)
	}
}

// No slot is handed out twice, however many ask at once.
func TestThousandRacingClaims(t *testing.T) {
	const claims, slots = 1000, 300
	h := newHost(t)
	p, err := h.plan(t.Context(), hello())
	if err != nil {
		t.Fatal(err)
	}
	pool := newPool(WarmLimits{})
	pool.aim(map[shelfKey]aim{p.shelf(): {plan: p, slots: slots}}, func(*plan) bool { return true }, time.Now())
	var made atomic.Int32
	var mu sync.Mutex
	handed := map[*box]int{}
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for range slots { // slots come while they are claimed, as in life
		wg.Go(func() {
			<-begin
			if pool.put(&box{plan: p}) {
				made.Add(1)
			}
		})
	}
	for range claims {
		wg.Go(func() {
			<-begin
			if b := pool.claim(p, time.Now()); b != nil {
				mu.Lock()
				handed[b]++
				mu.Unlock()
			}
		})
	}
	for range 50 { // and others take some away
		wg.Go(func() {
			<-begin
			if b := pool.spare(); b != nil {
				mu.Lock()
				handed[b]++
				mu.Unlock()
			}
		})
	}
	close(begin)
	wg.Wait()
	for _, b := range pool.close() {
		handed[b]++
	}
	for b, n := range handed {
		if n != 1 {
			t.Errorf("slot %p was handed out %d times", b, n)
		}
	}
	if len(handed) != int(made.Load()) {
		t.Errorf("%d slots were made and %d handed out", made.Load(), len(handed))
	}
	if pool.put(&box{plan: p}) {
		t.Error("a closed pool takes a slot")
	}
}

func TestDemandIsTheBusiestSpan(t *testing.T) {
	now := time.Now()
	var d demand
	for _, second := range []int{0, 1, 2, 30, 60, 61, 65, 70, 71, 100} {
		d.note(now.Add(time.Duration(second) * time.Second))
	}
	for _, tt := range []struct{ at, want int }{
		{100, 4},             // 61, 65, 70, 71
		{100 + 5*60 - 10, 1}, // only 100 is remembered
		{100 + 5*60 + 1, 0},
	} {
		if got := d.peak(now.Add(time.Duration(tt.at) * time.Second)); got != tt.want {
			t.Errorf("after %d s the demand is %d, want %d", tt.at, got, tt.want)
		}
	}
}

func TestDemandFillsThePool(t *testing.T) {
	h := newHost(t, func(o *Options) { o.Warm = WarmLimits{MaxDemand: 2} })
	keepWarm(t, h.Manager)
	if s := h.create(t, hello()); s.BootMode != kiln.BootSnapshot {
		t.Errorf("boot mode %s of the first sandbox", s.BootMode)
	}
	awaitWarm(t, h.Manager, "a request calls for a slot", withReady(1))
	if s := h.create(t, hello()); s.BootMode != kiln.BootWarm {
		t.Errorf("boot mode %s of the second sandbox", s.BootMode)
	}
	awaitWarm(t, h.Manager, "two requests call for two", withReady(2))
}

func TestSlotsOfAnOldVersionAreDrained(t *testing.T) {
	h := warmHost(t, 2)
	keepWarm(t, h.Manager)
	awaitWarm(t, h.Manager, "slots are made", withReady(2))
	next := *h.store.version
	next.Number = 2
	h.store.mu.Lock()
	h.store.version, h.store.template.Current = &next, 2
	h.store.mu.Unlock()
	h.WarmChanged()
	awaitWarm(t, h.Manager, "slots of the new version", func(s kiln.WarmShelf) bool { return s.Version == 2 && s.Ready == 2 })
	if s := h.create(t, hello()); s.Version != 2 || s.BootMode != kiln.BootWarm {
		t.Errorf("sandbox of version %d by %s", s.Version, s.BootMode)
	}
	h.store.mu.Lock()
	h.store.template.Name, h.store.template.ID = "gone", "tmpl_gone"
	h.store.mu.Unlock()
	h.WarmChanged()
	awaitWarm(t, h.Manager, "the slots of a deleted template", withReady(0))
}

// A target that was set by request goes before the configuration's.
func TestTargetOfTheStore(t *testing.T) {
	h := warmHost(t, 1)
	h.store.targets = []kiln.WarmTarget{{OrgID: kiln.LocalOrgID, TemplateID: "tmpl_hello", Size: "shared-cpu-1x", Slots: 3}}
	keepWarm(t, h.Manager)
	awaitWarm(t, h.Manager, "three slots", withReady(3))
	h.store.mu.Lock()
	h.store.targets[0].Slots = 0
	h.store.mu.Unlock()
	h.WarmChanged()
	awaitWarm(t, h.Manager, "none", withReady(0))
}

func TestDeadSlotIsReplaced(t *testing.T) {
	h := warmHost(t, 1)
	keepWarm(t, h.Manager)
	awaitWarm(t, h.Manager, "a slot is made", withReady(1))
	b := h.warm.spare()
	h.warm.mu.Lock()
	h.warm.shelves[b.plan.shelf()].ready, h.warm.shelves[b.plan.shelf()].retry = []*box{b}, time.Time{}
	h.warm.mu.Unlock()
	if err := b.machine.Kill(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for tick := time.Tick(10 * time.Millisecond); ; <-tick {
		_, err := os.Stat(b.dir)
		if list := h.Warm(); errors.Is(err, os.ErrNotExist) && len(list) == 1 && list[0].Ready == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the dead slot stays")
		}
	}
	if s := h.create(t, hello()); s.BootMode != kiln.BootWarm || s.ID == b.id {
		t.Errorf("sandbox %s by %s", s.ID, s.BootMode)
	}
}

// A slot that fails at its claim is the pool's problem, not the user's.
func TestFailedClaimFallsBackToTheSnapshot(t *testing.T) {
	h := warmHost(t, 1)
	keepWarm(t, h.Manager)
	awaitWarm(t, h.Manager, "a slot is made", withReady(1))
	var failed atomic.Bool
	h.driver.Step = func(_ context.Context, step string) error {
		if step == "resume" && failed.CompareAndSwap(false, true) {
			return errors.New("it does not resume")
		}
		return nil
	}
	if s := h.create(t, hello()); s.BootMode != kiln.BootSnapshot {
		t.Errorf("boot mode %s", s.BootMode)
	}
}

// Slots give their memory to a sandbox that would find none.
func TestSlotsMakeRoom(t *testing.T) {
	h := newHost(t, func(o *Options) {
		o.Limits.Overcommit = 1
		o.Warm = WarmLimits{Targets: map[string]int{"hello": 2}, MaxMemoryMiB: 4096}
	})
	h.admission.memory = func() (hostMemory, error) { return hostMemory{totalMiB: 512 + 1100, availableMiB: 8000}, nil }
	keepWarm(t, h.Manager)
	awaitWarm(t, h.Manager, "two slots", withReady(2))
	for range 2 { // by the snapshot, which takes no slot but its memory
		h.create(t, CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: kiln.BootSnapshot})
	}
	_, err := h.Create(t.Context(), hello())
	wantCode(t, err, kiln.CodeExhausted)
}

// A server that dies leaves folders with VMs, which nobody has claimed; the next one ends
// both.
func TestSlotsOfADeadServerAreEnded(t *testing.T) {
	for name, start := range map[string]func(*Manager, context.Context, *plan) (*box, error){
		"warm": (*Manager).newSlot, "started ahead": (*Manager).spawn,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			p, err := h.plan(t.Context(), hello())
			if err != nil {
				t.Fatal(err)
			}
			b, err := start(h.Manager, t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			if err := h.Reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := gone(b.snapshot().Process); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(b.dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the slot's folder is left: %v", err)
			}
			if b.release != nil {
				b.release() // the dead server's account
			}
		})
	}
}
