package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
)

// wideOutput marks commands that know -o wide.
const wideOutput = "wide"

func (a *app) templatesList() *cobra.Command {
	var q api.TemplateQuery
	var status string
	var builtIn, own bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List built-in and own templates", Args: cobra.NoArgs,
		Annotations: map[string]string{wideOutput: ""},
		RunE: func(cmd *cobra.Command, _ []string) error {
			q.Status = kiln.VersionStatus(status)
			if builtIn != own {
				q.BuiltIn = &builtIn
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			list, err := allTemplates(cmd.Context(), c, q)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(list)
			}
			return table(a.stdout, templateRows(list, a.output == wideOutput))
		},
	}
	cmd.Flags().StringVar(&status, "status", "", "only pending, building, ready or failed ones")
	cmd.Flags().StringVar(&q.Prefix, "prefix", "", "only names that begin like this")
	cmd.Flags().StringVar(&q.Tag, "tag", "", "only those whose metadata has this tag")
	cmd.Flags().BoolVar(&builtIn, "built-in", false, "only built-in ones")
	cmd.Flags().BoolVar(&own, "own", false, "only those of the organisation")
	cmd.MarkFlagsMutuallyExclusive("built-in", "own")
	return cmd
}

// allTemplates reads page after page, so that no request takes long.
func allTemplates(ctx context.Context, c *client.Client, q api.TemplateQuery) ([]api.Template, error) {
	q.Limit = api.MaxPage
	list := []api.Template{}
	for {
		page, next, err := c.ListTemplatesPage(ctx, q)
		if err != nil {
			return nil, err
		}
		list = append(list, page...)
		if q.After = next; next == "" {
			return list, nil
		}
	}
}

func templateRows(list []api.Template, wide bool) [][]string {
	head := []string{"NAME", "STATUS", "VERSION", "BUILT-IN", "DESCRIPTION"}
	if wide {
		head = []string{"NAME", "STATUS", "VERSION", "BUILT-IN", "ID", "LATEST", "SIZE", "BASE", "UPDATED", "TAGS", "DESCRIPTION"}
	}
	rows := [][]string{head}
	for _, t := range list {
		row := []string{t.Name, string(t.Status), strconv.Itoa(shownVersion(t)), yesNo(t.BuiltIn)}
		if wide {
			row = append(row, t.ID, fmt.Sprintf("%d %s", t.Latest.Version, t.Latest.Status.Version()), orDash(t.DefaultSize), orDash(t.Base),
				t.UpdatedAt.Local().Format(time.DateTime), orDash(strings.Join(t.Tags, ",")))
		}
		rows = append(rows, append(row, t.Description))
	}
	return rows
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) templatesVersions() *cobra.Command {
	return &cobra.Command{
		Use: "versions NAME", Short: "List the versions of a template, newest first", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			list := []api.TemplateVersion{}
			for before := 0; ; {
				page, err := c.ListVersions(cmd.Context(), args[0], before, api.MaxPage)
				if err != nil {
					return err
				}
				list = append(list, page...)
				if len(page) < api.MaxPage {
					break
				}
				before = page[len(page)-1].Number
			}
			if a.json() {
				return a.printJSON(list)
			}
			rows := [][]string{{"VERSION", "STATUS", "CURRENT", "TAGS", "CREATED", "FILES", "BUILD"}}
			for _, v := range list {
				files := "-"
				switch {
				case !v.CollectedAt.IsZero():
					files = "removed"
				case v.Rootfs.Size > 0:
					files = mib(v.Rootfs.Size)
				}
				rows = append(rows, []string{strconv.Itoa(v.Number), string(v.Status), yesNo(v.Current), orDash(strings.Join(v.Tags, ",")),
					v.CreatedAt.Local().Format(time.DateTime), files, v.BuildID})
			}
			return table(a.stdout, rows)
		}),
	}
}

func (a *app) templatesTag() *cobra.Command {
	return &cobra.Command{
		Use: "tag NAME[@N] TAG", Short: "Give a version a name, or move it there (default: the current version)", Args: cobra.ExactArgs(2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			tag, err := c.SetTag(cmd.Context(), args[0], args[1], 0)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(tag)
			}
			fmt.Fprintf(a.stdout, "%s is version %d\n", args[1], tag.Version)
			return nil
		}),
	}
}

func (a *app) templatesUntag() *cobra.Command {
	return &cobra.Command{
		Use: "untag NAME TAG...", Short: "Remove tags; the versions stay while anything else refers to them", Args: cobra.MinimumNArgs(2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, tag := range args[1:] {
				if err := c.RemoveTag(cmd.Context(), args[0], tag); err != nil {
					return err
				}
				fmt.Fprintf(a.progress(), "removed %s\n", tag)
			}
			return nil
		}),
	}
}

func (a *app) templatesTags() *cobra.Command {
	return &cobra.Command{
		Use: "tags NAME", Short: "List the tags of a template", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			tags, err := c.ListTags(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(tags)
			}
			rows := [][]string{{"TAG", "VERSION", "SINCE"}}
			for _, t := range tags {
				rows = append(rows, []string{t.Name, strconv.Itoa(t.Version), t.CreatedAt.Local().Format(time.DateTime)})
			}
			return table(a.stdout, rows)
		}),
	}
}

func (a *app) templatesRollback() *cobra.Command {
	var to int
	cmd := &cobra.Command{
		Use: "rollback NAME", Short: "Start sandboxes from an older version again; running ones keep theirs", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			res, err := c.Rollback(cmd.Context(), args[0], to)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(res)
			}
			fmt.Fprintf(a.stdout, "%s: version %d is current, it was version %d\n", res.Name, res.To, res.From)
			return nil
		}),
	}
	cmd.Flags().IntVar(&to, "to", 0, "version to make current (default: the newest ready one before the current)")
	return cmd
}
