package main

import (
	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/bench"
	"github.com/kilnvm/kiln/internal/client"
)

func (a *app) benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure a server against the figures it should reach",
		Long: `Measure a server against the figures it should reach. Each sub-command measures what it
compares in turns, within one run, on the server that the usual flags name. With --own it
starts one on a data directory of its own, builds a template of nothing but busybox
there, and removes all of it afterwards. Run it on a machine that does nothing else.`,
	}
	cmd.AddCommand(a.benchBoot(), a.benchBurst(), a.benchDensity(), a.benchIdle(), a.benchExec(), a.benchCatalog())
	return cmd
}

// benchFlags are the flags that all benchmarks share.
type benchFlags struct {
	template string
	own      bool
}

func (f *benchFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.template, "template", "t", "", "template to start from (required without --own)")
	cmd.Flags().BoolVar(&f.own, "own", false, "measure a server of its own on a temporary data directory")
}

func (a *app) benchBoot() *cobra.Command {
	var f benchFlags
	o := bench.BootOptions{}
	cmd := &cobra.Command{
		Use: "boot", Short: "Measure starts: restore, cold boot, first command", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Rounds < 1 || o.ColdEvery < 0 {
				return usageError{kiln.Errorf(kiln.CodeInvalid, "--rounds must be at least 1 and --cold-every not negative")}
			}
			return a.printBench(cmd.Context(), f, func(template string, c *client.Client) (*bench.Report, error) {
				o.Template, o.Client, o.Progress = template, c, a.benchProgress
				return bench.Boot(cmd.Context(), o)
			})
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&o.QEMU, "qemu", "qemu-system-x86_64", "program whose bare start is the unit")
	flags.StringVar(&o.Size, "size", kiln.DefaultSizeName, "VM size")
	flags.StringVar(&o.Large, "large", "performance-1x", "VM size to compare it with, which has 4 GiB with --own")
	flags.IntVar(&o.Rounds, "rounds", 100, "how often")
	flags.IntVar(&o.ColdEvery, "cold-every", 20, "boot cold every so many rounds; 0 means never")
	return cmd
}
