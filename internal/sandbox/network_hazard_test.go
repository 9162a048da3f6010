package sandbox

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

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

// senderAddr is where the process of the template sends to, which nothing else does.
const senderAddr = "198.51.100.41"

// create creates a sandbox by a path that requests can name.
func (m *maze) create(t *testing.T, mode kiln.BootMode, policy kiln.EgressPolicy) string {
	t.Helper()
	s, err := m.Create(t.Context(), CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: mode, Egress: policy})
	if err != nil {
		t.Fatal(err)
	}
	if want := reported(mode); s.BootMode != want {
		t.Fatalf("it started by %s instead of %s", s.BootMode, want)
	}
	return s.ID
}

// reported is what a sandbox says that was asked for by mode.
func reported(mode kiln.BootMode) kiln.BootMode {
	if mode == kiln.BootSpawned {
		return kiln.BootSnapshot
	}
	return mode
}

// claim fills the warm pool and has the sandbox take what is in it.
func (m *maze) claim(t *testing.T, mode kiln.BootMode, policy kiln.EgressPolicy) string {
	t.Helper()
	start := m.newSlot
	if mode == kiln.BootSpawned {
		start = m.spawn
	}
	p, err := m.plan(t.Context(), hello())
	if err != nil {
		t.Fatal(err)
	}
	m.warm.limits.SpawnAhead = 1
	m.warm.aim(map[shelfKey]aim{p.shelf(): {plan: p, slots: 1}}, func(*plan) bool { return true }, time.Now())
	b, err := start(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if !m.warm.put(b) {
		t.Fatal("the pool does not want the slot")
	}
	if leaks := m.seen(); len(leaks) > 0 {
		t.Errorf("a slot that nobody has claimed let out %q", leaks)
	}
	return m.create(t, mode, policy)
}

// changed is a sandbox that had another policy until it runs under this one.
func (m *maze) changed(t *testing.T, before, policy kiln.EgressPolicy) string {
	t.Helper()
	id := m.create(t, kiln.BootSnapshot, before)
	if _, err := m.SetEgress(t.Context(), id, policy); err != nil {
		t.Fatal(err)
	}
	return id
}

// wake is a sandbox whose policy was changed before its pause.
func (m *maze) wake(t *testing.T, before, policy kiln.EgressPolicy) string {
	t.Helper()
	id := m.changed(t, before, policy)
	if _, err := m.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	m.seen() // what was sent under the policy before
	if _, err := m.Wake(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return id
}

// fork is a copy of a sandbox whose policy was changed. The other one is gone.
func (m *maze) fork(t *testing.T, before, policy kiln.EgressPolicy) string {
	t.Helper()
	parent := m.changed(t, before, policy)
	m.seen()
	forked, err := m.Fork(t.Context(), parent, ForkRequest{Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	if forked[0].Err != nil {
		t.Fatal(forked[0].Err)
	}
	m.destroy(t, parent)
	return forked[0].Sandbox.ID
}

func (m *maze) destroy(t *testing.T, id string) {
	t.Helper()
	if err := m.Destroy(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// probe tries every way out of a sandbox and returns what was seen on the way out.
func (m *maze) probe(t *testing.T, id, sibling string) []string {
	t.Helper()
	g, err := m.vmHost.Guest(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.WriteFile(t.Context(), "/prober", bytes.NewReader(m.prober)); err != nil {
		t.Fatal(err)
	}
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

// awaitSender waits until something that the sender of the template does is noticed.
func awaitSender(t *testing.T, what string, noticed func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for tick := time.NewTicker(20 * time.Millisecond); !noticed(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s is not noticed", what)
		}
	}
}

// awaitRefusals waits until the sender has been refused in the state that a sandbox is in now.
func (m *maze) awaitRefusals(t *testing.T, id string) {
	t.Helper()
	refused := func() uint64 {
		use, err := m.NetworkUse(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return use.RefusedPackets
	}
	before := refused()
	awaitSender(t, "an attempt of the sender", func() bool { return refused() > before })
}

// Each path to a running sandbox. The policy before is one that is in force for a while on
// paths that have such a while.
var startPaths = []struct {
	name  string
	start func(m *maze, t *testing.T, before, policy kiln.EgressPolicy) string
}{
	{"cold", func(m *maze, t *testing.T, _, p kiln.EgressPolicy) string { return m.create(t, kiln.BootCold, p) }},
	{"restored", func(m *maze, t *testing.T, _, p kiln.EgressPolicy) string { return m.create(t, kiln.BootSnapshot, p) }},
	{"warm", func(m *maze, t *testing.T, _, p kiln.EgressPolicy) string { return m.claim(t, kiln.BootWarm, p) }},
	{"spawned", func(m *maze, t *testing.T, _, p kiln.EgressPolicy) string { return m.claim(t, kiln.BootSpawned, p) }},
	{"woken", (*maze).wake},
	{"forked", (*maze).fork},
}

// No technique gets anything past a policy that does not allow it, on whatever path the
// sandbox started (hazard 40), and nothing that ran before the policy was known gets a single
// packet out (hazard 41); what the policy allows works all the while. The same sender and the
// same techniques get out on the same paths when the policies are swapped.
func TestHazard40AndHazard41NoWayPastThePolicy(t *testing.T) {
	m := newMaze(t, network.Settings{Prepared: 2, Open: []string{networktest.PrivateAddr}}, func(v *kiln.Version) {
		v.Metadata.StartCmd = "ping -i 0.1 " + senderAddr + " >/dev/null 2>&1"
		v.Metadata.Egress = kiln.EgressPolicy{Mode: kiln.EgressDenyAll}
	})
	if leaks := m.seen(); len(leaks) > 0 {
		t.Errorf("while it was baked: %q", leaks)
	}
	some := kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr2}, AllowDomains: []string{"service.example"}}
	open := kiln.EgressPolicy{Mode: kiln.EgressAllowAll}
	sibling := m.create(t, kiln.BootSnapshot, some)
	for _, path := range startPaths {
		t.Run(path.name, func(t *testing.T) {
			for range testkit.Rounds(1, 10) {
				m.seen()
				id := path.start(m, t, open, some)
				m.awaitRefusals(t, id)
				if leaks := m.seen(); len(leaks) > 0 {
					t.Errorf("what ran already got out:\n%s", strings.Join(leaks, "\n"))
				}
				if leaks := m.probe(t, id, sibling); len(leaks) > 0 {
					t.Errorf("%d got out:\n%s", len(leaks), strings.Join(leaks, "\n"))
				}
				m.checkAllowed(t, id)
				m.destroy(t, id)
			}
		})
		t.Run(path.name+", swapped", func(t *testing.T) {
			id := path.start(m, t, some, open)
			awaitSender(t, "the sender", func() bool { return strings.Contains(strings.Join(m.seen(), "\n"), "to "+senderAddr+" protocol 1,") })
			checkOpen(t, m.probe(t, id, sibling))
			m.destroy(t, id)
		})
	}
}

// checkAllowed makes sure that what is refused is not simply everything.
func (m *maze) checkAllowed(t *testing.T, id string) {
	t.Helper()
	if got := m.says(t, id, "echo ping | nc -w 5 service.example 80"); got != networktest.Greeting+"ping\n" {
		t.Errorf("what is allowed does not work: %q", got)
	}
	if denials, err := m.Denials(t.Context(), id); err != nil || len(denials) < 10 {
		t.Errorf("the deny log has %d entries, %v", len(denials), err)
	}
}

// checkOpen makes sure that the suite notices what gets out of an open sandbox.
func checkOpen(t *testing.T, leaks []string) {
	t.Helper()
	got := strings.Join(leaks, "\n")
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
}
