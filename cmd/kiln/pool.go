package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln/internal/client"
)

func (a *app) poolCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "pool", Short: "Warm slots: paused clones that wait to be claimed"}
	cmd.AddCommand(a.poolList(), a.poolSet())
	return cmd
}

func (a *app) poolList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the warm slots by template, version and size", Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.WarmSlots(cmd.Context())
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			rows := [][]string{{"TEMPLATE", "VERSION", "SIZE", "READY", "TARGET", "SET", "DEMAND", "HITS", "MISSES", "SPAWNED", "PROBLEM"}}
			for _, s := range list {
				rows = append(rows, []string{
					s.Template, fmt.Sprint(s.Version), s.Size, fmt.Sprint(s.Ready), fmt.Sprint(s.Target()), fmt.Sprint(s.Set),
					fmt.Sprint(s.Demand), fmt.Sprint(s.Hits), fmt.Sprint(s.Misses), fmt.Sprint(s.Spawned), s.Error,
				})
			}
			return table(a.stdout, rows)
		}),
	}
}

func (a *app) poolSet() *cobra.Command {
	var size string
	var slots int
	cmd := &cobra.Command{
		Use: "set TEMPLATE --slots N", Short: "Keep N warm slots of a template's promoted version", Args: cobra.ExactArgs(1),
		Long: `Keep N warm slots of a template's promoted version, whatever the demand. They are made in
the background; ` + "`kiln pool list`" + ` shows how far that is. 0 keeps only what recent requests call for.`,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			t, err := c.SetWarmSlots(cmd.Context(), args[0], size, slots)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(t)
			}
			fmt.Fprintf(a.stdout, "%s %s: %d slots\n", args[0], t.Size, t.Slots)
			return nil
		}),
	}
	cmd.Flags().StringVar(&size, "size", "", "VM size (default the template's)")
	cmd.Flags().IntVar(&slots, "slots", 0, "how many")
	_ = cmd.MarkFlagRequired("slots") // it is defined above
	return cmd
}
