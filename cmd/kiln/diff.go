package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln/internal/client"
)

func (a *app) templatesDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff NAME[@N] NAME[@N]", Short: "Show how the root filesystems of two versions differ; exit with 1 if they do", Args: cobra.ExactArgs(2),
		Long: `Show how the root filesystem of the second version differs from that of the first: what was
added, removed or changed, with owners, modes, times, attributes and content. A name without
a version or tag means the promoted version. Exit code 1 means that there are differences.`,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			diff, err := c.DiffTemplates(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			if a.json() {
				if err := a.printJSON(diff); err != nil {
					return err
				}
			} else {
				for _, d := range diff.Differences {
					fmt.Fprintf(a.stdout, "%s: %s: %s → %s\n", d.Path, d.Field, d.A, d.B)
				}
			}
			fmt.Fprintf(a.stderr, "%d differences between %s@%d and %s@%d\n", len(diff.Differences),
				diff.A.Template, diff.A.Version, diff.B.Template, diff.B.Version)
			if len(diff.Differences) > 0 {
				return silent{exitFailure}
			}
			return nil
		}),
	}
}
