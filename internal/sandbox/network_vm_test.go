package sandbox

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/network/networktest"
	"github.com/kilnvm/kiln/internal/testkit"
)

// says runs a shell command in a sandbox and returns what it printed.
func (h *vmHost) says(t *testing.T, id, command string) string {
	t.Helper()
	g, err := h.Guest(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := g.Run(t.Context(), guest.Command{Args: []string{"/bin/sh", "-c", command}, Stdout: &out, Stderr: &out}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// A clone uses the network at once, with the address that its snapshot has.
func TestClonesReachTheNetwork(t *testing.T) {
	w := networktest.New(t)
	w.TCP(t, networktest.PublicAddr+":80")
	w.DNS(t, 60).Set("service.example", networktest.PublicAddr)
	h := newNetworkHost(t, w.Pool(t, network.Settings{Prepared: 2}), nil)
	before := uint64(0)
	for _, mode := range []kiln.BootMode{kiln.BootSnapshot, kiln.BootCold} {
		s, err := h.Create(t.Context(), CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", BootMode: mode})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %v", mode, s.BootTime)
		if got := h.says(t, s.ID, "echo ping | nc -w 5 service.example 80"); got != networktest.Greeting+"ping\n" {
			t.Errorf("%s: got %q; %s", mode, got, h.says(t, s.ID, "ip addr; ip route; cat /etc/resolv.conf; ls -l /sys/class/net/*/device/driver; dmesg | tail"))
		}
		// What passed is counted while the sandbox lives and after it has ended.
		sent := h.Traffic().SentBytes
		if sent <= before {
			t.Errorf("%s: %d bytes were sent before it, %d with it", mode, before, sent)
		}
		if err := h.Destroy(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if before = h.Traffic().SentBytes; before < sent {
			t.Errorf("%s: %d bytes were sent, and %d when it has ended", mode, sent, before)
		}
	}
}

// A change of the policy does not touch a connection of a running VM that stays allowed, and
// cuts it when it is allowed no more.
func TestChangeOfPolicyKeepsConnections(t *testing.T) {
	w := networktest.New(t)
	w.TCP(t, "0.0.0.0:80")
	w.DNS(t, 60).Set("service.example", networktest.PublicAddr)
	h := newNetworkHost(t, w.Pool(t, network.Settings{Prepared: 1}), nil)
	s, err := h.Create(t.Context(), CreateRequest{
		OrgID: kiln.LocalOrgID, Template: "hello", Egress: kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr2}, AllowDomains: []string{"service.example"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	h.says(t, s.ID, `for to in `+networktest.PublicAddr2+` service.example; do
mkfifo /run/$to; (sleep 86400 >/run/$to &) </dev/null >/dev/null 2>&1
(nc $to 80 </run/$to >/run/$to.out; echo ended >>/run/$to.out) </dev/null >/dev/null 2>&1 &
done`)
	words := 0
	answers := func(to string) string {
		words++
		return h.says(t, s.ID, fmt.Sprintf("echo word%d >/run/%s; until grep -Eo 'word%d|ended' /run/%[2]s.out; do sleep 0.05; done", words, to, words))
	}
	change := func(p kiln.EgressPolicy) {
		t.Helper()
		if _, err := h.SetEgress(t.Context(), s.ID, p); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(to string, alive bool) {
		t.Helper()
		if got := answers(to); alive != (got == fmt.Sprintf("word%d\n", words)) {
			t.Errorf("the connection to %s lives: %v (%q)", to, !alive, got)
		}
	}
	both := func(alive bool) {
		t.Helper()
		expect(networktest.PublicAddr2, alive)
		expect("service.example", alive)
	}
	both(true)
	for i := range 20 { // one transaction each, whatever passes meanwhile
		change(kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr2 + fmt.Sprint("/", 12+i)}, AllowDomains: []string{"*.example", "service.example"}})
	}
	both(true)
	change(kiln.EgressPolicy{Mode: kiln.EgressAllowAll})
	both(true)
	change(kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr2}})
	expect(networktest.PublicAddr2, true)
	expect("service.example", false)
	change(kiln.EgressPolicy{Mode: kiln.EgressDenyAll})
	expect(networktest.PublicAddr2, false)
}

// Real sandboxes, one after the other, leave nothing of their networks (hazard 42): rules,
// links and namespaces are as many as with the first.
func TestHazard42SandboxesLeaveNoNetworks(t *testing.T) {
	w := networktest.New(t)
	pool := w.Pool(t, network.Settings{Prepared: 2})
	h := newNetworkHost(t, pool, nil)
	var first string
	for i := range testkit.Rounds(5, 500) {
		s, err := h.Create(t.Context(), CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello", Egress: kiln.EgressPolicy{Mode: kiln.EgressDenyAll}})
		if err != nil {
			t.Fatal(err)
		}
		first = cmp.Or(first, w.HostRules(t))
		if now := w.HostRules(t); now != first {
			t.Fatalf("the host's rules changed with sandbox %d:\n%s\nbefore:\n%s", i, now, first)
		}
		if err := h.Destroy(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if n := pool.Counts(); n.Free > 8 || n.Used > 1 { // one may be in the making
			t.Fatalf("after sandbox %d there are %+v slots", i, n)
		}
	}
}

// Clones have the same address and the same neighbour, whose address their ARP cache keeps,
// and no way to confuse each other: all of them use the network at once, and the host tells
// them apart.
func TestHazard05ClonesUseTheNetworkAtOnce(t *testing.T) {
	n := testkit.Rounds(5, 50)
	w := networktest.New(t)
	w.TCP(t, networktest.PublicAddr+":80")
	w.DNS(t, 60).Set("service.example", networktest.PublicAddr)
	h := newNetworkHost(t, w.Pool(t, network.Settings{Prepared: 2}), nil)
	said, addresses := make([]string, n), make([]string, n)
	var made, done sync.WaitGroup
	made.Add(n)
	for i := range n {
		done.Go(func() {
			s, err := h.Create(t.Context(), hello())
			made.Done()
			made.Wait() // until all of them are there
			if err != nil {
				t.Error(err)
				return
			}
			_, slot, err := h.slotOf(t.Context(), s.ID)
			if err != nil {
				t.Error(err)
				return
			}
			addresses[i] = slot.Address().String()
			said[i] = h.says(t, s.ID, fmt.Sprintf("for i in 1 2 3; do echo %s | nc -w 30 service.example 80; done; cat /sys/class/net/eth0/address; ip -4 -o addr show eth0; tail -n +2 /proc/net/arp", s.ID))
			want := strings.Repeat(networktest.Greeting+s.ID+"\n", 3)
			if got, own, _ := strings.Cut(said[i], want); got != "" || own == "" {
				t.Errorf("clone %d of %d: got %q, want %q and its addresses", i, n, said[i], want)
			} else {
				said[i] = own
			}
		})
	}
	done.Wait()
	slices.Sort(addresses)
	if unique := slices.Compact(slices.Clone(addresses)); len(unique) != n {
		t.Errorf("the host knows %d clones by %d addresses: %q", n, len(unique), addresses)
	}
	if same := slices.Compact(said); len(same) != 1 {
		t.Errorf("clones see different addresses of their own: %q", same)
	}
}
