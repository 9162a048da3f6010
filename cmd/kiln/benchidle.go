package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/cmd/kiln/server"
	"github.com/kilnvm/kiln/internal/bench"
	"github.com/kilnvm/kiln/internal/client"
)

func (a *app) benchIdle() *cobra.Command {
	var f benchFlags
	o := bench.IdleOptions{}
	cmd := &cobra.Command{
		Use: "idle", Short: "Measure what a server with paused warm slots uses while nobody asks for anything", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Slots < 1 || o.For <= 0 {
				return usageError{kiln.Errorf(kiln.CodeInvalid, "--count must be at least 1 and --for positive")}
			}
			return a.printBench(cmd.Context(), f, func(template string, c *client.Client) (*bench.Report, error) {
				info, err := server.ReadInfo(a.localDataDir())
				if err != nil {
					return nil, kiln.Errorf(kiln.CodeUnavailable, "the server's process is not known: %w", err).
						WithHint("run this on the server's host with its --data-dir, or use --own")
				}
				o.Template, o.Client, o.Progress, o.Server = template, c, a.benchProgress, info.PID
				return bench.Idle(cmd.Context(), o)
			})
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&o.Size, "size", kiln.DefaultSizeName, "VM size")
	cmd.Flags().IntVar(&o.Slots, "count", 50, "how many slots")
	cmd.Flags().DurationVar(&o.For, "for", time.Minute, "how long to measure")
	return cmd
}
