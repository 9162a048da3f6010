// Boot measures how fast sandboxes start on a running server, beside the start of a bare
// QEMU in the same run: restores of one template and `qemu-system-x86_64 -M none` take
// turns, so that what else the machine does concerns both. It then starts clones that
// stay, and reports how much memory each really costs.
//
// Times of sandboxes are the server's boot_ms: from the request to the first successful
// answer of the daemon in the guest.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/api"
	"github.com/kilnvm/kiln/internal/client"
)

func main() {
	server := flag.String("server", "", "URL of the server")
	token := flag.String("token", "", "its token")
	template := flag.String("t", "hello", "template to start")
	rounds := flag.Int("n", 100, "how many restores")
	coldSize := flag.String("cold-size", "performance-1x", "size without a snapshot yet, for the cold boot")
	flag.Parse()
	if err := run(context.Background(), *server, *token, *template, *rounds, *coldSize); err != nil {
		fmt.Fprintln(os.Stderr, "boot:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, server, token, template string, rounds int, coldSize string) error {
	c, err := client.New(client.Options{Server: server, Token: token})
	if err != nil {
		return err
	}
	var restores, bare []time.Duration
	for i := range rounds + 1 {
		sb, err := c.CreateSandbox(ctx, api.CreateSandboxRequest{Template: template})
		if err != nil {
			return err
		}
		if err := c.DestroySandbox(ctx, sb.ID); err != nil {
			return err
		}
		if sb.BootMode != kiln.BootSnapshot {
			return fmt.Errorf("sandbox %s started %s, not from a snapshot", sb.ID, sb.BootMode)
		}
		start, err := bareStart(ctx)
		if err != nil {
			return err
		}
		if i > 0 { // the first round warms the page cache
			restores = append(restores, time.Duration(sb.BootMS)*time.Millisecond)
			bare = append(bare, start)
		}
	}
	cold, err := c.CreateSandbox(ctx, api.CreateSandboxRequest{Template: template, Size: coldSize})
	if err != nil {
		return err
	}
	if err := c.DestroySandbox(ctx, cold.ID); err != nil {
		return err
	}
	report(restores, bare, cold)
	return clones(ctx, c, template)
}

func report(restores, bare []time.Duration, cold *api.Sandbox) {
	r50, r99, b50 := percentile(restores, 50), percentile(restores, 99), percentile(bare, 50)
	fmt.Printf("%-44s %8d ms\n", "qemu -M none, start to QMP, p50", b50.Milliseconds())
	fmt.Printf("%-44s %8d ms\n", "restore, request to daemon, p50", r50.Milliseconds())
	fmt.Printf("%-44s %8d ms\n", "restore, request to daemon, p99", r99.Milliseconds())
	fmt.Printf("%-44s %8.2f\n", "restore p50 / qemu -M none p50", ratio(r50, b50))
	fmt.Printf("%-44s %8.2f\n", "restore p99 / p50", ratio(r99, r50))
	if cold.BootMode == kiln.BootCold {
		boot := time.Duration(cold.BootMS) * time.Millisecond
		fmt.Printf("%-44s %8d ms\n", "cold boot, request to daemon", boot.Milliseconds())
		fmt.Printf("%-44s %8.1f\n", "cold boot / restore p50", ratio(boot, r50))
	}
}

// bareStart runs QEMU without a machine until it greets on QMP.
func bareStart(ctx context.Context) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-qmp", "stdio")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	_, readErr := bufio.NewReader(out).ReadString('\n')
	took := time.Since(begin)
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	return took, readErr
}

// clones starts five clones and prints the memory of each VMM: resident, and its
// proportional share of what it has in common with others.
func clones(ctx context.Context, c *client.Client, template string) (err error) {
	fmt.Printf("\n%-24s %10s %10s\n", "five clones at once", "RSS MiB", "PSS MiB")
	var ids []string
	defer func() {
		for _, id := range ids {
			err = errors.Join(err, c.DestroySandbox(ctx, id))
		}
	}()
	for range 5 {
		sb, err := c.CreateSandbox(ctx, api.CreateSandboxRequest{Template: template})
		if err != nil {
			return err
		}
		ids = append(ids, sb.ID)
	}
	for _, id := range ids {
		memory, err := memoryOf(id)
		if err != nil {
			return err
		}
		fmt.Printf("%-24s %10.1f %10.1f\n", id, memory["Rss"], memory["Pss"])
	}
	return nil
}

// memoryOf returns the sums of smaps_rollup, in MiB, of the VMM of a sandbox.
func memoryOf(id string) (map[string]float64, error) {
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, path := range processes {
		cmdline, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(cmdline), "qemu-system") || !strings.Contains(string(cmdline), id) {
			continue // ended meanwhile, or another program
		}
		text, err := os.ReadFile(filepath.Join(filepath.Dir(path), "smaps_rollup"))
		if err != nil {
			return nil, err
		}
		sums := map[string]float64{}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) == 3 && fields[2] == "kB" {
				kib, err := strconv.ParseFloat(fields[1], 64)
				if err != nil {
					return nil, err
				}
				sums[strings.TrimSuffix(fields[0], ":")] = kib / 1024
			}
		}
		return sums, nil
	}
	return nil, fmt.Errorf("no VMM of sandbox %s runs here", id)
}

func percentile(times []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }
