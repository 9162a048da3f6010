// Package reap lets PID 1 and the command service share the children of one process.
//
// Every process whose parent dies is given to PID 1, which must wait for it or keep a
// zombie for ever. The daemon's own commands are children of the same process, and their
// exit status belongs to whoever started them. A [Registry] tells the two apart: what was
// started through it is waited for by it alone, everything else is an orphan.
package reap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// Registry knows which children of this process have an owner. In a process that reaps
// orphans every child must be started through it; os/exec would lose the status of its
// children to the reaper. The zero value is ready to use; it is safe for concurrent use.
type Registry struct {
	// starting is held for reading from fork until the child is in owned, and for writing
	// while the reaper decides about one zombie, so that it never meets a child that is
	// not registered yet.
	starting sync.RWMutex
	mu       sync.Mutex // guards owned
	owned    map[int]*Child
}

// Child is a process started through a [Registry].
type Child struct {
	pid   int
	done  chan struct{}
	state *os.ProcessState
	err   error

	mu     sync.Mutex // held while a signal is sent, so that pid is still ours
	reaped bool
}

// Start runs the program at path, which is not looked up, as [os.StartProcess] does.
func (r *Registry) Start(path string, argv []string, attr *os.ProcAttr) (*Child, error) {
	r.starting.RLock()
	defer r.starting.RUnlock()
	process, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return nil, err
	}
	c := &Child{pid: process.Pid, done: make(chan struct{})}
	r.mu.Lock()
	if r.owned == nil {
		r.owned = map[int]*Child{}
	}
	r.owned[c.pid] = c
	r.mu.Unlock()
	go r.wait(c, process)
	return c, nil
}

// wait collects c as soon as it ends. Nothing else may delay it: while an owned zombie is
// uncollected, the reaper cannot see past it.
func (r *Registry) wait(c *Child, process *os.Process) {
	waitExited(c.pid)
	c.mu.Lock()
	c.state, c.err = process.Wait()
	c.reaped = true
	c.mu.Unlock()
	r.mu.Lock()
	if r.owned[c.pid] == c { // the number may already belong to a new child
		delete(r.owned, c.pid)
	}
	r.mu.Unlock()
	close(c.done)
}

// waitExited returns when pid is a zombie, and leaves it one.
func waitExited(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// PID is the number of the process.
func (c *Child) PID() int { return c.pid }

// Done is closed when the process has ended and was collected.
func (c *Child) Done() <-chan struct{} { return c.done }

// Wait returns how the process ended, after Done.
func (c *Child) Wait() (*os.ProcessState, error) {
	<-c.done
	return c.state, c.err
}

// SignalGroup sends sig to the process group that the child leads. It returns
// [os.ErrProcessDone] when the child has ended. The child must have been started as the
// leader of a group of its own.
func (c *Child) SignalGroup(sig unix.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reaped {
		return os.ErrProcessDone
	}
	if err := unix.Kill(-c.pid, sig); err != nil {
		return fmt.Errorf("signal %d to process group %d: %w", sig, c.pid, err)
	}
	return nil
}

// ReapOrphans collects orphans whenever a child ends, until ctx is done. Run it in PID 1
// (or a child sub-reaper), once.
func (r *Registry) ReapOrphans(ctx context.Context) {
	ended := make(chan os.Signal, 1) // one pending wake-up covers any number of children
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	for {
		r.reapAll()
		select {
		case <-ended:
		case <-ctx.Done():
			return
		}
	}
}

// reapAll collects until no orphan is left that has ended.
func (r *Registry) reapAll() {
	for {
		owner, found := r.reapOne()
		switch {
		case !found:
			return
		case owner != nil:
			<-owner.done // it hides the zombies behind it until it is collected
		}
	}
}

// reapOne looks at one ended child: it collects an orphan, and returns the owner of any
// other. found is false when no child has ended.
func (r *Registry) reapOne() (owner *Child, found bool) {
	r.starting.Lock()
	defer r.starting.Unlock()
	pid := endedChild()
	if pid == 0 {
		return nil, false
	}
	r.mu.Lock()
	owner = r.owned[pid]
	r.mu.Unlock()
	if owner == nil {
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
	return owner, true
}
