package sandbox

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/network/networktest"
	"github.com/kilnvm/kiln/internal/testkit"
)

// leastTechniques is how many ways out are tried at least.
const leastTechniques = 60

// maze is a world with everything that a sandbox must not reach, and a watch on all of it.
type maze struct {
	*networktest.World
	*vmHost
	prober []byte
	zone   *networktest.Zone
	wire   *networktest.Sink
	asked  int // questions of the zone that were looked at
}

func newMaze(t *testing.T, settings network.Settings, change func(*kiln.Version)) *maze {
	w := networktest.New(t)
	m := &maze{World: w, prober: networktest.Prober(t), zone: w.DNS(t, 60)}
	for _, port := range []string{"53", "80", "443"} {
		w.TCP(t, "0.0.0.0:"+port)
	}
	m.zone.Set("service.example", networktest.PublicAddr2)
	w.In(t, w.Host, func() error {
		for _, port := range []string{"80", "7070"} {
			l, err := net.Listen("tcp4", "0.0.0.0:"+port)
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
		}
		return nil
	})
	m.wire = w.WireSink(t)
	m.vmHost = newNetworkHost(t, w.Pool(t, settings), change)
	return m
}

// start creates a sandbox with the prober in it.
func (m *maze) start(t *testing.T, mode kiln.BootMode, policy kiln.EgressPolicy) string {
	t.Helper()
	s, err := m.Create(t.Context(), CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: mode, Egress: policy})
	if err != nil {
		t.Fatal(err)
	}
	g, err := m.vmHost.Guest(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.WriteFile(t.Context(), "/prober", bytes.NewReader(m.prober)); err != nil {
		t.Fatal(err)
	}
	return s.ID
}

// probe tries every way out of a sandbox and returns what was seen on the way out.
func (m *maze) probe(t *testing.T, id, sibling string) []string {
	t.Helper()
	m.seen()
	out := m.says(t, id, fmt.Sprintf("chmod +x /prober; /prober %s %s %s %s; echo exit $?",
		networktest.PublicAddr, networktest.PrivateAddr, networktest.HostAddr, m.address(t, sibling)))
	lines := strings.Split(strings.TrimSpace(out), "\n")
	tried := 0
	for _, line := range lines[:len(lines)-1] {
		if strings.Contains(line, ": ") {
			t.Errorf("not tried: %s", line)
		}
		tried++
	}
	if tried < leastTechniques || lines[len(lines)-1] != "exit 0" {
		t.Fatalf("%d techniques were tried:\n%s", tried, out)
	}
	return m.seen()
}

// seen returns what has left the slots since the last call: frames, but those to the one
// address that is allowed, and names that were asked for outside.
func (m *maze) seen() []string {
	leaks := slices.DeleteFunc(m.wire.Take(), func(f string) bool { return strings.Contains(f, "to "+networktest.PublicAddr2+" ") })
	questions := m.zone.Questions()
	for _, q := range questions[m.asked:] {
		if q != "service.example" && q != "barrier.example" {
			leaks = append(leaks, "name "+q)
		}
	}
	m.asked = len(questions)
	return leaks
}

func (m *maze) address(t *testing.T, id string) string {
	t.Helper()
	_, slot, err := m.slotOf(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return slot.Address().String()
}

// No technique gets anything past a policy that does not allow it, on whatever path the
// sandbox started; what the policy allows works all the while. The same techniques get out
// when the policy is swapped.
func TestHazard40NoWayPastThePolicy(t *testing.T) {
	m := newMaze(t, network.Settings{Prepared: 2, Open: []string{networktest.PrivateAddr}}, nil)
	some := kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr2}, AllowDomains: []string{"service.example"}}
	open := kiln.EgressPolicy{Mode: kiln.EgressAllowAll}
	cold, restored := m.start(t, kiln.BootCold, some), m.start(t, kiln.BootSnapshot, some)
	changed := m.start(t, kiln.BootSnapshot, open)

	t.Run("swapped", func(t *testing.T) {
		got := strings.Join(m.probe(t, changed, restored), "\n")
		for what, pattern := range map[string]string{
			"tcp": "to 198.51.100.10 protocol 6,", "udp": "to 198.51.100.10 protocol 17,", "echo request": "to 198.51.100.10 protocol 1,",
			"raw protocol": "to 198.51.100.10 protocol 253,", "private": "to 10.99.0.5 protocol 6,", "name": "name kiln-exfiltrated-secret.tunnel.example",
		} {
			if !strings.Contains(got, pattern) {
				t.Errorf("%s does not get out of an open sandbox, so that the suite could not notice it:\n%s", what, got)
			}
		}
		for what, pattern := range map[string]string{
			"IPv6": "ethertype", "metadata": "to 169.254.169.254 ", "host": "to 192.0.2.1 ", "sibling": "to 10.208.", "forged sender": "203.0.113.99 to",
		} {
			if strings.Contains(got, pattern) {
				t.Errorf("%s gets out of an open sandbox:\n%s", what, got)
			}
		}
	})
	if _, err := m.SetEgress(t.Context(), changed, some); err != nil {
		t.Fatal(err)
	}
	for _, path := range []struct{ name, id, sibling string }{
		{"cold", cold, restored}, {"restored", restored, cold}, {"changed while it runs", changed, cold},
	} {
		t.Run(path.name, func(t *testing.T) {
			for range testkit.Rounds(1, 10) {
				if leaks := m.probe(t, path.id, path.sibling); len(leaks) > 0 {
					t.Errorf("%d got out:\n%s", len(leaks), strings.Join(leaks, "\n"))
				}
			}
			if got := m.says(t, path.id, "echo ping | nc -w 5 service.example 80"); got != networktest.Greeting+"ping\n" {
				t.Errorf("what is allowed does not work: %q", got)
			}
			if denials, err := m.Denials(t.Context(), path.id); err != nil || len(denials) < 10 {
				t.Errorf("the deny log has %d entries, %v", len(denials), err)
			}
		})
	}
}

// A process that runs in the snapshot already and never stops sending gets nothing out of a
// clone whose policy forbids it, and something out of one whose policy does not.
func TestHazard41RulesAreThereBeforeTheFirstPacket(t *testing.T) {
	const sender = "ping 198.51.100.10 >/dev/null 2>&1"
	m := newMaze(t, network.Settings{Prepared: 2}, func(v *kiln.Version) {
		v.Metadata.StartCmd = sender
		v.Metadata.Egress = kiln.EgressPolicy{Mode: kiln.EgressDenyAll}
	})
	if leaks := m.seen(); len(leaks) > 0 {
		t.Errorf("while it was baked: %q", leaks)
	}
	for range testkit.Rounds(3, 50) {
		id := m.start(t, kiln.BootSnapshot, kiln.EgressPolicy{})
		m.says(t, id, "sleep 2")
		if leaks := m.seen(); len(leaks) > 0 {
			t.Errorf("got out: %q", leaks)
		}
		if use, err := m.NetworkUse(t.Context(), id); err != nil || use.RefusedPackets == 0 {
			t.Errorf("nothing was tried: %+v, %v", use, err)
		}
		if err := m.Destroy(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	m.start(t, kiln.BootSnapshot, kiln.EgressPolicy{Mode: kiln.EgressAllowAll})
	open := m.start(t, kiln.BootSnapshot, kiln.EgressPolicy{Mode: kiln.EgressAllowAll})
	m.says(t, open, "sleep 2")
	if got := m.seen(); !slices.ContainsFunc(got, func(f string) bool { return strings.Contains(f, "to 198.51.100.10 protocol 1,") }) {
		t.Errorf("the sender sends nothing when it may: %q", got)
	}
}
