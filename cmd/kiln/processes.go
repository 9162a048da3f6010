package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/guest"
)

// shellCommand is an interactive shell: the first of these that the sandbox has.
const shellCommand = `for s in "$SHELL" /bin/bash; do [ -x "$s" ] && exec "$s" -l; done; exec /bin/sh -l`

func (a *app) sandboxShell() *cobra.Command {
	e := execFlags{tty: true}
	cmd := &cobra.Command{
		Use: "shell ID", Short: "Open a shell in a sandbox, on this terminal", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return ownFailure(err)
			}
			return ownFailure(whyGone(cmd.Context(), c, args[0], a.exec(cmd.Context(), c, args[0], e, nil, []string{"/bin/sh", "-c", shellCommand})))
		},
	}
	cmd.Flags().StringVarP(&e.dir, "workdir", "w", "", "folder to start in (default the template's)")
	cmd.Flags().StringVarP(&e.user, "user", "u", "", "user to run as (default the template's)")
	return cmd
}

// detach starts a command that runs on by itself and prints its process ID.
func (a *app) detach(ctx context.Context, c *client.Client, id string, e execFlags, env map[string]string, args []string) error {
	if e.timeout > 0 {
		return usageError{kiln.Errorf(kiln.CodeInvalid, "--timeout and --detach exclude each other")}
	}
	cmd := guest.Command{Args: args, Env: env, Dir: e.dir, User: e.user}
	if e.tty {
		cmd.TTY = &guest.TTY{Size: guest.TTYSize{Cols: 80, Rows: 24}}
	}
	g := c.Guest(id)
	defer g.Close()
	p, err := g.Start(ctx, cmd)
	if err != nil {
		return err
	}
	p.Detach()
	if a.json() {
		return a.printJSON(map[string]uint32{"pid": p.PID})
	}
	_, err = fmt.Fprintln(a.stdout, p.PID)
	return err
}

func (a *app) sandboxProcesses() *cobra.Command {
	return &cobra.Command{
		Use: "ps ID", Short: "List the commands that run in a sandbox", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			g := c.Guest(args[0])
			defer g.Close()
			list, err := g.Processes(cmd.Context())
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			rows := [][]string{{"PID", "FOLDER", "COMMAND"}}
			for _, p := range list {
				rows = append(rows, []string{fmt.Sprint(p.PID), p.Dir, oneLine(strings.Join(p.Args, " "))})
			}
			return table(a.stdout, rows)
		}),
	}
}

func (a *app) sandboxAttach() *cobra.Command {
	var tty bool
	cmd := &cobra.Command{
		Use: "attach ID PID", Short: "Follow a command that runs in a sandbox and exit with its code",
		Long: `Follow a command that runs in a sandbox, with this process's input and output, and exit
with its code. What it printed while nobody followed is lost. An interrupted kiln leaves
the command running.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			pid, err := processID(args[1])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return ownFailure(err)
			}
			return ownFailure(a.attach(cmd.Context(), c, args[0], pid, tty))
		},
	}
	cmd.Flags().BoolVar(&tty, "tty", false, "the command was started with --tty")
	return cmd
}

func (a *app) attach(ctx context.Context, c *client.Client, id string, pid uint32, tty bool) error {
	cmd := guest.Command{Stdin: forwarded(a.stdin), Stdout: a.stdout, Stderr: a.stderr}
	if tty {
		restore, err := a.terminal(&cmd)
		if err != nil {
			return err
		}
		defer restore()
	}
	g := c.Guest(id)
	defer g.Close()
	p, err := g.Attach(ctx, pid, cmd)
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		p.Detach()
		return commandExit{exitInterrupted}
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return commandExit{exit.Code}
	}
	return nil
}

func (a *app) sandboxKill() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "signal ID PID", Aliases: []string{"kill"}, Short: "Send a signal to a command that runs in a sandbox", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			pid, err := processID(args[1])
			if err != nil {
				return err
			}
			number, err := signalNumber(name)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			g := c.Guest(args[0])
			defer g.Close()
			return g.Signal(cmd.Context(), pid, number)
		},
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "TERM", "signal by name or number")
	return cmd
}

func processID(text string) (uint32, error) {
	pid, err := strconv.ParseUint(text, 10, 32)
	if err != nil || pid == 0 {
		return 0, usageError{kiln.Errorf(kiln.CodeInvalid, "%q is not a process ID", text).WithHint("'kiln sandbox ps ID' lists them")}
	}
	return uint32(pid), nil
}

// signalNumber understands "9", "KILL" and "SIGKILL".
func signalNumber(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil && unix.SignalName(unix.Signal(n)) != "" {
		return n, nil
	}
	full := "SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if s := unix.SignalNum(full); s != 0 {
		return int(s), nil
	}
	return 0, usageError{kiln.Errorf(kiln.CodeInvalid, "there is no signal %q", name).WithHint("use a name such as TERM, INT or HUP, or a number")}
}
