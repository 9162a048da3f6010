package sandbox

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnvm/kiln"
)

// WarmLimits bounds the warm pool. The zero value keeps no slots but those that are set.
type WarmLimits struct {
	// MaxDemand is how many slots of one version and size recent requests may suggest; 0
	// means that slots are kept only where they are set.
	MaxDemand int
	// MaxMemoryMiB bounds the memory promised to all slots; 0 means a quarter of what the
	// host may promise.
	MaxMemoryMiB int
	// Targets are the slots that the configuration sets, by template reference, with
	// "/size" behind it for another size than the template's default.
	Targets map[string]int
	// SpawnAhead is how many VMMs are started ahead for each version and size that has slots
	// or demand. They count in no memory: their guests have none yet.
	SpawnAhead int
}

// shelfKey names the slots that are equal.
type shelfKey struct {
	template string // ID
	version  int
	size     string
}

func (p *plan) shelf() shelfKey {
	return shelfKey{template: p.template.ID, version: p.version.Number, size: p.size.Name}
}

// shelf is the slots of one key. A slot is a box without identity, row and policy.
type shelf struct {
	plan         *plan
	set, guessed int // targets
	demand       demand
	ready        []*box
	hits, misses int
	ahead        int    // target of VMMs that are started ahead
	spawned      []*box // those, restored but never run
	spawnedHits  int
	failure      error     // of the last attempt to fill it
	retry        time.Time // not before
}

func (s *shelf) target() int { return max(s.set, s.guessed) }

// row returns where slots of b's kind are, and how many there should be.
func (s *shelf) row(b *box) (row *[]*box, target int) {
	if b.spawned {
		return &s.spawned, s.ahead
	}
	return &s.ready, s.target()
}

// pool keeps account of the slots. Making and ending them is the manager's.
type pool struct {
	limits WarmLimits
	news   chan struct{} // holds a token when there may be something to do

	mu      sync.Mutex
	closed  bool
	shelves map[shelfKey]*shelf
}

func newPool(limits WarmLimits) *pool {
	return &pool{limits: limits, news: make(chan struct{}, 1), shelves: map[shelfKey]*shelf{}}
}

// wake has the pool looked after soon.
func (p *pool) wake() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}

func (p *pool) at(plan *plan) *shelf {
	s := p.shelves[plan.shelf()]
	if s == nil {
		s = &shelf{plan: plan}
		p.shelves[plan.shelf()] = s
	}
	return s
}

// claim takes a slot for a request, or notes that there was none. A slot is handed out once.
func (p *pool) claim(plan *plan, now time.Time) *box {
	defer p.wake()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.at(plan)
	s.demand.note(now)
	if len(s.ready) == 0 {
		s.misses++
		return nil
	}
	b := s.ready[0] // the oldest
	s.ready = s.ready[1:]
	s.hits++
	return b
}

// claimSpawned takes a VMM that was started ahead, for a request that no slot serves. It is
// handed out once.
func (p *pool) claimSpawned(plan *plan, now time.Time) *box {
	defer p.wake()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.at(plan)
	if plan.bootMode == kiln.BootSpawned {
		s.demand.note(now) // else claim has noted it
	}
	if len(s.spawned) == 0 {
		return nil
	}
	b := s.spawned[0]
	s.spawned = s.spawned[1:]
	s.spawnedHits++
	return b
}

// put offers a slot. It returns false when the pool is closed or wants no more of them.
func (p *pool) put(b *box) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shelves[b.plan.shelf()]
	if p.closed || s == nil {
		return false
	}
	row, target := s.row(b)
	if len(*row) >= target {
		return false
	}
	*row, s.failure = append(*row, b), nil
	return true
}

// take removes a certain slot. It returns false when somebody else has it already.
func (p *pool) take(b *box) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shelves[b.plan.shelf()]
	if s == nil {
		return false
	}
	row, _ := s.row(b)
	i := slices.Index(*row, b)
	if i < 0 {
		return false
	}
	*row = slices.Delete(*row, i, i+1)
	return true
}

// spare removes any slot, to make room for a sandbox. It returns nil when there is none.
func (p *pool) spare() *box {
	p.mu.Lock()
	defer p.mu.Unlock()
	var fullest *shelf
	for _, s := range p.shelves {
		if len(s.ready) > 0 && (fullest == nil || len(s.ready) > len(fullest.ready)) {
			fullest = s
		}
	}
	if fullest == nil {
		return nil
	}
	b := fullest.ready[0]
	fullest.ready = fullest.ready[1:]
	fullest.retry = time.Now().Add(retryPause)
	return b
}

// aim sets the targets and returns the slots that are too many. Shelves that nobody wants
// are forgotten.
func (p *pool) aim(set map[shelfKey]aim, current func(*plan) bool, now time.Time) (surplus []*box) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range set {
		s := p.at(a.plan)
		s.plan = a.plan
	}
	for key, s := range p.shelves {
		s.set, s.guessed, s.ahead = set[key].slots, 0, 0
		if current(s.plan) {
			s.guessed = min(p.limits.MaxDemand, s.demand.peak(now))
			if s.set > 0 || len(s.demand.asked) > 0 {
				s.ahead = p.limits.SpawnAhead
			}
		} else {
			s.set, s.demand = 0, demand{}
		}
		if over := len(s.ready) - s.target(); over > 0 {
			surplus = append(surplus, s.ready[:over]...)
			s.ready = s.ready[over:]
		}
		if over := len(s.spawned) - s.ahead; over > 0 {
			surplus = append(surplus, s.spawned[:over]...)
			s.spawned = s.spawned[over:]
		}
		if _, wanted := set[key]; !wanted && len(s.demand.asked) == 0 && len(s.ready)+len(s.spawned) == 0 {
			delete(p.shelves, key)
		}
	}
	return surplus
}

// aim is a target that was set.
type aim struct {
	plan  *plan
	slots int
}

// plans returns what the shelves are of.
func (p *pool) plans() []*plan {
	p.mu.Lock()
	defer p.mu.Unlock()
	var plans []*plan
	for _, s := range p.shelves {
		plans = append(plans, s.plan)
	}
	return plans
}

// lack is a slot that is to be made.
type lack struct {
	plan    *plan
	spawned bool
}

// next returns what is lacking, and when to look again if it cannot be made yet. VMMs that
// are started ahead go first, as they take a fraction of the time; then the emptiest shelf.
func (p *pool) next(now time.Time, memoryMiB int) (want *lack, again time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	used := 0
	for _, s := range p.shelves {
		used += len(s.ready) * s.plan.size.MemoryMiB
	}
	best := 1.0
	for _, s := range p.shelves {
		spawn := len(s.spawned) < s.ahead
		warm := len(s.ready) < s.target() && used+s.plan.size.MemoryMiB <= memoryMiB
		switch full := float64(len(s.ready)) / float64(max(1, s.target())); {
		case !spawn && !warm:
		case s.retry.After(now):
			if again.IsZero() || s.retry.Before(again) {
				again = s.retry
			}
		case spawn:
			want, best = &lack{s.plan, true}, -1
		case want == nil || full < best:
			want, best = &lack{s.plan, false}, full
		}
	}
	return want, again
}

// failed notes why a slot could not be made.
func (p *pool) failed(plan *plan, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.shelves[plan.shelf()]; s != nil {
		s.failure, s.retry = err, time.Now().Add(retryPause)
	}
}

// retryPause is how long a shelf rests after a failure, or after it had to give.
const retryPause = 10 * time.Second

// close refuses further slots and returns those that are left.
func (p *pool) close() []*box {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var left []*box
	for _, s := range p.shelves {
		left = append(append(left, s.ready...), s.spawned...)
		s.ready, s.spawned = nil, nil
	}
	return left
}

// Warm returns the state of the warm pool, by template, version and size.
func (m *Manager) Warm() []kiln.WarmShelf {
	p, now := m.warm, time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []kiln.WarmShelf
	for _, s := range p.shelves {
		w := kiln.WarmShelf{
			TemplateID: s.plan.template.ID, OrgID: s.plan.template.OrgID, Template: s.plan.template.Name,
			Version: s.plan.version.Number, Size: s.plan.size.Name, Set: s.set,
			Demand: min(p.limits.MaxDemand, s.demand.peak(now)), Ready: len(s.ready), Hits: s.hits, Misses: s.misses,
			Spawned: len(s.spawned), SpawnedHits: s.spawnedHits,
		}
		if s.failure != nil {
			w.Error = s.failure.Error()
		}
		list = append(list, w)
	}
	slices.SortFunc(list, func(a, b kiln.WarmShelf) int {
		if c := strings.Compare(a.Template+"\x00"+a.TemplateID, b.Template+"\x00"+b.TemplateID); c != 0 {
			return c
		}
		if a.Version != b.Version {
			return b.Version - a.Version
		}
		return strings.Compare(a.Size, b.Size)
	})
	return list
}
