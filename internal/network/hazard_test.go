package network_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/hostcmd"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/network/networktest"
)

// Every technique against the rules alone, with a guest that is a namespace; package sandbox
// repeats it in VMs, on every start path.
func TestHazard40Techniques(t *testing.T) {
	w := networktest.New(t)
	for _, port := range []string{"53", "80", "443"} {
		w.TCP(t, "0.0.0.0:"+port)
	}
	zone := w.DNS(t, 60)
	pool := w.Pool(t, network.Settings{Prepared: 2, Open: []string{networktest.PrivateAddr}})
	slot, sibling := acquire(t, pool, "a", kiln.EgressPolicy{}), acquire(t, pool, "b", kiln.EgressPolicy{})
	g := w.Guest(t, slot.Config())
	program := filepath.Join(t.TempDir(), "prober")
	if err := os.WriteFile(program, networktest.Prober(t), 0o700); err != nil {
		t.Fatal(err)
	}
	wire := w.WireSink(t)
	asked := 0
	probe := func() []string {
		w.In(t, g.NS, func() error {
			out, err := hostcmd.Output(t.Context(), program, networktest.PublicAddr, networktest.PrivateAddr, networktest.HostAddr, sibling.Address().String())
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, ": ") {
					t.Errorf("not tried: %s", line)
				}
			}
			return err
		})
		leaks := wire.Take()
		for _, q := range zone.Questions()[asked:] {
			leaks = append(leaks, "name "+q)
		}
		asked = len(zone.Questions())
		return leaks
	}
	if open := strings.Join(probe(), "\n"); !strings.Contains(open, "name kiln-exfiltrated-secret.tunnel.example") {
		t.Errorf("an open sandbox resolves nothing:\n%s", open)
	} else {
		for _, pattern := range []string{"to 198.51.100.10 protocol 6,", "to 198.51.100.10 protocol 17,", "to 198.51.100.10 protocol 1,", "to 198.51.100.10 protocol 253,", "to 10.99.0.5 protocol 6,"} {
			if !strings.Contains(open, pattern) {
				t.Errorf("%q is not seen of an open sandbox, so that the suite could not notice it:\n%s", pattern, open)
			}
		}
		for _, pattern := range []string{"ethertype", "to 169.254.169.254 ", "to 192.0.2.1 ", "to 10.208.", "203.0.113.99 to"} {
			if strings.Contains(open, pattern) {
				t.Errorf("%q is seen of an open sandbox:\n%s", pattern, open)
			}
		}
	}
	for _, policy := range []kiln.EgressPolicy{{Mode: kiln.EgressDenyAll}, {AllowCIDRs: []string{networktest.PublicAddr2}, AllowDomains: []string{"service.example"}}} {
		set(t, slot, policy)
		leaks := slices.DeleteFunc(probe(), func(l string) bool { return l == "name barrier.example" })
		if len(leaks) > 0 {
			t.Errorf("under %v got out:\n%s", policy, strings.Join(leaks, "\n"))
		}
	}
}
