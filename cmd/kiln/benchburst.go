package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/bench"
	"github.com/kilnvm/kiln/internal/client"
)

func (a *app) benchBurst() *cobra.Command {
	return a.benchMany("burst", "Measure many starts at once, each verified by a command", 50, bench.Burst)
}

func (a *app) benchDensity() *cobra.Command {
	return a.benchMany("density", "Measure the memory of many living sandboxes, each verified by a command", 200, bench.Density)
}

// benchMany is a benchmark of many sandboxes.
func (a *app) benchMany(use, short string, count int, run func(context.Context, bench.BurstOptions) (*bench.Report, error)) *cobra.Command {
	var f benchFlags
	o := bench.BurstOptions{}
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Count < 1 {
				return usageError{kiln.Errorf(kiln.CodeInvalid, "--count must be at least 1")}
			}
			return a.printBench(cmd.Context(), f, func(template string, c *client.Client) (*bench.Report, error) {
				o.Template, o.Client, o.Progress = template, c, a.benchProgress
				return run(cmd.Context(), o)
			})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&o.Size, "size", kiln.DefaultSizeName, "VM size")
	cmd.Flags().IntVar(&o.Count, "count", count, "how many sandboxes")
	return cmd
}
