// Package hostcmd runs programs of the host: apt-get, mke2fs, nft and the like. A failure
// names the command and carries the end of what it wrote to standard error; a missing
// program is a [kiln.Error] that says so; a cancelled command dies with all its children.
package hostcmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/kilnvm/kiln"
)

// waitDelay is how long a killed command may keep its output pipes open, which grandchildren
// in another process group could do for ever.
const waitDelay = 2 * time.Second

// Command is a program of the host with its arguments. No shell is involved.
type Command struct {
	Name string // looked up in PATH unless it has a slash
	Args []string
	Dir  string   // "" means the current directory
	Env  []string // KEY=value, added to the environment of this process
	// OnlyEnv makes Env the whole environment.
	OnlyEnv bool
	In      io.Reader // nil means /dev/null
	Out     io.Writer // nil means /dev/null
}

// Error is the failure of a command that was started.
type Error struct {
	Command string // as typed into a shell, roughly
	Stderr  string // its last lines
	Err     error  // *exec.ExitError, or the end of the context
}

func (e *Error) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("%s: %v", e.Command, e.Err)
	}
	return fmt.Sprintf("%s: %v: %s", e.Command, e.Err, strings.ReplaceAll(e.Stderr, "\n", "; "))
}

func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns the status that the command in err's chain exited with, or -1 when it
// was killed, never started, or err holds no command.
func ExitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// Run runs a command to its end.
func Run(ctx context.Context, name string, args ...string) error {
	return Command{Name: name, Args: args}.Run(ctx)
}

// Output runs a command to its end and returns what it printed.
func Output(ctx context.Context, name string, args ...string) ([]byte, error) {
	return Command{Name: name, Args: args}.Output(ctx)
}

// Output is like Run and returns what the command printed. c.Out must be nil.
func (c Command) Output(ctx context.Context) ([]byte, error) {
	var out bytes.Buffer
	c.Out = &out
	err := c.Run(ctx)
	return out.Bytes(), err
}

// Run runs the command to its end. It returns an [*Error] when the command failed and a
// [*kiln.Error] when it could not be started.
func (c Command) Run(ctx context.Context) error {
	path, err := exec.LookPath(c.Name)
	if err != nil {
		return &kiln.Error{
			Code:    kiln.CodeUnavailable,
			Message: fmt.Sprintf("the program %s is not installed", c.Name),
			Hint:    "`kiln doctor` names the package that has it",
			Err:     err,
		}
	}
	stderr := &tail{}
	cmd := exec.CommandContext(ctx, path, c.Args...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Dir, c.In, c.Out, stderr
	cmd.Env = c.Env
	if !c.OnlyEnv {
		cmd.Env = append(os.Environ(), c.Env...)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = waitDelay

	err = cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return &Error{Command: c.String(), Stderr: stderr.String(), Err: err}
}

// String returns the command as one line for messages; it is not quoted for a shell.
func (c Command) String() string {
	return strings.Join(append([]string{c.Name}, c.Args...), " ")
}
