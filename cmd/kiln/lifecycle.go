package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
)

// wholeSeconds rounds up; nil for 0, which means "not given".
func wholeSeconds(flag string, d time.Duration) (*int64, error) {
	if d < 0 {
		return nil, usageError{kiln.Errorf(kiln.CodeInvalid, "%s %v is negative", flag, d)}
	}
	if d == 0 {
		return nil, nil
	}
	seconds := int64((d + time.Second - 1) / time.Second)
	return &seconds, nil
}

// whenOver says what happens to a sandbox at the end of its time.
func whenOver(sb *api.Sandbox) string {
	if sb.Persistent {
		return "pauses"
	}
	return "ends"
}

func (a *app) sandboxList() *cobra.Command {
	var f kiln.SandboxFilter
	var statuses, metadata []string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List sandboxes, oldest first; by default those that live", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range statuses {
				status, err := kiln.ParseSandboxStatus(name)
				if err != nil {
					return usageError{err}
				}
				f.Statuses = append(f.Statuses, status)
			}
			var err error
			if f.Metadata, err = pairs("--metadata", metadata, nil); err != nil {
				return err
			}
			return a.listSandboxes(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&statuses, "status", nil, "only those in one of these statuses, such as running,paused")
	flags.StringVarP(&f.Template, "template", "t", "", "only those of this template (ID or name)")
	flags.StringArrayVar(&metadata, "metadata", nil, "only those with KEY=VALUE (repeatable: all must be equal)")
	flags.IntVar(&f.Limit, "limit", 0, "at most so many (default all)")
	return cmd
}

func (a *app) listSandboxes(ctx context.Context, f kiln.SandboxFilter) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	list, err := c.ListSandboxes(ctx, f)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(list)
	}
	rows := [][]string{{"ID", "TEMPLATE", "SIZE", "STATUS", "BOOT", "AGE", "ENDS IN"}}
	for _, sb := range list {
		left := "-"
		if sb.EndedAt.IsZero() && !sb.ExpiresAt.IsZero() {
			left = time.Until(sb.ExpiresAt).Round(time.Second).String()
		}
		rows = append(rows, []string{
			sb.ID, fmt.Sprintf("%s@%d", sb.Template, sb.Version), sb.Size, string(sb.Status), fmt.Sprintf("%s %dms", sb.BootMode, sb.BootMS),
			time.Since(sb.CreatedAt).Round(time.Second).String(), left,
		})
	}
	return table(a.stdout, rows)
}

func (a *app) sandboxPause() *cobra.Command {
	return &cobra.Command{
		Use: "pause ID...", Short: "Save sandboxes and give back their CPU and memory; whatever uses one next wakes it", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			return a.eachSandbox(cmd.Context(), args, "paused", c.PauseSandbox)
		}),
	}
}

func (a *app) sandboxWake() *cobra.Command {
	return &cobra.Command{
		Use: "wake ID...", Aliases: []string{"resume"}, Short: "Let paused sandboxes run again", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			return a.eachSandbox(cmd.Context(), args, "woke", c.WakeSandbox)
		}),
	}
}

// eachSandbox does one thing to several sandboxes and tells what has become of them. The
// first failure does not keep it from the others.
func (a *app) eachSandbox(ctx context.Context, ids []string, done string, do func(context.Context, string) (*api.Sandbox, error)) error {
	var list []*api.Sandbox
	var errs []error
	for _, id := range ids {
		begun := time.Now()
		sb, err := do(ctx, id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, sb)
		if !a.json() {
			fmt.Fprintf(a.stdout, "%s %s in %s\n", done, sb.ID, seconds(time.Since(begun)))
		}
	}
	if a.json() && len(list) > 0 {
		errs = append(errs, a.printJSON(list))
	}
	return errors.Join(errs...)
}

func (a *app) sandboxFork() *cobra.Command {
	var req api.ForkRequest
	var metadata []string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "fork ID", Short: "Make running copies of a sandbox and print their IDs",
		Long: `Make running copies of a sandbox and print their IDs. Each begins where the sandbox is,
with its files, memory and processes, and has an identity of its own. Connections to the
sandbox are cut for a moment; it goes on by itself.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if len(metadata) > 0 {
				if req.Metadata, err = pairs("--metadata", metadata, nil); err != nil {
					return err
				}
			}
			if req.TTLSeconds, err = wholeSeconds("--ttl", ttl); err != nil {
				return err
			}
			return a.fork(cmd.Context(), args[0], req)
		},
	}
	flags := cmd.Flags()
	flags.IntVarP(&req.Count, "count", "n", 1, "how many copies")
	flags.DurationVar(&ttl, "ttl", 0, "life of the copies (default the sandbox's)")
	flags.StringArrayVar(&metadata, "metadata", nil, "KEY=VALUE of the copies (default the sandbox's)")
	return cmd
}

func (a *app) fork(ctx context.Context, id string, req api.ForkRequest) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	forked, err := c.ForkSandbox(ctx, id, req)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range forked.Errors {
		errs = append(errs, &kiln.Error{Code: e.Code, Message: "a copy of " + id + " did not start: " + e.Message, Hint: e.Hint})
	}
	if a.json() {
		return errors.Join(append(errs, a.printJSON(forked))...)
	}
	for _, sb := range forked.Children {
		fmt.Fprintln(a.stdout, sb.ID)
	}
	return errors.Join(errs...)
}

func (a *app) sandboxLifecycle() *cobra.Command {
	var ttl, idle time.Duration
	var persistent bool
	cmd := &cobra.Command{
		Use: "lifecycle ID", Short: "Show or change how long a sandbox lives and what happens then", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var change api.LifecycleChange
			var err error
			if change.TTLSeconds, err = wholeSeconds("--ttl", ttl); err != nil {
				return err
			}
			if cmd.Flags().Changed("persistent") {
				change.Persistent = &persistent
			}
			if cmd.Flags().Changed("idle-timeout") {
				if change.IdleSeconds, err = wholeSeconds("--idle-timeout", idle); err != nil {
					return err
				}
				if change.IdleSeconds == nil {
					change.IdleSeconds = new(int64)
				}
			}
			return a.lifecycle(cmd.Context(), args[0], change)
		},
	}
	flags := cmd.Flags()
	flags.DurationVar(&ttl, "ttl", 0, "life from now on")
	flags.DurationVar(&idle, "idle-timeout", 0, "end or pause it when nobody has used it for so long; 0 for never")
	flags.BoolVar(&persistent, "persistent", false, "pause it, instead of ending it, when it expires or is idle")
	return cmd
}

func (a *app) lifecycle(ctx context.Context, id string, change api.LifecycleChange) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	l, err := c.ChangeLifecycle(ctx, id, change)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(l)
	}
	idle := "never"
	if l.IdleSeconds > 0 {
		idle = (time.Duration(l.IdleSeconds) * time.Second).String()
	}
	return table(a.stdout, [][]string{
		{"time left", (time.Duration(l.TTLSeconds) * time.Second).String()}, {"persistent", yesNo(l.Persistent)}, {"idle timeout", idle},
	})
}
