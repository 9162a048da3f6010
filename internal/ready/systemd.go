package ready

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// systemctl asks the image's systemd. It is looked up in the guest.
const systemctl = "systemctl"

// awaitSystem waits until the image's systemd has started what it starts. Units that failed are
// named in a warning: distributions have some that fail in any VM.
func awaitSystem(ctx context.Context, c *guest.Client, limits Limits, progress kiln.Progress) error {
	if err := needSystemd(ctx, c); err != nil {
		return err
	}
	progress.Log(kiln.StageSnapshot, "init: waiting for systemd")
	begun := time.Now()
	waiting, cancel := context.WithTimeout(ctx, limits.Ready)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		state, err := ask(waiting, c, "is-system-running", "--wait")
		late := waiting.Err() != nil || time.Since(begun)+pause > limits.Ready
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && (!late || errors.Is(err, guest.ErrGone)):
			return fmt.Errorf("systemctl: %w", err)
		case state == "running":
			return nil
		case state == "degraded":
			return warnOfFailures(ctx, c, progress)
		case state == "maintenance" || state == "stopping":
			return systemFault(ctx, c, fmt.Sprintf("systemd says %q instead of \"running\"", state), "--failed")
		case late:
			return systemFault(ctx, c, fmt.Sprintf("systemd has not started everything within %s", limits.Ready), "list-jobs")
		}
		select { // it does not listen yet
		case <-time.After(pause):
		case <-waiting.Done():
		}
	}
}

// needSystemd says what to do about an image that has no systemd.
func needSystemd(ctx context.Context, c *guest.Client) error {
	for _, path := range []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd"} {
		_, err := c.Stat(ctx, path)
		if kiln.CodeOf(err) != kiln.CodeNotFound {
			return err
		}
	}
	return &kiln.BuildError{Stage: kiln.StageSnapshot,
		Message: `the template says init = "systemd", and its image has no systemd`,
		Hint:    `install it in the Dockerfile (on Debian and Ubuntu the packages systemd, systemd-sysv and dbus), or remove init from the template`}
}

func warnOfFailures(ctx context.Context, c *guest.Client, progress kiln.Progress) error {
	text, err := ask(ctx, c, "list-units", "--failed", "--plain", "--no-legend", "--no-pager")
	if err != nil {
		return fmt.Errorf("systemctl: %w", err)
	}
	var failed []string
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 0 {
			failed = append(failed, fields[0])
		}
	}
	slices.Sort(failed)
	progress.Log(kiln.StageSnapshot, "warning: systemd is degraded, these units failed: "+strings.Join(failed, " "))
	return nil
}

// systemFault is what is wrong with the template's system, with more of systemd's own words.
func systemFault(ctx context.Context, c *guest.Client, message, question string) error {
	fault := &kiln.BuildError{Stage: kiln.StageSnapshot, Message: message,
		Hint: "units that can neither start nor fail in a VM keep it waiting: mask them in the Dockerfile"}
	if text, err := ask(ctx, c, question, "--no-pager"); err == nil {
		fault.Output = strings.Split(text, "\n")
	}
	return fault
}

// ask runs systemctl as root and returns what it printed, whatever its exit code.
func ask(ctx context.Context, c *guest.Client, args ...string) (string, error) {
	var out strings.Builder
	_, err := c.Run(ctx, guest.Command{Args: append([]string{systemctl}, args...), User: "root", Dir: "/", Stdout: &out})
	return strings.TrimSpace(out.String()), err
}
