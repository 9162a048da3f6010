package main

import (
	"context"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
)

func (a *app) sandboxCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "sandbox", Aliases: []string{"sandboxes", "sb"}, Short: "Start and use sandboxes"}
	cmd.AddCommand(
		a.sandboxRun(), a.sandboxCreate(), a.sandboxExec(), a.sandboxList(), a.sandboxStatus(), a.sandboxUpload(), a.sandboxDownload(),
		a.sandboxKeepalive(), a.sandboxRunCode(), a.sandboxPause(),
		a.sandboxShell(), a.sandboxProcesses(), a.sandboxAttach(), a.sandboxKill(), a.sandboxLogs(), a.sandboxWake(), a.sandboxFork(), a.sandboxLifecycle(), a.sandboxDestroy(),
		a.sandboxEgress(), a.sandboxDenials(), a.sandboxNetwork(), a.sandboxPort(),
	)
	return cmd
}

// sandboxFlags are the flags that run and create share.
type sandboxFlags struct {
	template, size string
	bootMode       string
	env, metadata  []string
	ttl, idle      time.Duration
	persistent     bool
	egress         egressFlags
}

func (f *sandboxFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.template, "template", "t", "", "template: name, ID, name:tag or name@version (required)")
	flags.StringVar(&f.size, "size", "", "VM size (default the template's)")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "NAME=VALUE for every command (repeatable)")
	flags.StringArrayVar(&f.metadata, "metadata", nil, "KEY=VALUE to find it by (repeatable)")
	flags.DurationVar(&f.ttl, "ttl", 0, "life of the sandbox (default 5m)")
	f.egress.add(cmd, "egress-")
	flags.BoolVar(&f.persistent, "persistent", false, "pause it, instead of ending it, when it expires or is idle")
	flags.DurationVar(&f.idle, "idle-timeout", 0, "end it, or pause it if it is persistent, when nobody has used it for so long (default never)")
	flags.StringVar(&f.bootMode, "boot-mode", "", "insist on a start path: warm, spawned (snapshot, by a VMM started ahead), snapshot or cold (default the fastest there is)")
}

func (f *sandboxFlags) request() (api.CreateSandboxRequest, error) {
	req := api.CreateSandboxRequest{Template: f.template, Size: f.size, BootMode: f.bootMode}
	if f.template == "" {
		return req, usageError{kiln.Errorf(kiln.CodeInvalid, "no template given").WithHint("use -t TEMPLATE; 'kiln templates list' shows them")}
	}
	var err error
	if req.Egress, err = f.egress.change(); err != nil {
		return req, err
	}
	if req.Env, err = pairs("--env", f.env, nil); err != nil {
		return req, err
	}
	if req.Metadata, err = pairs("--metadata", f.metadata, nil); err != nil {
		return req, err
	}
	if req.TTLSeconds, err = wholeSeconds("--ttl", f.ttl); err != nil {
		return req, err
	}
	idle, err := wholeSeconds("--idle-timeout", f.idle)
	if idle != nil {
		req.IdleSeconds = *idle
	}
	req.Persistent = f.persistent
	return req, err
}

func (a *app) sandboxCreate() *cobra.Command {
	var f sandboxFlags
	cmd := &cobra.Command{
		Use: "create -t TEMPLATE", Short: "Start a sandbox and print its ID", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := f.request()
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			sb, err := a.createSandbox(cmd.Context(), c, req)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(sb)
			}
			_, err = fmt.Fprintln(a.stdout, sb.ID)
			return err
		},
	}
	f.add(cmd)
	return cmd
}

func (a *app) sandboxStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status ID", Aliases: []string{"show", "get"}, Short: "Show one sandbox", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			sb, err := c.GetSandbox(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(sb)
			}
			return printSandbox(a.stdout, sb)
		}),
	}
}

func printSandbox(w io.Writer, sb *api.Sandbox) error {
	rows := [][]string{
		{"id", sb.ID}, {"status", string(sb.Status)}, {"template", fmt.Sprintf("%s@%d", sb.Template, sb.Version)},
		{"size", fmt.Sprintf("%s (%d vCPU, %d MiB)", sb.Size, sb.VCPUs, sb.MemoryMiB)}, {"disk", fmt.Sprintf("%d MiB", sb.DiskMB)},
		{"boot", fmt.Sprintf("%s, %d ms", sb.BootMode, sb.BootMS)}, {"created", sb.CreatedAt.Local().Format(time.DateTime)},
	}
	switch {
	case !sb.EndedAt.IsZero():
		rows = append(rows, []string{"ended", sb.EndedAt.Local().Format(time.DateTime)})
	case !sb.PausedAt.IsZero():
		rows = append(rows, []string{"paused", sb.PausedAt.Local().Format(time.DateTime)})
	default:
		rows = append(rows, []string{whenOver(sb), sb.ExpiresAt.Local().Format(time.DateTime)})
	}
	if sb.Parent != "" {
		rows = append(rows, []string{"forked from", sb.Parent})
	}
	if !sb.Egress.IsZero() {
		rows = append(rows, []string{"egress", sb.Egress.String()})
	}
	if n := sb.Network; n != nil {
		rows = append(rows,
			[]string{"network", fmt.Sprintf("%d bytes sent, %d received", n.SentBytes, n.ReceivedBytes)},
			[]string{"denied", fmt.Sprintf("%d packets, %d names, %d frames", n.RefusedPackets, n.RefusedNames, n.DroppedFrames)})
	}
	if sb.Reason != "" {
		rows = append(rows, []string{"reason", sb.Reason})
	}
	if len(sb.Metadata) > 0 {
		rows = append(rows, []string{"metadata", joinPairs(sb.Metadata)})
	}
	return table(w, rows)
}

func joinPairs(m map[string]string) string {
	list := make([]string, 0, len(m))
	for k, v := range m {
		list = append(list, k+"="+v)
	}
	sort.Strings(list)
	return strings.Join(list, " ")
}

func (a *app) sandboxKeepalive() *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "keepalive ID", Short: "Let a sandbox live longer, counted from now", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if ttl < 0 {
				return usageError{kiln.Errorf(kiln.CodeInvalid, "--ttl %v is negative", ttl)}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			sb, err := c.Keepalive(cmd.Context(), args[0], ttl)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(sb)
			}
			_, err = fmt.Fprintf(a.stdout, "%s ends at %s\n", sb.ID, sb.ExpiresAt.Local().Format(time.DateTime))
			return err
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "life from now (default as long as was asked for last)")
	return cmd
}

func (a *app) sandboxDestroy() *cobra.Command {
	return &cobra.Command{
		Use: "destroy ID...", Aliases: []string{"delete", "rm"}, Short: "End sandboxes at once", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, id := range args {
				if err := c.DestroySandbox(cmd.Context(), id); err != nil {
					return err
				}
				fmt.Fprintf(a.progress(), "destroyed %s\n", id)
			}
			return nil
		}),
	}
}

// destroyTimeout bounds the end of a sandbox that outlived the reason it was started for.
const destroyTimeout = 15 * time.Second

// withSandbox starts a sandbox, passes it to use, and destroys it whatever happens.
func (a *app) withSandbox(ctx context.Context, req api.CreateSandboxRequest, use func(*api.Sandbox) error) (err error) {
	c, err := a.client()
	if err != nil {
		return err
	}
	sb, err := a.createSandbox(ctx, c, req)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
		defer cancel()
		if derr := c.DestroySandbox(ctx, sb.ID); derr != nil && kiln.CodeOf(derr) != kiln.CodeNotFound {
			fmt.Fprintf(a.stderr, "warning: sandbox %s was not destroyed: %v\n", sb.ID, derr)
		}
	}()
	return use(sb)
}
