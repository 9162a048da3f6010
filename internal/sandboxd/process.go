package sandboxd

import (
	"bytes"
	"os"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/guestapi/process"
	"github.com/kilnvm/kiln/internal/sandboxd/reap"
)

// command is a request to run something, resolved: nothing in it is left to look up.
type command struct {
	config  *process.ProcessConfig // as requested, for List
	tag     *string
	account account
	path    string // of the program
	dir     string
	env     []string
	// terminal asks for one; nil means pipes.
	terminal  *process.PTY
	withInput bool // only without a terminal
	deadline  time.Time
}

// running is a started command.
type running struct {
	info    *process.ProcessInfo
	child   *reap.Child
	tty     *os.File // nil without a terminal
	input   *input
	sources []output
	output  fanout
	timer   *time.Timer // kills at the deadline; nil without one
}

// start runs c and returns it with a follower that misses nothing. Call follow next.
func start(c command, children *reap.Registry) (*running, *follower, error) {
	var io *stdio
	var err error
	if c.terminal != nil {
		io, err = openTerminal(c.terminal.GetSize(), c.account)
	} else {
		io, err = openPipes(c.withInput, c.account)
	}
	if err != nil {
		return nil, nil, errorf(connect.CodeInternal, "command %q: %w", c.config.GetCmd(), err)
	}
	argv := append([]string{c.config.GetCmd()}, c.config.GetArgs()...)
	child, err := children.Start(c.path, argv, &os.ProcAttr{
		Dir: c.dir, Env: c.env, Files: io.child, Sys: attributes(c),
	})
	if err != nil {
		io.closeAll()
		return nil, nil, explainStart(c, err)
	}
	io.closeChild()
	r := &running{
		info:  &process.ProcessInfo{Config: c.config, Pid: uint32(child.PID()), Tag: c.tag},
		child: child, tty: io.tty, input: newInput(io.input), sources: io.outputs,
	}
	first := r.output.follow()
	if !c.deadline.IsZero() {
		r.timer = time.AfterFunc(time.Until(c.deadline), func() { _ = child.SignalGroup(unix.SIGKILL) })
	}
	return r, first, nil
}

func attributes(c command) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: c.account.uid, Gid: c.account.gid, Groups: c.account.groups},
		Setsid:     true, // also makes it the leader of a process group, to be signalled as one
		Setctty:    c.terminal != nil,
		Ctty:       0,
	}
}

// explainStart tells apart what the kernel reports alike: exec says "no such file" when the
// program is there and its interpreter is not.
func explainStart(c command, err error) error {
	name := c.config.GetCmd()
	if os.IsNotExist(err) && executable(c.path) == nil {
		return errorf(connect.CodeNotFound,
			"command %q cannot be executed: its interpreter or dynamic loader does not exist in the sandbox", name)
	}
	if os.IsPermission(err) {
		return errorf(connect.CodePermissionDenied,
			"command %q cannot be executed in %s by user %s: permission denied", name, c.dir, c.account.name)
	}
	return startError(name, err)
}

// follow reads the output until both streams are closed, and returns after the end event
// has been handed out. A process that left its output open to another one, in the
// background, has not ended before that one has.
func (r *running) follow() {
	var readers sync.WaitGroup
	for _, o := range r.sources {
		readers.Go(func() { r.read(o) })
	}
	readers.Wait()
	state, err := r.child.Wait()
	if r.timer != nil {
		r.timer.Stop()
	}
	r.input.close()
	r.output.finish(endEvent(state, err))
}

// read hands out one output until it ends. Small pieces are copied. Large ones are handed
// out in turns of as many buffers as it takes to be sure that all followers have done with
// the oldest.
func (r *running) read(o output) {
	defer o.file.Close()
	var buffers [inUse + 1][]byte
	size, turn := o.chunk, 0
	for {
		if len(buffers[turn]) < size {
			buffers[turn] = make([]byte, size)
		}
		n, err := o.file.Read(buffers[turn])
		switch {
		case n > o.chunk/2:
			r.output.publish(o.kind, buffers[turn][:n])
			turn = (turn + 1) % len(buffers)
		case n > 0:
			r.output.publish(o.kind, bytes.Clone(buffers[turn][:n]))
		}
		if err != nil { // end of file, or EIO from a terminal that nobody holds open
			return
		}
		if n == size && size < o.most {
			size = min(2*size, o.most)
			widen(o.file, size)
		}
	}
}

// kill ends the process and makes follow return even if its output is held open by others.
func (r *running) kill() {
	_ = r.child.SignalGroup(unix.SIGKILL)
	<-r.child.Done()
	for _, o := range r.sources {
		_ = o.file.SetReadDeadline(time.Unix(1, 0))
	}
}

func startEvent(pid uint32) *process.ProcessEvent {
	return &process.ProcessEvent{Event: &process.ProcessEvent_Start{Start: &process.ProcessEvent_StartEvent{Pid: pid}}}
}

func endEvent(state *os.ProcessState, err error) *process.ProcessEvent {
	end := &process.ProcessEvent_EndEvent{ExitCode: -1}
	switch {
	case err != nil:
		text := err.Error()
		end.Status, end.Error = "unknown", &text
	default:
		end.ExitCode, end.Exited, end.Status = int32(state.ExitCode()), state.Exited(), state.String()
		if !state.Success() {
			end.Error = &end.Status
		}
	}
	return &process.ProcessEvent{Event: &process.ProcessEvent_End{End: end}}
}
