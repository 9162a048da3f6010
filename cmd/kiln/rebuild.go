package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/source"
)

func (a *app) templatesRebuild() *cobra.Command {
	var f buildFlags
	var detach bool
	cmd := &cobra.Command{
		Use:   "rebuild NAME [DIR] [--dockerfile FILE]",
		Short: "Build the next version, unless nothing would change",
		Long: `Build the next version of a template, unless nothing would change, with the flags of the
last request for it.

With DIR or --dockerfile the source is what is there now. Without them it is that of the
last request: what its git ref means now, its image, or its folder as it was uploaded.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			secrets, err := a.readSecrets(f.secrets)
			if err != nil {
				return err
			}
			if len(args) == 2 {
				f.context = args[1]
			}
			if f.context != "" || f.dockerfile != "" {
				if f.from.access != (gitAccess{}) {
					return usageError{kiln.Errorf(kiln.CodeInvalid, "--git-… flags belong to a template from a git repository, not to a folder")}
				}
				in, err := a.rebuildInput(cmd.Context(), c, args[0], f)
				if err != nil {
					return err
				}
				req := &client.CreateTemplate{Name: args[0], Keep: true, Options: api.BuildOptions{NoCache: f.noCache, Pull: f.pull, Secrets: secrets}}
				return a.send(cmd.Context(), c, in, req, !detach)
			}
			req := api.RebuildRequest{NoCache: f.noCache, Pull: f.pull, Secrets: secrets}
			if req.GitCredentials, err = f.from.access.credentials(a); err != nil {
				return err
			}
			b, err := c.RebuildTemplate(cmd.Context(), args[0], req)
			if err != nil {
				return err
			}
			return a.queued(cmd.Context(), c, b, !detach)
		}),
	}
	f.addDockerfile(cmd.Flags())
	f.addCache(cmd.Flags())
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "return at once")
	f.from.access.add(cmd.Flags())
	a.addProgress(cmd)
	return cmd
}

// rebuildInput is the context of a next version. Its Dockerfile is called as that of the
// last request unless a flag names it.
func (a *app) rebuildInput(ctx context.Context, c *client.Client, name string, f buildFlags) (source.Input, error) {
	if f.dockerfile == "" {
		t, err := c.GetTemplate(ctx, name)
		if err != nil {
			return source.Input{}, err
		}
		for _, v := range t.Versions {
			if v.Number == t.Recipe {
				f.dockerfile = v.Options.Dockerfile
			}
		}
		if source.OutsideContext(f.dockerfile) {
			return source.Input{}, usageError{kiln.Errorf(kiln.CodeInvalid, "the Dockerfile of %s lay outside its folder", name).WithHint("name it with --dockerfile FILE")}
		}
		if f.dockerfile != "" {
			f.dockerfile = filepath.Join(f.context, filepath.FromSlash(f.dockerfile))
		}
	}
	return a.createInput(f)
}
