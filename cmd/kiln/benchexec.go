package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/bench"
	"github.com/kilnvm/kiln/internal/client"
)

func (a *app) benchExec() *cobra.Command {
	var f benchFlags
	o := bench.ExecOptions{}
	cmd := &cobra.Command{
		Use: "exec", Short: "Measure commands: the first ones of a sandbox, streams, many at once", Args: cobra.NoArgs,
		Long: `Measure commands: the first ones of a sandbox, restored and from a warm slot; streams in both
directions, with checksums; many at once in one sandbox. The template needs sh, cat and dd. The
number of its warm slots is set to 1 meanwhile and to 0 afterwards.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Rounds < 1 || o.MegaBytes < 1 || o.Paced <= 0 || o.Concurrent < 1 {
				return usageError{kiln.Errorf(kiln.CodeInvalid, "--rounds, --megabytes, --paced and --concurrent must be more than 0")}
			}
			return a.printBench(cmd.Context(), f, func(template string, c *client.Client) (*bench.Report, error) {
				o.Template, o.Client, o.Progress = template, c, a.benchProgress
				return bench.Exec(cmd.Context(), o)
			})
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&o.Size, "size", kiln.DefaultSizeName, "VM size")
	flags.IntVar(&o.Rounds, "rounds", 20, "how often a sandbox starts by each path")
	flags.IntVar(&o.MegaBytes, "megabytes", 100, "how much is streamed as fast as it goes, in each direction")
	flags.DurationVar(&o.Paced, "paced", 5*time.Second, "for how long each of the slower streams flows")
	flags.IntVar(&o.Concurrent, "concurrent", 200, "how many commands run at once")
	return cmd
}
