package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
)

// egressFlags say what a sandbox may reach.
type egressFlags struct {
	mode                 string
	allow, deny, domains []string
	ports                []int
}

// add adds the flags, their names beginning with prefix.
func (f *egressFlags) add(cmd *cobra.Command, prefix string) {
	flags := cmd.Flags()
	flags.StringVar(&f.mode, prefix+"mode", "", "allow_all or deny_all")
	flags.StringArrayVar(&f.allow, prefix+"allow-cidr", nil, "allowed IPv4 range; implies deny_all (repeatable)")
	flags.StringArrayVar(&f.deny, prefix+"deny-cidr", nil, "denied IPv4 range, wins over allowed ones (repeatable)")
	flags.IntSliceVar(&f.ports, prefix+"allow-port", nil, "TCP port to which allowed ranges are restricted (repeatable)")
	flags.StringArrayVar(&f.domains, prefix+"allow-domain", nil, "allowed name, or *.name for all below it; implies deny_all (repeatable)")
}

// change returns what the flags ask for, or nil when none was given.
func (f *egressFlags) change() (*api.EgressChange, error) {
	c := &api.EgressChange{
		Mode: kiln.EgressMode(f.mode), AllowCIDRs: f.allow, DenyCIDRs: f.deny, AllowPorts: f.ports, AllowDomains: f.domains,
	}
	if c.Policy().IsZero() {
		return nil, nil
	}
	if err := c.Policy().Validate(); err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

func (a *app) sandboxEgress() *cobra.Command {
	cmd := &cobra.Command{Use: "egress", Short: "Show or change what a sandbox may reach"}
	cmd.AddCommand(a.egressShow(), a.egressSet())
	return cmd
}

func (a *app) egressShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show what a sandbox may reach", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			p, err := c.Egress(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.printEgress(p)
		}),
	}
}

func (a *app) egressSet() *cobra.Command {
	var flags egressFlags
	cmd := &cobra.Command{
		Use: "set ID", Short: "Change what a running sandbox may reach; allowed connections go on, others are cut",
		Long: "Change what a running sandbox may reach. Connections that stay allowed go on, others are cut.\n\n" +
			"What is not given is as the template and the server have it: without any flag the sandbox\nreturns to its template's policy.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := flags.change()
			if err != nil {
				return err
			}
			if change == nil {
				change = &api.EgressChange{}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			p, err := c.SetEgress(cmd.Context(), args[0], *change)
			if err != nil {
				return err
			}
			return a.printEgress(p)
		},
	}
	flags.add(cmd, "")
	return cmd
}

func (a *app) printEgress(p *api.Egress) error {
	if a.json() {
		return a.printJSON(p)
	}
	var ports []string
	for _, port := range p.AllowPorts {
		ports = append(ports, strconv.Itoa(port))
	}
	rows := [][]string{{"mode", string(p.Mode)}}
	for _, r := range []struct {
		name    string
		entries []string
	}{{"allow", p.AllowCIDRs}, {"ports", ports}, {"domains", p.AllowDomains}, {"deny", p.DenyCIDRs}} {
		if len(r.entries) > 0 {
			rows = append(rows, []string{r.name, strings.Join(r.entries, " ")})
		}
	}
	return table(a.stdout, rows)
}

func (a *app) sandboxDenials() *cobra.Command {
	return &cobra.Command{
		Use: "denials ID", Short: "List what a living sandbox was not allowed to reach, the latest first", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			list, err := c.Denials(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			return printDenials(a.stdout, list)
		}),
	}
}

func printDenials(w io.Writer, list []kiln.Denial) error {
	rows := [][]string{{"LAST", "PROTOCOL", "DESTINATION", "PORT", "ATTEMPTS", "REASON"}}
	for _, d := range list {
		port := ""
		if d.Port > 0 {
			port = strconv.Itoa(d.Port)
		}
		rows = append(rows, []string{
			d.LastAt.Local().Format(time.DateTime), d.Protocol, d.Destination, port, strconv.FormatUint(d.Attempts, 10), d.Reason,
		})
	}
	return table(w, rows)
}

func (a *app) sandboxNetwork() *cobra.Command {
	return &cobra.Command{
		Use: "network ID", Short: "Show what a sandbox has sent and received", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			use, err := c.NetworkUse(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(use)
			}
			return table(a.stdout, [][]string{
				{"sent", fmt.Sprintf("%d bytes", use.SentBytes)}, {"received", fmt.Sprintf("%d bytes", use.ReceivedBytes)},
				{"refused", fmt.Sprintf("%d packets, %d names", use.RefusedPackets, use.RefusedNames)},
				{"dropped", fmt.Sprintf("%d frames that were not IPv4 from its address", use.DroppedFrames)},
			})
		}),
	}
}
