package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
)

func (a *app) buildBuiltIn(ctx context.Context, name string, req api.BuiltInRequest, wait bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	b, err := c.BuildBuiltIn(ctx, name, req)
	if err != nil {
		return err
	}
	if b.Unchanged || !wait {
		return a.queued(ctx, c, b, false)
	}
	end, err := a.watchBuiltIn(ctx, c, a.progress(), b)
	if err != nil {
		return err
	}
	return a.summarize(end, "")
}

// watchBuiltIn shows the build of a built-in template on w and returns it when it is ready.
// It is everybody's, so it goes on if this command is interrupted.
func (a *app) watchBuiltIn(ctx context.Context, c *client.Client, w io.Writer, b *api.Build) (*api.Build, error) {
	end, err := a.watch(ctx, c, w, b.ID, client.LogOptions{Follow: true})
	if err != nil && ctx.Err() != nil {
		fmt.Fprintf(a.stderr, "the build of %s goes on; follow it with: kiln templates logs -f %s\n", b.Name, b.Name)
	}
	if err != nil {
		return nil, err
	}
	return end, buildFailure(end)
}

// createSandbox starts a sandbox. A built-in template that has never been built is built
// first, as its server does on first use, with the build to be seen on standard error.
func (a *app) createSandbox(ctx context.Context, c *client.Client, req api.CreateSandboxRequest) (*api.Sandbox, error) {
	sb, err := c.CreateSandbox(ctx, req)
	if kiln.CodeOf(err) != kiln.CodeConflict {
		return sb, err
	}
	t, terr := c.GetTemplate(ctx, req.Template)
	if terr != nil || !t.BuiltIn || t.Version > 0 || t.Latest.Status.Ended() {
		return nil, err
	}
	fmt.Fprintf(a.stderr, "template %s is built on its first use; this takes a while\n", t.Name)
	if _, err := a.watchBuiltIn(ctx, c, a.stderr, &t.Latest); err != nil {
		return nil, err
	}
	return c.CreateSandbox(ctx, req)
}

func (a *app) templatesSmoke() *cobra.Command {
	var size string
	cmd := &cobra.Command{
		Use: "smoke NAME[@N]", Short: "Run a template's smoke command in a sandbox of its own", Args: cobra.ExactArgs(1),
		Long: `Run the smoke command of a template's metadata in a sandbox of its own, and exit with
its code: 0 says that what the template promises is there.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return ownFailure(err)
			}
			t, err := c.GetTemplate(cmd.Context(), args[0])
			if err != nil {
				return ownFailure(err)
			}
			smoke := smokeOf(t)
			if smoke == "" {
				return ownFailure(kiln.Errorf(kiln.CodeInvalid, "template %q has no smoke command", args[0]).
					WithHint("say smoke = \"…\" in its kiln-template.toml"))
			}
			req := api.CreateSandboxRequest{Template: args[0], Size: size}
			return ownFailure(a.runOnce(cmd.Context(), req, execFlags{}, false, []string{"/bin/sh", "-c", smoke}))
		},
	}
	cmd.Flags().StringVar(&size, "size", "", "VM size (default the template's)")
	return cmd
}

// smokeOf returns the smoke command of the pinned version or of the one that sandboxes start
// from, else of the newest.
func smokeOf(t *api.TemplateDetail) string {
	for _, v := range t.Versions {
		if t.Pinned > 0 || v.Number == t.Version || t.Version == 0 {
			return v.Metadata.Smoke
		}
	}
	return ""
}
