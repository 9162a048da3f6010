package sandbox

import (
	"log/slog"
	"sync"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
)

// traffic adds up what all sandboxes have sent and received, those that have ended
// included. A slot's own counters begin anew with every sandbox.
type traffic struct {
	log *slog.Logger

	mu    sync.Mutex
	total kiln.NetworkUse
	seen  map[*network.Slot]kiln.NetworkUse // what total has of a slot that is lent
}

// read brings the total up to date with a slot. The lock is held.
func (t *traffic) read(slot *network.Slot) {
	now, err := slot.Use()
	if err != nil {
		t.log.Warn("network counters", "error", err)
		return
	}
	was := t.seen[slot]
	for _, c := range []struct{ total, was, now *uint64 }{
		{&t.total.SentBytes, &was.SentBytes, &now.SentBytes},
		{&t.total.ReceivedBytes, &was.ReceivedBytes, &now.ReceivedBytes},
		{&t.total.RefusedPackets, &was.RefusedPackets, &now.RefusedPackets},
		{&t.total.DroppedFrames, &was.DroppedFrames, &now.DroppedFrames},
		{&t.total.RefusedNames, &was.RefusedNames, &now.RefusedNames},
	} {
		if *c.now >= *c.was { // else it was read while it was being given back
			*c.total += *c.now - *c.was
		}
	}
	t.seen[slot] = now
}

// leave reads a slot for the last time, before it is given back.
func (t *traffic) leave(slot *network.Slot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.read(slot)
	delete(t.seen, slot)
}

// Traffic returns what all sandboxes have sent and received since the server started.
func (m *Manager) Traffic() kiln.NetworkUse {
	t := m.traffic
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range m.boxes() {
		b.mu.Lock()
		if b.slot != nil {
			t.read(b.slot)
		}
		b.mu.Unlock()
	}
	return t.total
}

// Counts returns how many living sandboxes are in each state.
func (m *Manager) Counts() map[kiln.SandboxStatus]int {
	counts := map[kiln.SandboxStatus]int{}
	for _, b := range m.boxes() {
		b.mu.Lock()
		counts[b.view.Status]++
		b.mu.Unlock()
	}
	return counts
}
