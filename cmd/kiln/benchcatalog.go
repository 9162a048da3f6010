package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/cmd/kiln/server"
	"github.com/kilnvm/kiln/internal/bench"
)

func (a *app) benchCatalog() *cobra.Command {
	o := bench.CatalogOptions{Progress: a.benchProgress}
	var own bool
	var machine string
	cmd := &cobra.Command{
		Use: "catalog [NAME...]", Short: "Build every built-in template and measure it: docs/catalog.md",
		Long: `Build every built-in template, or those that are named, where they have not been built
before, run its smoke command in clones, and write docs/catalog.md to standard output. The
server must be on this machine, because its files are measured too. It fails if a template
does not build or does not pass its smoke command.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.SmokeRounds < 1 || o.Rounds < o.SmokeRounds {
				return usageError{kiln.Errorf(kiln.CodeInvalid, "--smoke-rounds must be at least 1 and --rounds not less than that")}
			}
			o.Templates = args
			return a.onBenchServer(cmd.Context(), own, func() (err error) {
				if o.Client, err = a.client(); err != nil {
					return err
				}
				dataDir := a.localDataDir()
				o.BlobPath = func(d kiln.Digest) string { return server.BlobPath(dataDir, d) }
				report, err := bench.Catalog(cmd.Context(), o)
				if a.json() {
					return errors.Join(a.printJSON(report), err)
				}
				return errors.Join(report.WriteDocument(a.stdout, machine), err)
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&own, "own", false, "measure a server of its own on a temporary data directory")
	flags.IntVar(&o.Rounds, "rounds", 100, "how many clones of each template")
	flags.IntVar(&o.SmokeRounds, "smoke-rounds", 10, "in how many of them its smoke command runs")
	flags.StringVar(&machine, "machine", fmt.Sprintf("a machine with %d cores", runtime.NumCPU()), "what to call this machine in the document")
	return cmd
}

// onBenchServer calls use with the server that the flags name or, if own, with one that
// lives as long as use takes.
func (a *app) onBenchServer(ctx context.Context, own bool, use func() error) (err error) {
	if !own {
		return use()
	}
	dir, err := os.MkdirTemp("/var/tmp", "kiln-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	stop, err := a.startBenchServer(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	return use()
}
