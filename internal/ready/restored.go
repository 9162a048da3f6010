package ready

import (
	"context"
	"fmt"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// Restored runs the template's post_restore command, as the template's user, in a clone
// that has its identity and has not been handed out. Whatever user space keeps that must
// differ between clones is renewed there. Its failure is a [*kiln.BuildError].
func Restored(ctx context.Context, c *guest.Client, spec kiln.VMSpec, limits Limits) error {
	if spec.PostRestore == "" {
		return nil
	}
	limits = limits.withDefaults()
	out := &output{progress: kiln.DiscardProgress}
	exit, err := attempt(ctx, c, spec.PostRestore, limits.Attempt, out)
	if err != nil {
		return fmt.Errorf("post_restore: %w", err)
	}
	if exit.Code != 0 {
		return &kiln.BuildError{Stage: kiln.StageSnapshot, ExitCode: exit.Code, Output: out.last(),
			Message: fmt.Sprintf("post_restore %q ended with %s", spec.PostRestore, describe(exit)),
			Hint:    fmt.Sprintf("it runs in every new sandbox and may take %s", limits.Attempt)}
	}
	return nil
}
