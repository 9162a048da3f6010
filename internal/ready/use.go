package ready

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// Use does what a user wants of a sandbox first: it asks the daemon for a file and has it run
// a command that reads its input and prints it. That proves a VM; and it is a rehearsal, after
// which what a process does once has been done, every page for it is there, and an emulator
// has the code translated. An image need not have a shell; where there is one it must work.
func Use(ctx context.Context, client *guest.Client) error {
	if _, err := client.Stat(ctx, "/"); err != nil {
		return fmt.Errorf("stat /: %w", err)
	}
	const shell = "/bin/sh"
	if _, err := client.Stat(ctx, shell); err != nil {
		if kiln.CodeOf(err) == kiln.CodeNotFound {
			return nil
		}
		return fmt.Errorf("stat %s: %w", shell, err)
	}
	const word = "kiln"
	var stdout, stderr strings.Builder
	exit, err := client.Run(ctx, guest.Command{
		Args: []string{shell, "-c", `read word && echo "$word"`}, Stdin: strings.NewReader(word + "\n"), Stdout: &stdout, Stderr: &stderr,
	})
	switch {
	case err != nil:
		return fmt.Errorf("run a command: %w", err)
	case exit.Code != 0:
		return errors.New("a trivial command failed in the VM: " + strings.TrimSpace(stderr.String()))
	case strings.TrimSpace(stdout.String()) != word:
		return fmt.Errorf("a trivial command in the VM printed %s", kiln.CutQuotes(fmt.Sprintf("%q", stdout.String())))
	}
	return nil
}
