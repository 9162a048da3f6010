package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/kilnvm/kiln"
)

// BenchmarkStart measures how fast sandboxes start and how much memory they share, and
// prints a table. What is compared is measured in turns, so that a busy moment of the
// host meets all of it. Run it alone:
//
//	go test -run '^$' -bench Start -benchtime 1x ./internal/sandbox
//
// KILN_BENCH_ROUNDS is how often (100).
func BenchmarkStart(b *testing.B) {
	rounds := 100
	if s := os.Getenv("KILN_BENCH_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			b.Fatal(err)
		}
		rounds = n
	}
	h := newVMHost(b, nil)
	for b.Loop() {
		m := h.measureStarts(b, rounds)
		m.memory = h.measureMemory(b, 5)
		m.print(b)
	}
}

// measurements are durations sorted from quick to slow, and bytes.
type measurements struct {
	bare, restore, command, cold []time.Duration
	memory                       []usage
}

// usage is the memory of one clone's VMM in KiB.
type usage struct{ pss, rss, private int }

func (h *vmHost) measureStarts(b *testing.B, rounds int) measurements {
	var m measurements
	for i := range rounds {
		m.bare = append(m.bare, bareQEMU(b))
		restored, command := h.measureStart(b, kiln.BootSnapshot)
		m.restore, m.command = append(m.restore, restored), append(m.command, command)
		if i%20 == 0 {
			snapshots := h.store.snapshots
			h.store.snapshots = nil
			cold, _ := h.measureStart(b, kiln.BootCold)
			h.store.snapshots = snapshots
			m.cold = append(m.cold, cold)
		}
	}
	for _, d := range [][]time.Duration{m.bare, m.restore, m.command, m.cold} {
		slices.Sort(d)
	}
	return m
}

// bareQEMU measures what starting QEMU costs without any machine: from the start of the
// process to its greeting on QMP.
func bareQEMU(b *testing.B) time.Duration {
	cmd := exec.Command("qemu-system-x86_64", "-M", "none", "-nodefaults", "-nographic", "-qmp", "stdio")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, "QMP") {
		b.Fatalf("QMP says %q, error %v", line, err)
	}
	took := time.Since(begun)
	in.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return took
}

// measureStart returns how long a sandbox took from the request to the daemon's first
// answer, which after a restore is the one that gives it its identity, and to the end of
// its first command.
func (h *vmHost) measureStart(b *testing.B, want kiln.BootMode) (answer, command time.Duration) {
	begun := time.Now()
	s := h.create(b, hello())
	if s.BootMode != want {
		b.Fatalf("boot mode %s, want %s", s.BootMode, want)
	}
	h.run(b, s.ID, "echo")
	command = time.Since(begun)
	if err := h.Destroy(b.Context(), s.ID); err != nil {
		b.Fatal(err)
	}
	return s.BootTime, command
}

// measureMemory runs n clones at once, a command in each, and returns what they use.
func (h *vmHost) measureMemory(b *testing.B, n int) []usage {
	var list []*kiln.Sandbox
	for range n {
		s := h.create(b, hello())
		h.run(b, s.ID, "echo")
		list = append(list, s)
	}
	var all []usage
	for _, s := range list {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.Process.PID))
		if err != nil {
			b.Fatal(err)
		}
		kib := map[string]int{}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 3 && f[2] == "kB" {
				kib[strings.TrimSuffix(f[0], ":")], _ = strconv.Atoi(f[1])
			}
		}
		all = append(all, usage{pss: kib["Pss"], rss: kib["Rss"], private: kib["Private_Dirty"] + kib["Private_Clean"]})
	}
	for _, s := range list {
		if err := h.Destroy(b.Context(), s.ID); err != nil {
			b.Fatal(err)
		}
	}
	return all
}

func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

func (m measurements) print(b *testing.B) {
	base := percentile(m.bare, 50)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "\n| what\t| n\t| p50 ms\t| p99 ms\t| p99/p50\t| p50 / bare QEMU\t|\n|---\t|---\t|---\t|---\t|---\t|---\t|\n")
	for _, row := range []struct {
		name string
		d    []time.Duration
	}{
		{"bare QEMU, process start to QMP", m.bare},
		{"restore, request to hand-out with identity", m.restore},
		{"restore, request to end of first command", m.command},
		{"cold boot, request to daemon's first answer", m.cold},
	} {
		p50, p99 := percentile(row.d, 50), percentile(row.d, 99)
		fmt.Fprintf(w, "| %s\t| %d\t| %.1f\t| %.1f\t| %.2f\t| %.2f\t|\n", row.name, len(row.d), ms(p50), ms(p99),
			float64(p99)/float64(p50), float64(p50)/float64(base))
	}
	w.Flush()
	fmt.Printf("\ncold boot / restore: %.1f\n", float64(percentile(m.cold, 50))/float64(percentile(m.restore, 50)))
	fmt.Fprintf(w, "\n| clone\t| PSS MiB\t| RSS MiB\t| private MiB\t|\n|---\t|---\t|---\t|---\t|\n")
	for i, u := range m.memory {
		fmt.Fprintf(w, "| %d\t| %.1f\t| %.1f\t| %.1f\t|\n", i+1, mib(u.pss), mib(u.rss), mib(u.private))
	}
	w.Flush()
	fmt.Println()
	b.ReportMetric(ms(percentile(m.restore, 50)), "restore-p50-ms")
	b.ReportMetric(float64(percentile(m.restore, 50))/float64(base), "restore/bare")
	b.ReportMetric(float64(percentile(m.restore, 99))/float64(percentile(m.restore, 50)), "p99/p50")
	b.ReportMetric(float64(percentile(m.cold, 50))/float64(percentile(m.restore, 50)), "cold/restore")
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func mib(kib int) float64        { return float64(kib) / 1024 }
