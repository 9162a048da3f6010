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

func (a *app) templatesCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "templates", Aliases: []string{"template"}, Short: "Build and manage templates"}
	cmd.AddCommand(
		a.templatesCreate(), a.templatesBuild(), a.templatesRebuild(), a.templatesList(), a.templatesShow(), a.templatesLogs(),
		a.templatesDiff(), a.templatesCancel(), a.templatesDelete(), a.templatesSmoke(),
		a.templatesVersions(), a.templatesTag(), a.templatesUntag(), a.templatesTags(), a.templatesRollback(),
		a.templatesCapture(), a.templatesUpdateQuota(),
	)
	return cmd
}

// shownVersion is the promoted version or, before the first success, the newest.
func shownVersion(t api.Template) int {
	if t.Version > 0 {
		return t.Version
	}
	return t.Latest.Version
}

func (a *app) templatesShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME[@N]", Short: "Show one template, its versions and where the time of its newest build went", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			t, err := c.GetTemplate(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(t)
			}
			return a.printTemplate(t)
		}),
	}
}

func (a *app) printTemplate(t *api.TemplateDetail) error {
	rows := [][]string{
		{"name", t.Name}, {"id", t.ID}, {"status", string(t.Status)}, {"version", strconv.Itoa(t.Version)}, {"built-in", yesNo(t.BuiltIn)},
	}
	if t.Pinned > 0 {
		rows = append(rows, []string{"shown version", strconv.Itoa(t.Pinned)})
	}
	var shown *kiln.Version
	minSize := ""
	for _, v := range t.Versions {
		if t.Pinned > 0 || v.Number == shownVersion(t.Template) {
			shown, minSize = v, v.Metadata.MinSize
		}
	}
	for _, row := range [][]string{
		{"description", t.Description}, {"author", t.Author}, {"icon", t.Icon}, {"tags", strings.Join(t.Tags, ", ")},
		{"base image", t.Base}, {"default size", t.DefaultSize}, {"smallest size", minSize},
	} {
		if row[1] != "" {
			rows = append(rows, row)
		}
	}
	if t.Quota != nil {
		rows = append(rows, []string{"quota", quotaText(*t.Quota)})
	}
	if shown != nil {
		rows = append(rows, policyRows(shown)...)
	}
	if t.SizeBytes > 0 {
		rows = append(rows, []string{"root filesystem", mib(t.SizeBytes) + "  " + t.RootfsPath})
	}
	if err := table(a.stdout, rows); err != nil {
		return err
	}
	rows = [][]string{{"VERSION", "STATUS", "BUILD", "CREATED", "TOOK"}}
	for _, v := range t.Versions {
		took := ""
		if !v.EndedAt.IsZero() && !v.StartedAt.IsZero() {
			took = seconds(v.EndedAt.Sub(v.StartedAt))
		}
		rows = append(rows, []string{strconv.Itoa(v.Number), string(v.Status), v.BuildID, v.CreatedAt.Local().Format(time.DateTime), took})
	}
	fmt.Fprintln(a.stdout)
	if err := table(a.stdout, rows); err != nil {
		return err
	}
	version, stages, failure := t.Latest.Version, t.Latest.Stages, t.BuildError
	if t.Pinned > 0 {
		version, stages, failure = shown.Number, shown.Stages, shown.BuildError
	}
	if len(stages) > 0 {
		fmt.Fprintf(a.stdout, "\nstages of version %d:\n", version)
		if err := stageTable(a.stdout, stages); err != nil {
			return err
		}
	}
	if failure != nil {
		fmt.Fprintln(a.stdout)
		printBuildError(a.stdout, failure)
	}
	return nil
}

func (a *app) templatesDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Delete custom templates; running sandboxes are not touched", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, name := range args {
				if err := c.DeleteTemplate(cmd.Context(), name); err != nil {
					return err
				}
				fmt.Fprintf(a.progress(), "deleted %s\n", name)
			}
			return nil
		}),
	}
}

func (a *app) templatesCancel() *cobra.Command {
	return &cobra.Command{
		Use: "cancel NAME[@N]|BUILD", Short: "Stop the newest build of a template that has not ended, or that of a version", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			b, err := findBuild(cmd.Context(), c, args[0], func(v *kiln.Version) bool { return !v.Status.Terminal() })
			if err != nil {
				return err
			}
			if err := c.CancelBuild(cmd.Context(), b.ID); err != nil {
				return err
			}
			fmt.Fprintf(a.progress(), "cancelled the build of %s version %d\n", b.Name, b.Version)
			return nil
		}),
	}
}

// findBuild returns the build with that ID, or of the template the one of the pinned version,
// else the newest one that is wanted, else the newest.
func findBuild(ctx context.Context, c *client.Client, ref string, wanted func(*kiln.Version) bool) (*api.Build, error) {
	t, err := c.GetTemplate(ctx, ref)
	if err == nil {
		for _, v := range t.Versions {
			if t.Pinned > 0 || wanted(v) {
				return c.GetBuild(ctx, v.BuildID)
			}
		}
		return &t.Latest, nil
	}
	if kiln.CodeOf(err) != kiln.CodeNotFound {
		return nil, err
	}
	b, buildErr := c.GetBuild(ctx, ref)
	if kiln.CodeOf(buildErr) == kiln.CodeNotFound {
		return nil, err // most people name templates
	}
	return b, buildErr
}

func (a *app) templatesLogs() *cobra.Command {
	var o client.LogOptions
	cmd := &cobra.Command{
		Use: "logs NAME[@N]|BUILD", Short: "Print the log of a template's newest build, or of that of a version", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			b, err := findBuild(cmd.Context(), c, args[0], func(*kiln.Version) bool { return true })
			if err != nil {
				return err
			}
			end, err := a.watch(cmd.Context(), c, a.progress(), b.ID, o)
			if err != nil || !o.Follow {
				return err
			}
			return buildFailure(end)
		}),
	}
	cmd.Flags().BoolVarP(&o.Follow, "follow", "f", false, "wait for more until the build has ended; fail if it fails")
	cmd.Flags().Int64Var(&o.Offset, "offset", 0, "continue after the record that gave this as next (see --progress json)")
	a.addProgress(cmd)
	return cmd
}
