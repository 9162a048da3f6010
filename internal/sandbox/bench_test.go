package sandbox

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/kilnvm/kiln"
)

// BenchmarkMemory measures how much memory five clones of one template share, and prints a
// table. `kiln bench boot` measures how fast they start.
func BenchmarkMemory(b *testing.B) {
	h := newVMHost(b, nil)
	for b.Loop() {
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
		fmt.Fprintf(w, "\n| clone\t| PSS MiB\t| RSS MiB\t| private MiB\t|\n|---\t|---\t|---\t|---\t|\n")
		for i, u := range h.measureMemory(b, 5) {
			fmt.Fprintf(w, "| %d\t| %.1f\t| %.1f\t| %.1f\t|\n", i+1, mib(u.pss), mib(u.rss), mib(u.private))
		}
		w.Flush()
	}
}

// usage is the memory of one clone's VMM in KiB.
type usage struct{ pss, rss, private int }

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

func mib(kib int) float64 { return float64(kib) / 1024 }
