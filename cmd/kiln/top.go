package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
)

func (a *app) sandboxLogs() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "logs ID", Short: "Print what the guest wrote on its console", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			log, err := c.SandboxLogs(cmd.Context(), args[0], follow)
			if err != nil {
				return err
			}
			defer log.Close()
			if follow {
				return printLineEvents(a.stdout, log)
			}
			_, err = io.Copy(a.stdout, log)
			return err
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the sandbox ends")
	return cmd
}

// printLineEvents prints the lines that server-sent events carry.
func printLineEvents(w io.Writer, stream io.Reader) error {
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, 8<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var event struct{ Line *string }
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			return fmt.Errorf("logs: %w", err)
		}
		if event.Line == nil {
			continue
		}
		if _, err := fmt.Fprintln(w, *event.Line); err != nil {
			return err
		}
	}
	return lines.Err()
}

// usageRow is one line of top.
type usageRow struct {
	api.SandboxUsage
	CPUPercent float64 `json:"cpu_percent"` // of one processor
}

// clearScreen moves to the upper left corner and clears what follows (ECMA-48).
const clearScreen = "\x1b[H\x1b[J"

func (a *app) topCommand() *cobra.Command {
	var times int
	var interval time.Duration
	cmd := &cobra.Command{
		Use: "top", Short: "Show what living sandboxes take from the host, until interrupted", Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return a.top(cmd.Context(), c, times, max(interval, 100*time.Millisecond))
		}),
	}
	cmd.Flags().IntVarP(&times, "times", "n", 0, "show it so often and end (default until interrupted)")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time between two looks, over which CPU use is measured")
	return cmd
}

func (a *app) top(ctx context.Context, c *client.Client, times int, interval time.Duration) error {
	before, at := map[string]int64{}, time.Now()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for shown := -1; times == 0 || shown < times; shown++ {
		list, err := c.Usage(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		if shown >= 0 { // the first look has nothing to compare with
			if err := a.showUsage(usageRows(list, before, now.Sub(at)), times != 1); err != nil {
				return err
			}
			if shown+1 == times {
				return nil
			}
		}
		at = now
		clear(before)
		for _, u := range list {
			before[u.ID] = u.CPUMS
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

func usageRows(list []api.SandboxUsage, before map[string]int64, over time.Duration) []usageRow {
	rows := make([]usageRow, 0, len(list))
	for _, u := range list {
		row := usageRow{SandboxUsage: u}
		if old, ok := before[u.ID]; ok && u.CPUMS >= old { // else it is new, or woke meanwhile
			row.CPUPercent = 100 * float64(u.CPUMS-old) / float64(max(1, over.Milliseconds()))
		}
		rows = append(rows, row)
	}
	return rows
}

func (a *app) showUsage(rows []usageRow, repeated bool) error {
	if a.json() {
		return a.printJSON(rows)
	}
	if repeated && isTerminal(a.stdout) {
		if _, err := io.WriteString(a.stdout, clearScreen); err != nil {
			return err
		}
	}
	lines := [][]string{{"SANDBOX", "TEMPLATE", "SIZE", "STATUS", "CPU", "MEMORY", "UPTIME"}}
	for _, r := range rows {
		lines = append(lines, []string{
			r.ID, fmt.Sprintf("%s@%d", r.Template, r.Version), r.Size, string(r.Status), fmt.Sprintf("%.1f%%", r.CPUPercent),
			fmt.Sprintf("%.1f MiB", float64(r.MemoryBytes)/(1<<20)), time.Since(r.CreatedAt).Round(time.Second).String(),
		})
	}
	return table(a.stdout, lines)
}
