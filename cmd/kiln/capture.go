package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
)

func (a *app) templatesCapture() *cobra.Command {
	var req api.CaptureRequest
	var detach bool
	cmd := &cobra.Command{
		Use:   "capture NAME --sandbox ID",
		Short: "Make a template of the file system of a running sandbox",
		Long: `Make a template, or its next version, of the file system of a running sandbox. The image
configuration and metadata are those of the sandbox's template. The sandbox goes on, and
a paused one is woken; what makes it this sandbox (machine ID, SSH host keys, host name)
is left out.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.Sandbox == "" {
				return usageError{kiln.Errorf(kiln.CodeInvalid, "no sandbox given").WithHint("use --sandbox ID; 'kiln sandbox list' shows them")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			req.Name, req.Replace = args[0], true
			b, err := c.CaptureTemplate(cmd.Context(), req)
			if err != nil {
				return err
			}
			return a.queued(cmd.Context(), c, b, !detach)
		},
	}
	cmd.Flags().StringVar(&req.Sandbox, "sandbox", "", "ID of the sandbox (required)")
	cmd.Flags().StringVar(&req.Description, "description", "", "what the template is (default that of the sandbox's template)")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "return when the file system has been read")
	a.addProgress(cmd)
	return cmd
}

func (a *app) templatesUpdateQuota() *cobra.Command {
	var disk int
	var f limitFlags
	cmd := &cobra.Command{
		Use:   "update-quota NAME",
		Short: "Change disk size and disk traffic of a template's new sandboxes, without a build",
		Long: `Change disk size and disk traffic of a template's new sandboxes, without a build. What no
flag names stays as it is; 0 gives a value back to what the version says. Running sandboxes
keep what they have.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var req api.QuotaRequest
			changed := false
			for flag, field := range map[string]struct {
				value *int
				dst   **int
			}{
				"disk-size-mb": {&disk, &req.DiskMB}, "bandwidth-mbps": {&f.BandwidthMBps, &req.BandwidthMBps}, "ops-per-sec": {&f.OpsPerSec, &req.OpsPerSec},
				"burst-mbps": {&f.BurstMBps, &req.BurstMBps}, "burst-ops": {&f.BurstOps, &req.BurstOps},
			} {
				if cmd.Flags().Changed(flag) {
					*field.dst, changed = field.value, true
				}
			}
			if !changed {
				return usageError{kiln.Errorf(kiln.CodeInvalid, "nothing to change").WithHint("name at least one of the flags")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			q, err := c.UpdateQuota(cmd.Context(), args[0], req)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(q)
			}
			_, err = fmt.Fprintf(a.stdout, "%s: %s\n", args[0], quotaText(*q))
			return err
		},
	}
	cmd.Flags().IntVar(&disk, "disk-size-mb", 0, "writable disk of a sandbox in MiB")
	f.add(cmd.Flags())
	return cmd
}

func quotaText(q kiln.Quota) string {
	disk := "disk as built"
	if q.DiskMB > 0 {
		disk = "disk " + strconv.Itoa(q.DiskMB) + " MiB"
	}
	text := disk + ", " + limitsText(q.Limits)
	if q.Limits.Limited() && (q.Limits.BandwidthMBps == 0 || q.Limits.OpsPerSec == 0) {
		text += ", otherwise as built"
	}
	return text
}

func limitsText(l kiln.DiskLimits) string {
	var parts []string
	for _, f := range []struct {
		value int
		unit  string
	}{{l.BandwidthMBps, "MiB/s"}, {l.BurstMBps, "MiB/s in bursts"}, {l.OpsPerSec, "operations/s"}, {l.BurstOps, "operations/s in bursts"}} {
		if f.value > 0 {
			parts = append(parts, strconv.Itoa(f.value)+" "+f.unit)
		}
	}
	if parts == nil {
		return "no limit of its own on disk traffic"
	}
	return "at most " + strings.Join(parts, ", ")
}

// policyRows show what a version says about its source and its sandboxes.
func policyRows(v *kiln.Version) [][]string {
	var rows [][]string
	o := v.Options.Origin
	switch {
	case o.Git != nil:
		where := o.Git.URL
		if o.Git.Dir != "" {
			where += " (" + o.Git.Dir + ")"
		}
		rows = append(rows, []string{"repository", where}, []string{"commit", strings.TrimSpace(o.Git.Commit + " " + o.Git.Ref)})
	case o.Image != "":
		rows = append(rows, []string{"image", o.Image})
	case o.Capture != nil:
		rows = append(rows, []string{"captured from", fmt.Sprintf("sandbox %s of %s@%d", o.Capture.Sandbox, o.Capture.Template, o.Capture.Version)})
	}
	m := v.Metadata
	if !m.Egress.IsZero() {
		rows = append(rows, []string{"egress", m.Egress.String()})
	}
	if m.DiskMB > 0 {
		rows = append(rows, []string{"disk", strconv.Itoa(m.DiskMB) + " MiB"})
	}
	if m.Limits.Limited() {
		rows = append(rows, []string{"disk traffic", limitsText(m.Limits)})
	}
	for _, name := range slices.Sorted(maps.Keys(m.Env)) {
		rows = append(rows, []string{"env", name + "=" + m.Env[name]})
	}
	for _, row := range [][]string{{"init", m.Init}, {"start command", m.StartCmd}, {"ready command", m.ReadyCmd},
		{"post-restore", m.PostRestore}, {"smoke command", m.Smoke}} {
		if row[1] != "" {
			rows = append(rows, row)
		}
	}
	return rows
}
