// Package ready brings a booted VM into the state that its template promises: it is told
// how commands run there, its start command runs, its ready command has succeeded. The
// snapshot stage does this once, before the capture; a sandbox that boots cold does it
// for itself.
package ready

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// Limits bounds the wait for a template's own commands. A zero field means its default.
type Limits struct {
	// Ready is how long the ready command may keep failing. Default 5 minutes.
	Ready time.Duration
	// Attempt is how long one run of it may take. Default 30 seconds.
	Attempt time.Duration
	// Settle is how long a start command without a ready command is watched for an
	// early failure. Default 2 seconds.
	Settle time.Duration
}

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		value *time.Duration
		def   time.Duration
	}{{&l.Ready, 5 * time.Minute}, {&l.Attempt, 30 * time.Second}, {&l.Settle, 2 * time.Second}} {
		if *f.value == 0 {
			*f.value = f.def
		}
	}
	return l
}

// Pauses between attempts of the ready command.
const (
	firstPause = 100 * time.Millisecond
	longPause  = 2 * time.Second
)

// Configure tells the daemon how commands of spec's template run. That the image lacks
// the user it names is a fault of the template.
func Configure(ctx context.Context, c *guest.Client, spec kiln.VMSpec) error {
	env := slices.Clone(spec.Config.Env)
	for _, name := range slices.Sorted(maps.Keys(spec.Env)) {
		env = append(env, name+"="+spec.Env[name])
	}
	err := c.Configure(ctx, guest.Setup{Env: env, User: spec.Config.User, WorkingDir: spec.Config.WorkingDir, Folders: spec.Config.Volumes})
	if kiln.CodeOf(err) == kiln.CodeInvalid {
		return &kiln.BuildError{Stage: kiln.StageSnapshot, Message: err.Error(), Err: err,
			Hint: fmt.Sprintf("the image says USER %s: create that user in the Dockerfile", spec.Config.User)}
	}
	if err != nil {
		return fmt.Errorf("configure the daemon: %w", err)
	}
	return nil
}

// Reach waits for the template's own init system, if it has one. It then starts the
// template's start command, in the background and for good, and returns when its ready
// command has succeeded. What the commands print goes to progress. A command that fails is a
// [*kiln.BuildError] naming it.
func Reach(ctx context.Context, c *guest.Client, spec kiln.VMSpec, limits Limits, progress kiln.Progress) error {
	limits = limits.withDefaults()
	if spec.Init == kiln.InitSystemd {
		if err := awaitSystem(ctx, c, limits, progress); err != nil {
			return err
		}
	}
	if spec.StartCmd == "" && spec.ReadyCmd == "" {
		return nil
	}
	if err := needShell(ctx, c, spec); err != nil {
		return err
	}
	s := &service{}
	if spec.StartCmd != "" {
		var err error
		if s, err = startService(ctx, c, spec.StartCmd, progress); err != nil {
			return err
		}
		defer s.process.Detach()
	}
	if spec.ReadyCmd == "" {
		return s.settle(ctx, limits.Settle)
	}
	return awaitReady(ctx, c, spec.ReadyCmd, s, limits, progress)
}

const shell = "/bin/sh"

func needShell(ctx context.Context, c *guest.Client, spec kiln.VMSpec) error {
	_, err := c.Stat(ctx, shell)
	if kiln.CodeOf(err) != kiln.CodeNotFound {
		return err
	}
	name := "ready_cmd"
	if spec.StartCmd != "" {
		name = "start_cmd"
	}
	return &kiln.BuildError{Stage: kiln.StageSnapshot, Err: err,
		Message: fmt.Sprintf("%s needs a shell, and the image has no %s", name, shell),
		Hint:    "install one in the Dockerfile, or remove the command from the template"}
}

// service is the start command. The zero value is a template that has none.
type service struct {
	command string
	process *guest.Process
	output  *output
}

func startService(ctx context.Context, c *guest.Client, command string, progress kiln.Progress) (*service, error) {
	progress.Log(kiln.StageSnapshot, "start_cmd: "+command)
	out := &output{progress: progress}
	p, err := c.Start(ctx, guest.Command{Args: []string{shell, "-c", command}, Stdout: out, Stderr: out})
	if err != nil {
		return nil, fmt.Errorf("start_cmd: %w", err)
	}
	return &service{command: command, process: p, output: out}, nil
}

// ended is closed when the start command has ended. Without one it never is.
func (s *service) ended() <-chan struct{} {
	if s.process == nil {
		return nil
	}
	return s.process.Done()
}

// failure says what is wrong with the end of the start command. One that exits with 0 has
// put its service into the background, which is fine.
func (s *service) failure(ctx context.Context) error {
	exit, err := s.process.Wait(ctx)
	if err != nil {
		return fmt.Errorf("start_cmd: %w", err)
	}
	if exit.Code == 0 {
		return nil
	}
	return &kiln.BuildError{Stage: kiln.StageSnapshot, ExitCode: exit.Code, Output: s.output.last(),
		Message: fmt.Sprintf("start_cmd %q ended with %s", s.command, describe(exit))}
}

// settle gives a start command nobody can ask the chance to fail.
func (s *service) settle(ctx context.Context, d time.Duration) error {
	select {
	case <-s.ended():
		return s.failure(ctx)
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// awaitReady repeats the ready command until it succeeds, the start command fails or
// time is up.
func awaitReady(ctx context.Context, c *guest.Client, command string, s *service, limits Limits, progress kiln.Progress) error {
	progress.Log(kiln.StageSnapshot, "ready_cmd: "+command)
	begun := time.Now()
	ended := s.ended()
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		out := &output{progress: kiln.DiscardProgress}
		exit, err := attempt(ctx, c, command, limits.Attempt, out)
		if err != nil {
			return fmt.Errorf("ready_cmd: %w", err)
		}
		if exit.Code == 0 {
			return nil
		}
		if time.Since(begun)+pause > limits.Ready {
			return &kiln.BuildError{Stage: kiln.StageSnapshot, ExitCode: exit.Code, Output: append(s.lastOutput(), out.last()...),
				Message: fmt.Sprintf("ready_cmd %q did not succeed within %s: %s", command, limits.Ready, describe(exit)),
				Hint:    "it is repeated until it exits with 0"}
		}
		select {
		case <-time.After(pause):
		case <-ended:
			if err := s.failure(ctx); err != nil {
				return err
			}
			ended = nil // it went into the background; the ready command decides
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *service) lastOutput() []string {
	if s.output == nil {
		return nil
	}
	return s.output.last()
}

// attempt runs the ready command once. One that takes too long is killed and has failed.
func attempt(ctx context.Context, c *guest.Client, command string, limit time.Duration, out *output) (guest.Exit, error) {
	runCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	exit, err := c.Run(runCtx, guest.Command{Args: []string{shell, "-c", command}, Stdout: out, Stderr: out})
	if err != nil && runCtx.Err() != nil && ctx.Err() == nil && !errors.Is(err, guest.ErrGone) {
		return guest.Exit{Code: 128 + 9, Signal: "SIGKILL"}, nil
	}
	return exit, err
}

func describe(exit guest.Exit) string {
	if exit.Signal != "" {
		return "signal " + strings.TrimPrefix(exit.Signal, "SIG")
	}
	return fmt.Sprintf("exit code %d", exit.Code)
}
