package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/network/networktest"
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

// BenchmarkNetwork moves data between a program in a VM and a service outside, through
// everything that lies between. What limits it under emulation is the guest.
func BenchmarkNetwork(b *testing.B) {
	w := networktest.New(b)
	w.Bulk(b, networktest.PublicAddr)
	h := newNetworkHost(b, w.Pool(b, network.Settings{Prepared: 1}), nil)
	const size = 64 << 20
	many := kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr}}
	for i := range 9_999 {
		many.AllowCIDRs = append(many.AllowCIDRs, fmt.Sprintf("%d.%d.%d.0/25", 20+i>>16, i>>8&255, i&255))
	}
	s := h.create(b, hello())
	g, err := h.Guest(b.Context(), s.ID)
	if err != nil {
		b.Fatal(err)
	}
	if err := g.WriteFile(b.Context(), "/pump", bytes.NewReader(networktest.Pump(b))); err != nil {
		b.Fatal(err)
	}
	h.run(b, s.ID, "chmod +x /pump")
	for _, policy := range []struct {
		name string
		kiln.EgressPolicy
	}{{"allow_all", kiln.EgressPolicy{}}, {"10,000 ranges", many}} {
		for _, way := range []struct{ direction, port string }{{"up", networktest.DrainPort}, {"down", networktest.SourcePort}} {
			command := fmt.Sprintf("/pump %s %s:%s %d", way.direction, networktest.PublicAddr, way.port, size)
			b.Run(policy.name+", "+way.direction, func(b *testing.B) {
				if _, err := h.SetEgress(b.Context(), s.ID, policy.EgressPolicy); err != nil {
					b.Fatal(err)
				}
				b.SetBytes(size)
				for b.Loop() {
					if out := h.run(b, s.ID, command); out != fmt.Sprintln(size) {
						b.Fatalf("%q bytes passed", out)
					}
				}
			})
		}
	}
}
