package sandboxd

import (
	"sync"

	"github.com/kilnvm/kiln/internal/guestapi/process"
)

// outputKind is which stream of a process bytes came from.
type outputKind int

const (
	stdout outputKind = iota
	stderr
	terminal
)

// fanout hands the output of one process to all who follow it. While anybody follows,
// nothing is lost: a process that writes faster than its slowest follower reads has to
// wait, as it would at a pipe. While nobody follows, output is dropped.
type fanout struct {
	mu        sync.Mutex
	followers map[*follower]struct{}
	end       *process.ProcessEvent // set once there will be no more output
}

// follower receives events until they are closed, which follows the end event. It has done
// with an event when it receives the next.
type follower struct {
	events chan *process.ProcessEvent
	gone   chan struct{}
	once   sync.Once
}

// follow adds a follower; what it gets begins now. Call leave when done.
func (f *fanout) follow() *follower {
	n := &follower{events: make(chan *process.ProcessEvent, inUse-1), gone: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.end != nil {
		n.events <- f.end
		close(n.events)
		return n
	}
	if f.followers == nil {
		f.followers = map[*follower]struct{}{}
	}
	f.followers[n] = struct{}{}
	return n
}

// leave ends a subscription, also while an event is being handed to it.
func (f *fanout) leave(n *follower) {
	n.once.Do(func() { close(n.gone) })
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.followers, n)
}

func (f *fanout) current() []*follower {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]*follower, 0, len(f.followers))
	for n := range f.followers {
		list = append(list, n)
	}
	return list
}

// inUse is how many of the events that were published last may still be in use: one that a
// follower works on, and one that waits for it.
const inUse = 2

// publish hands b to every follower. It may be changed again when inUse further calls for
// the same output have returned.
func (f *fanout) publish(kind outputKind, b []byte) {
	followers := f.current()
	if len(followers) == 0 {
		return
	}
	event := dataEvent(kind, b)
	for _, n := range followers {
		n.send(event)
	}
}

func (n *follower) send(event *process.ProcessEvent) {
	select {
	case n.events <- event:
	case <-n.gone:
	}
}

// finish hands out the last event. publish must not be called any more.
func (f *fanout) finish(end *process.ProcessEvent) {
	f.mu.Lock()
	f.end = end
	f.mu.Unlock()
	for _, n := range f.current() {
		n.send(end)
		close(n.events)
	}
}

func (f *fanout) ended() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.end != nil
}

func dataEvent(kind outputKind, b []byte) *process.ProcessEvent {
	data := &process.ProcessEvent_DataEvent{}
	switch kind {
	case stdout:
		data.Output = &process.ProcessEvent_DataEvent_Stdout{Stdout: b}
	case stderr:
		data.Output = &process.ProcessEvent_DataEvent_Stderr{Stderr: b}
	case terminal:
		data.Output = &process.ProcessEvent_DataEvent_Pty{Pty: b}
	}
	return &process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: data}}
}
