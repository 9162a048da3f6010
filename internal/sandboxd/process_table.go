package sandboxd

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/guestapi/process"
	"github.com/kilnvm/kiln/internal/sandboxd/reap"
)

// remembered is how long the end of a process can still be asked for.
const remembered = 30 * time.Second

// processTable knows the commands that run, and for a while those that ran.
type processTable struct {
	children *reap.Registry
	log      *slog.Logger

	mu     sync.Mutex
	list   []*running // in the order of their start
	closed bool
	active sync.WaitGroup // one per command that has not ended
}

func newProcessTable(children *reap.Registry, log *slog.Logger) processTable {
	return processTable{children: children, log: log}
}

// start runs c. The follower gets everything from the beginning.
func (t *processTable) start(c command) (*running, *follower, error) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, nil, errorf(connect.CodeUnavailable, "the daemon is shutting down")
	}
	t.active.Add(1)
	t.mu.Unlock()
	r, first, err := start(c, t.children)
	if err != nil {
		t.active.Done()
		return nil, nil, err
	}
	t.mu.Lock()
	t.list = append(t.list, r)
	closed := t.closed
	t.mu.Unlock()
	t.log.Debug("command started", "pid", r.info.GetPid(), "cmd", c.config.GetCmd(), "user", c.account.name)
	go func() {
		defer t.active.Done()
		r.follow()
		time.AfterFunc(remembered, func() { t.forget(r) })
	}()
	if closed { // killAll has not seen it
		r.kill()
	}
	return r, first, nil
}

func (t *processTable) forget(r *running) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = slices.DeleteFunc(t.list, func(other *running) bool { return other == r })
}

// live returns the commands that have not ended.
func (t *processTable) live() []*running {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*running
	for _, r := range t.list {
		if !r.output.ended() {
			list = append(list, r)
		}
	}
	return list
}

// find returns the latest command that the selector fits; one that runs is preferred.
func (t *processTable) find(selector *process.ProcessSelector) (*running, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ended *running
	for _, r := range slices.Backward(t.list) {
		switch {
		case !selected(r, selector):
		case !r.output.ended():
			return r, nil
		case ended == nil:
			ended = r
		}
	}
	if ended != nil {
		return ended, nil
	}
	return nil, unknownProcess(selector)
}

// findLive returns a command that has not ended.
func (t *processTable) findLive(selector *process.ProcessSelector) (*running, error) {
	r, err := t.find(selector)
	if err == nil && r.output.ended() {
		return nil, unknownProcess(selector)
	}
	return r, err
}

func selected(r *running, selector *process.ProcessSelector) bool {
	switch by := selector.GetSelector().(type) {
	case *process.ProcessSelector_Pid:
		return r.info.GetPid() == by.Pid
	case *process.ProcessSelector_Tag:
		return r.info.Tag != nil && r.info.GetTag() == by.Tag
	}
	return false
}

func unknownProcess(selector *process.ProcessSelector) error {
	switch by := selector.GetSelector().(type) {
	case *process.ProcessSelector_Pid:
		return errorf(connect.CodeNotFound, "process %d does not exist", by.Pid)
	case *process.ProcessSelector_Tag:
		return errorf(connect.CodeNotFound, "process with tag %q does not exist", by.Tag)
	}
	return errorf(connect.CodeInvalidArgument, "the request names no process")
}

// killAll kills every command, refuses new ones and returns when all have ended. Processes
// that left their command's group and keep its output open are not waited for.
func (t *processTable) killAll() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	for _, r := range t.live() {
		r.kill()
	}
	t.active.Wait()
}

// endAll asks every command to end, refuses new ones, and kills those that still run when
// ctx ends.
func (t *processTable) endAll(ctx context.Context) {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	for _, r := range t.live() {
		_ = r.child.SignalGroup(unix.SIGTERM)
	}
	for _, r := range t.live() {
		select {
		case <-r.child.Done():
		case <-ctx.Done():
		}
	}
	t.killAll()
}
