package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
)

func (a *app) orgsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "orgs", Aliases: []string{"org"}, Short: "Manage organisations, which do not see each other"}
	create := &cobra.Command{
		Use: "create NAME", Short: "Create an organisation", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			o, err := c.CreateOrg(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.printOrgs(*o)
		}),
	}
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List organisations", Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.ListOrgs(cmd.Context())
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			return a.printOrgs(list...)
		}),
	}
	remove := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Delete organisations that have no templates and sandboxes, and their tokens", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, name := range args {
				if err := c.DeleteOrg(cmd.Context(), name); err != nil {
					return err
				}
				fmt.Fprintf(a.progress(), "deleted %s\n", name)
			}
			return nil
		}),
	}
	cmd.AddCommand(create, list, remove)
	return cmd
}

func (a *app) printOrgs(list ...kiln.Org) error {
	if a.json() {
		return a.printJSON(list[0])
	}
	rows := [][]string{{"NAME", "ID", "CREATED"}}
	for _, o := range list {
		created := "-"
		if !o.CreatedAt.IsZero() {
			created = o.CreatedAt.Local().Format(time.DateTime)
		}
		rows = append(rows, []string{o.Name, o.ID, created})
	}
	return table(a.stdout, rows)
}

func (a *app) tokensCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "tokens", Aliases: []string{"token"}, Short: "Manage access tokens"}
	cmd.AddCommand(a.tokensCreate(), a.tokensList(), a.tokensRevoke())
	return cmd
}

const orgUsage = "organisation by name or ID (default: the token's own)"

// maxTokenLife is the longest that the server gives.
const maxTokenLife = 10 * 365 * 24 * time.Hour

func (a *app) tokensCreate() *cobra.Command {
	var org string
	var scopes []string
	var life time.Duration
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a token and print its secret, this once", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("expires") && (life < time.Second || life > maxTokenLife) {
				return usageError{kiln.Errorf(kiln.CodeInvalid, "--expires: a life of %s", life).
					WithHint("it takes 1s to 87600h (ten years), such as 720h; without it a token lives for ever")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			req := api.CreateTokenRequest{Name: args[0], Org: org, TTLSeconds: int64(life / time.Second)}
			for _, s := range scopes {
				req.Scopes = append(req.Scopes, kiln.Scope(s))
			}
			t, err := c.CreateToken(cmd.Context(), req)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(t)
			}
			fmt.Fprintln(a.stdout, t.Secret)
			fmt.Fprintln(a.stderr, "The server keeps only its hash: it cannot be shown again.")
			return nil
		},
	}
	cmd.Flags().StringVar(&org, "org", "", orgUsage)
	cmd.Flags().StringSliceVar(&scopes, "scope", nil, "what it allows: templates:read, templates:write, sandboxes:read, sandboxes:write, admin (repeatable)")
	cmd.Flags().DurationVar(&life, "expires", 0, "life of the token, such as 720h (default: for ever)")
	return cmd
}

func (a *app) tokensList() *cobra.Command {
	var org string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List tokens, without their secrets", Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.ListTokens(cmd.Context(), org)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			rows := [][]string{{"NAME", "ID", "SCOPES", "CREATED", "EXPIRES"}}
			for _, t := range list {
				expires := expiry(t.ExpiresAt)
				if t.Expired(time.Now()) {
					expires += " (expired)"
				}
				rows = append(rows, []string{t.Name, t.ID, scopeList(t.Scopes), t.CreatedAt.Local().Format(time.DateTime), expires})
			}
			return table(a.stdout, rows)
		}),
	}
	cmd.Flags().StringVar(&org, "org", "", orgUsage)
	return cmd
}

func scopeList(scopes []kiln.Scope) string {
	var names []string
	for _, s := range scopes {
		names = append(names, string(s))
	}
	return strings.Join(names, ",")
}

func expiry(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format(time.DateTime)
}

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show whose the token is, what it allows and when it expires", Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			who, err := c.Whoami(cmd.Context())
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(who)
			}
			return table(a.stdout, [][]string{
				{"ORGANISATION", "TOKEN", "ID", "SCOPES", "EXPIRES"},
				{who.Org, who.TokenName, who.TokenID, scopeList(who.Scopes), expiry(who.ExpiresAt)},
			})
		}),
	}
}

func (a *app) tokensRevoke() *cobra.Command {
	var org string
	cmd := &cobra.Command{
		Use: "revoke NAME|ID...", Aliases: []string{"rm"}, Short: "Make tokens void at once", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, token := range args {
				if err := c.RevokeToken(cmd.Context(), org, token); err != nil {
					return err
				}
				fmt.Fprintf(a.progress(), "revoked %s\n", token)
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&org, "org", "", orgUsage)
	return cmd
}

func (a *app) auditCommand() *cobra.Command {
	var q client.AuditQuery
	cmd := &cobra.Command{
		Use: "audit", Short: "List who changed what, newest first", Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.Audit(cmd.Context(), q)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			rows := [][]string{{"TIME", "TOKEN", "FROM", "ACTION", "TARGET", "DETAIL"}}
			for _, e := range list {
				var detail []string
				for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
					detail = append(detail, k+"="+e.Detail[k])
				}
				rows = append(rows, []string{e.Time.Local().Format(time.DateTime), e.TokenName, e.Address, e.Action, e.Target, strings.Join(detail, " ")})
			}
			return table(a.stdout, rows)
		}),
	}
	cmd.Flags().StringVar(&q.Org, "org", "", orgUsage)
	cmd.Flags().BoolVar(&q.All, "all", false, "of every organisation (the server's operator only)")
	cmd.Flags().StringVar(&q.Before, "before", "", "only events older than the one with this ID, for the next page")
	cmd.Flags().IntVar(&q.Limit, "limit", 100, "events at most, up to 500")
	return cmd
}

func (a *app) gcCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use: "gc", Short: "Remove versions, snapshots and files that nothing refers to", Args: cobra.NoArgs,
		Long: `Remove versions, snapshots and files that nothing refers to. A version stays while it is
current or the newest, has a tag or a sandbox, or is one of the newest ready ones ([gc]
keep in the configuration). The server does this by itself from time to time.`,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			report, err := c.CollectGarbage(cmd.Context(), dryRun)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(report)
			}
			rows := [][]string{{"KIND", "NAME", "FREES", "WHY"}}
			for _, i := range report.Items {
				frees := "-"
				if i.Bytes > 0 {
					frees = mib(i.Bytes)
				}
				rows = append(rows, []string{i.Kind, i.Name, frees, i.Why})
			}
			if len(report.Items) > 0 {
				if err := table(a.stdout, rows); err != nil {
					return err
				}
			}
			what := "removed"
			if dryRun {
				what = "would be removed"
			}
			fmt.Fprintf(a.stdout, "%d items, %s %s\n", len(report.Items), mib(report.Bytes), what)
			return nil
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be removed")
	return cmd
}
