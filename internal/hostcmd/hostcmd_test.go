package hostcmd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/hostcmd"
)

func TestOutput(t *testing.T) {
	c := hostcmd.Command{Name: "sh", Args: []string{"-c", `echo "$X in $PWD"; cat`}, Dir: "/", Env: []string{"X=y"}, In: strings.NewReader("stdin")}
	out, err := c.Output(t.Context())
	if err != nil || string(out) != "y in /\nstdin" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestFailureNamesCommandAndItsLastWords(t *testing.T) {
	err := hostcmd.Run(t.Context(), "sh", "-c", "for i in $(seq 100000); do echo line $i; done >&2; exit 7")
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"sh -c", "exit status 7", "line 99993; ", "line 100000"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not contain %q", err, want)
		}
	}
	if len(err.Error()) > 1000 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
	if code := hostcmd.ExitCode(fmt.Errorf("wrapped: %w", err)); code != 7 {
		t.Errorf("exit code is %d, want 7", code)
	}
}

func TestMissingProgram(t *testing.T) {
	err := hostcmd.Run(t.Context(), "no-such-program")
	if kiln.CodeOf(err) != kiln.CodeUnavailable || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("got %v (code %s), want unavailable", err, kiln.CodeOf(err))
	}
	if code := hostcmd.ExitCode(err); code != -1 {
		t.Errorf("exit code is %d, want -1", code)
	}
}

// Cancelling must end the children of the command too: a shell that is killed alone leaves
// what it started.
func TestCancelKillsChildren(t *testing.T) {
	r, w := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	go func() {
		defer cancel()
		_, _ = io.ReadFull(r, make([]byte, 1))
	}()
	start := time.Now()
	err := hostcmd.Command{Name: "sh", Args: []string{"-c", "sleep 600 & echo; wait"}, Out: w}.Run(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("the child kept the output open for %v", d)
	}
}
