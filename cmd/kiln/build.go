package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
	"github.com/kilnvm/kiln/internal/source"
)

func (a *app) templatesCreate() *cobra.Command {
	var f buildFlags
	var wait bool
	cmd := &cobra.Command{
		Use:   "create NAME --dockerfile FILE | --repo URL | --image IMAGE",
		Short: "Create a template from a Dockerfile, a git repository or an image and return at once",
		Long: `Create a template from a Dockerfile, a git repository or an existing image and return
at once; --wait shows the build and waits for its end.

The Dockerfile's folder is the build context if the Dockerfile copies files from it or a
kiln-template.toml lies beside it; .dockerignore is honoured. --context names another.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.checkGiven(cmd.Flags()); err != nil {
				return err
			}
			remote, err := f.from.remote(f.context != "")
			if err != nil {
				return err
			}
			var input source.Input
			if !remote {
				if input, err = a.createInput(f); err != nil {
					return err
				}
			}
			return a.create(cmd.Context(), args[0], input, f, false, wait)
		},
	}
	f.add(cmd)
	a.addProgress(cmd)
	cmd.Flags().StringVar(&f.context, "context", "", "folder that the Dockerfile may copy from")
	cmd.Flags().BoolVar(&wait, "wait", false, "show the build and wait for its end")
	return cmd
}

func (a *app) templatesBuild() *cobra.Command {
	var f buildFlags
	var builtIn string
	var detach bool
	cmd := &cobra.Command{
		Use:   "build [NAME] DIR | NAME --repo URL | NAME --image IMAGE | --builtin NAME",
		Short: "Build a template from a folder with a Dockerfile, a git repository or an image, and wait",
		Long: `Build a template from a folder with a Dockerfile, a git repository or an existing image,
show the build and wait for its end. If the template exists, its next version is built;
until that is ready the old one serves. Interrupting the command cancels the build.

Without NAME the one in DIR's kiln-template.toml counts.

--builtin builds a built-in template now rather than on its first use. The server's operator
builds it again with --no-cache or --pull.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if builtIn != "" && len(args) > 0 {
				return fmt.Errorf("--builtin %s names the template: it takes no NAME and no DIR", builtIn)
			}
			if builtIn != "" {
				return nil
			}
			return cobra.RangeArgs(1, 2)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if builtIn != "" {
				if err := onlyBuiltIn(cmd.LocalNonPersistentFlags(), builtIn); err != nil {
					return err
				}
				return a.buildBuiltIn(cmd.Context(), builtIn, api.BuiltInRequest{NoCache: f.noCache, Pull: f.pull}, !detach)
			}
			if err := f.checkGiven(cmd.Flags()); err != nil {
				return err
			}
			remote, err := f.from.remote(len(args) == 2)
			if err != nil {
				return err
			}
			var in source.Input
			if !remote {
				if len(args) == 1 && isLocalFolder(args[0]) {
					args = []string{"", args[0]} // the metadata file has the name
				}
				if len(args) < 2 {
					return usageError{kiln.Errorf(kiln.CodeInvalid, "no source given for template %q, and no folder is called that", args[0]).WithHint("name a folder with a Dockerfile, or use --repo or --image")}
				}
				if args[1] == "-" {
					return usageError{kiln.Errorf(kiln.CodeInvalid, "a build context cannot be read from standard input").
						WithHint("name a folder; a Dockerfile alone can be: kiln templates create NAME --dockerfile -")}
				}
				if in, err = a.input(f); err != nil {
					return err
				}
				in.Dir = args[1]
			}
			return a.create(cmd.Context(), args[0], in, f, true, !detach)
		},
	}
	f.add(cmd)
	a.addProgress(cmd)
	cmd.Flags().StringVar(&builtIn, "builtin", "", "name of a built-in template")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "return at once")
	return cmd
}

func isLocalFolder(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// onlyBuiltIn refuses flags that say how to build another source.
func onlyBuiltIn(flags *pflag.FlagSet, name string) error {
	var err error
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed && !slices.Contains([]string{"builtin", "detach", "progress", "no-cache", "pull"}, f.Name) {
			err = usageError{kiln.Errorf(kiln.CodeInvalid, "--builtin %s takes no --%s: its recipe is Kiln's own", name, f.Name)}
		}
	})
	return err
}

// create sends the context and, if told to, follows the build.
func (a *app) create(ctx context.Context, name string, in source.Input, f buildFlags, replace, wait bool) error {
	req, err := f.request(a)
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	req.Name, req.Replace = name, replace
	return a.send(ctx, c, in, req, wait)
}

// send sends a request and, unless the server fetches it, the context.
func (a *app) send(ctx context.Context, c *client.Client, in source.Input, req *client.CreateTemplate, wait bool) error {
	if req.Git == nil && req.Image == "" {
		archive, err := packContext(ctx, in, req)
		if err != nil {
			return err
		}
		defer archive.Close()
		req.Context = archive
	}
	b, err := c.CreateTemplate(ctx, *req)
	if err != nil {
		return err
	}
	return a.queued(ctx, c, b, wait)
}
