package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/guest"
)

// execFlags are the flags that run and exec share, about the command.
type execFlags struct {
	dir, user string
	tty       bool
	timeout   time.Duration
}

func (f *execFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.dir, "workdir", "w", "", "folder to run in (default the template's)")
	flags.StringVarP(&f.user, "user", "u", "", "user to run as (default the template's)")
	flags.BoolVar(&f.tty, "tty", false, "run in a terminal")
	flags.DurationVar(&f.timeout, "timeout", 0, "kill the command after so long")
}

func (a *app) sandboxRun() *cobra.Command {
	var f sandboxFlags
	var e execFlags
	var keep bool
	cmd := &cobra.Command{
		Use:   "run -t TEMPLATE -- COMMAND [ARG...]",
		Short: "Run one command in a sandbox of its own",
		Long: `Run one command in a sandbox of its own, which ends with the command. Input and
output are passed through, and kiln exits with the command's code: 127 if the command does
not exist, 128+n if signal n ended it, 125 if Kiln itself failed. -o json prints output and
code as one object when the command has ended.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.request()
			if err != nil {
				return err
			}
			return ownFailure(a.runOnce(cmd.Context(), req, e, keep, args))
		},
	}
	f.add(cmd)
	e.add(cmd)
	cmd.Flags().BoolVar(&keep, "keep", false, "do not destroy the sandbox; print its ID on standard error")
	cmd.Flags().Bool("rm", true, "destroy the sandbox afterwards (the default)")
	return cmd
}

func (a *app) runOnce(ctx context.Context, req api.CreateSandboxRequest, e execFlags, keep bool, args []string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if !keep {
		return a.withSandbox(ctx, req, func(sb *api.Sandbox) error { return a.exec(ctx, c, sb.ID, e, nil, args) })
	}
	sb, err := a.createSandbox(ctx, c, req)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(a.stderr, sb.ID+"\n"); err != nil {
		return err
	}
	return a.exec(ctx, c, sb.ID, e, nil, args)
}

func (a *app) sandboxExec() *cobra.Command {
	var e execFlags
	var env []string
	var detach bool
	cmd := &cobra.Command{
		Use:   "exec ID -- COMMAND [ARG...]",
		Short: "Run a command in a running sandbox and exit with its code",
		Long: `Run a command in a running sandbox and exit with its code. Input and output are passed
through; -o json prints output and code as one object when the command has ended.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			vars, err := pairs("--env", env, nil)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return ownFailure(err)
			}
			run := a.exec
			if detach {
				run = a.detach
			}
			return ownFailure(whyGone(cmd.Context(), c, args[0], run(cmd.Context(), c, args[0], e, vars, args[1:])))
		},
	}
	e.add(cmd)
	cmd.Flags().StringArrayVarP(&env, "env", "e", nil, "NAME=VALUE for this command (repeatable)")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "let the command run on by itself and print its process ID")
	return cmd
}

// whyTimeout bounds the question what became of a sandbox.
const whyTimeout = 5 * time.Second

// whyGone returns err, or, if it says that the sandbox is gone, what became of it as far as
// the server knows.
func whyGone(ctx context.Context, c *client.Client, id string, err error) error {
	if !errors.Is(err, guest.ErrGone) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, whyTimeout)
	defer cancel()
	sb, asked := c.GetSandbox(ctx, id)
	if kiln.CodeOf(asked) == kiln.CodeNotFound {
		return asked
	}
	if asked != nil || sb.Reason == "" {
		return err
	}
	verb := "has ended"
	if sb.Status == kiln.SandboxFailed {
		verb = "has failed"
	}
	return &kiln.Error{Code: kiln.CodeNotFound, Message: fmt.Sprintf("sandbox %q %s: %s", id, verb, sb.Reason), Err: err}
}

// ownFailure marks what is not the command's exit as Kiln's failure.
func ownFailure(err error) error {
	var exit commandExit
	var usage usageError
	if err == nil || errors.As(err, &exit) || errors.As(err, &usage) {
		return err
	}
	return kilnFailure{err}
}

// exec runs a command in a sandbox with this process's streams. An interrupted kiln asks
// the command to end, as a shell would, and kills it if it does not.
func (a *app) exec(ctx context.Context, c *client.Client, id string, e execFlags, env map[string]string, args []string) error {
	cmd := guest.Command{Args: args, Env: env, Dir: e.dir, User: e.user, Stdin: forwarded(a.stdin), Stdout: a.stdout, Stderr: a.stderr}
	g := c.Guest(id)
	defer g.Close()
	if a.json() {
		return a.execJSON(ctx, g, cmd, e)
	}
	if e.tty {
		restore, err := a.terminal(&cmd)
		if err != nil {
			return err
		}
		defer restore()
	}
	exit, err := a.toEnd(ctx, g, cmd, a.stderr, e.timeout)
	if err != nil || exit.Code == 0 {
		return err
	}
	return commandExit{exit.Code}
}

// execJSON prints what became of a command when it has ended.
func (a *app) execJSON(ctx context.Context, g *guest.Client, cmd guest.Command, e execFlags) error {
	if e.tty {
		return usageError{kiln.Errorf(kiln.CodeInvalid, "--tty and -o json exclude each other")}
	}
	var stdout, stderr api.ExecOutput
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begun := time.Now()
	exit, err := a.toEnd(ctx, g, cmd, &stderr, e.timeout)
	if err != nil {
		return err
	}
	err = a.printJSON(api.ExecResult{
		Stdout: stdout.String(), Stderr: stderr.String(), ExitCode: exit.Code, Signal: exit.Signal,
		DurationMS: time.Since(begun).Milliseconds(), Truncated: stdout.Truncated || stderr.Truncated,
	})
	if err != nil || exit.Code == 0 {
		return err
	}
	return commandExit{exit.Code}
}

// toEnd runs a command to its end. Why it cannot be started goes to report; as with a shell,
// that is an exit code.
func (a *app) toEnd(ctx context.Context, g *guest.Client, cmd guest.Command, report io.Writer, timeout time.Duration) (guest.Exit, error) {
	p, err := g.Start(ctx, cmd)
	var start *guest.StartError
	if errors.As(err, &start) {
		printError(report, err)
		return guest.Exit{Code: start.Code}, nil
	}
	if err != nil {
		return guest.Exit{}, err
	}
	return a.await(ctx, p, timeout)
}

// endGrace is how long a command that was asked to end may take.
const endGrace = 5 * time.Second

// await waits for a command. When ctx ends, or the time is up, the command is asked to end
// first.
func (a *app) await(ctx context.Context, p *guest.Process, timeout time.Duration) (guest.Exit, error) {
	var up <-chan time.Time
	if timeout > 0 {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		up = timer.C
	}
	interrupted := false
	select {
	case <-p.Done():
		return p.Wait(ctx)
	case <-ctx.Done():
		interrupted = true
	case <-up:
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), endGrace)
	defer cancel()
	if err := p.Terminate(grace); err != nil {
		return guest.Exit{}, err
	}
	exit, err := p.Wait(grace) // kills when the grace is over
	switch {
	case interrupted && err != nil:
		return guest.Exit{Code: 128 + int(unix.SIGKILL)}, nil
	case interrupted:
		return exit, nil
	}
	return guest.Exit{}, kiln.Errorf(kiln.CodeTimeout, "the command ran longer than %v and was ended", timeout)
}
