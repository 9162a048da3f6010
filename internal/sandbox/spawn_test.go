package sandbox

import (
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
)

func withSpawned(n int) func(kiln.WarmShelf) bool {
	return func(s kiln.WarmShelf) bool { return s.Spawned == n }
}

func insisting(mode kiln.BootMode) CreateRequest {
	r := hello()
	r.BootMode = mode
	return r
}

// A request has VMMs started ahead for the next ones.
func TestSpawnedStart(t *testing.T) {
	h := newHost(t, func(o *Options) { o.Warm = WarmLimits{SpawnAhead: 2} })
	keepWarm(t, h.Manager)
	_, err := h.Create(t.Context(), insisting(kiln.BootSpawned))
	wantCode(t, err, kiln.CodeConflict)
	if err == nil || !strings.Contains(err.Error(), "pool.spawn_ahead") {
		t.Errorf("error %v does not say what to do", err)
	}
	awaitWarm(t, h.Manager, "the request calls for two", withSpawned(2))
	if used := h.admission.promised; used != 0 {
		t.Errorf("%d MiB of memory are promised to VMMs that nobody has claimed", used)
	}
	first, second := h.create(t, insisting(kiln.BootSpawned)), h.create(t, hello())
	for _, s := range []*kiln.Sandbox{first, second} {
		row, err := h.store.Sandbox(t.Context(), s.ID)
		if err != nil || row.Process.PID == 0 || row.Status != kiln.SandboxRunning || row.BootMode != kiln.BootSnapshot || row.BootTime <= 0 {
			t.Errorf("row %+v, error %v", row, err)
		}
	}
	if used := h.admission.promised; used != first.MemoryMiB+second.MemoryMiB {
		t.Errorf("%d MiB of memory are promised to two sandboxes", used)
	}
	awaitWarm(t, h.Manager, "both are replaced", withSpawned(2))
	if s := h.create(t, insisting(kiln.BootSnapshot)); s.BootMode != kiln.BootSnapshot {
		t.Errorf("boot mode %s", s.BootMode)
	}
	if list := h.Warm(); len(list) != 1 || list[0].SpawnedHits != 2 || list[0].Ready != 0 {
		t.Errorf("pool %+v", list)
	}
}

// Of slots a claim takes a warm one first, and no VMM is handed out twice.
func TestRacingClaimsOfSpawnedVMMs(t *testing.T) {
	const claims, spawned = 1000, 300
	h := newHost(t)
	p, err := h.plan(t.Context(), hello())
	if err != nil {
		t.Fatal(err)
	}
	pool := newPool(WarmLimits{SpawnAhead: spawned})
	pool.aim(map[shelfKey]aim{p.shelf(): {plan: p, slots: 1}}, func(*plan) bool { return true }, time.Now())
	var mu sync.Mutex
	handed := map[*box]int{}
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for range spawned {
		wg.Go(func() {
			<-begin
			if !pool.put(&box{plan: p, spawned: true}) {
				t.Error("the pool refuses a VMM that it lacks")
			}
		})
	}
	for range claims {
		wg.Go(func() {
			<-begin
			if b := pool.claimSpawned(p, time.Now()); b != nil {
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
			t.Errorf("VMM %p was handed out %d times", b, n)
		}
	}
	if len(handed) != spawned {
		t.Errorf("%d VMMs were started and %d handed out", spawned, len(handed))
	}
}

// Real VMMs that are started ahead: racing claims, one that dies before and one that dies
// at its claim, and a new version.
func TestSpawnedVMMs(t *testing.T) {
	h := newVMHost(t, nil)
	const ahead = 3
	h.warm.limits = WarmLimits{SpawnAhead: ahead}
	keepWarm(t, h.Manager)
	s := h.create(t, hello())
	awaitWarm(t, h.Manager, "a request calls for them", withSpawned(ahead))
	h.destroy(t, s)

	t.Run("racing claims", func(t *testing.T) {
		before := h.Warm()[0].SpawnedHits
		var wg sync.WaitGroup
		var mu sync.Mutex
		var all []*kiln.Sandbox
		for range ahead + 2 {
			wg.Go(func() {
				s, err := h.Create(t.Context(), hello())
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				all = append(all, s)
			})
		}
		wg.Wait()
		seen := map[string]bool{}
		for _, s := range all {
			if got := h.run(t, s.ID, "cat /proc/sys/kernel/hostname /proc/sys/kernel/random/boot_id"); !strings.HasPrefix(got, s.ID+"\n") || seen[got] {
				t.Errorf("sandbox %s is %q", s.ID, got)
			} else {
				seen[got] = true
			}
			h.destroy(t, s)
		}
		if hits := h.Warm()[0].SpawnedHits - before; hits < ahead {
			t.Errorf("%d of %d VMMs were claimed", hits, ahead)
		}
	})
	awaitWarm(t, h.Manager, "they are replaced", withSpawned(ahead))

	t.Run("killed before the claim", func(t *testing.T) {
		h.warm.mu.Lock()
		var victims []*box
		for _, shelf := range h.warm.shelves {
			victims = append(victims, shelf.spawned...)
		}
		h.warm.mu.Unlock()
		for _, b := range victims {
			if err := unix.Kill(b.snapshot().Process.PID, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		}
		s := h.create(t, hello()) // whether or not the pool knows yet
		if got := h.run(t, s.ID, "hostname"); got != s.ID+"\n" || s.BootMode != kiln.BootSnapshot {
			t.Errorf("sandbox %s by %s is %q", s.ID, s.BootMode, got)
		}
		h.destroy(t, s)
		for _, b := range victims {
			select {
			case <-b.claimed:
			case <-time.After(time.Minute):
				t.Errorf("the pool keeps the dead VMM of %s", b.id)
			}
		}
		awaitWarm(t, h.Manager, "they are replaced", withSpawned(ahead))
	})

	t.Run("a new version drains them", func(t *testing.T) {
		h.store.mu.Lock()
		next := *h.store.version
		next.Number = 2
		h.store.version, h.store.template.Current = &next, 2
		h.store.mu.Unlock()
		h.WarmChanged()
		awaitWarm(t, h.Manager, "none of the old version", func(s kiln.WarmShelf) bool { return s.Spawned == 0 && s.Version <= 1 })
		deadline := time.Now().Add(time.Minute)
		for tick := time.Tick(10 * time.Millisecond); ; <-tick {
			left, err := os.ReadDir(h.opts.Dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("left in %s: %v", h.opts.Dir, left)
			}
		}
	})
}

func (h *vmHost) destroy(t *testing.T, s *kiln.Sandbox) {
	t.Helper()
	if err := h.Destroy(t.Context(), s.ID); err != nil {
		t.Error(err)
	}
}
