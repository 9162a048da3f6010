package sandbox

import (
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/network/networktest"
)

// What a sandbox did before a pause counts after it, and at its end; its copies begin anew.
func TestAccountsOutlivePauses(t *testing.T) {
	w := networktest.New(t)
	w.TCP(t, "0.0.0.0:80")
	pool := w.Pool(t, network.Settings{Prepared: 1})
	h := newHost(t, func(o *Options) { o.Network = pool })
	req := hello()
	req.Persistent, req.Egress = true, kiln.EgressPolicy{AllowCIDRs: []string{networktest.PublicAddr}}
	s := h.create(t, req)
	use := func(id string) kiln.NetworkUse {
		t.Helper()
		u, err := h.NetworkUse(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	attempts := func() uint64 {
		t.Helper()
		denials, err := h.Denials(t.Context(), s.ID)
		if err != nil || len(denials) != 1 {
			t.Fatalf("deny log %+v, %v", denials, err)
		}
		return denials[0].Attempts
	}
	// The machine is a fake one, so that another guest uses its slot.
	traffic := func() {
		t.Helper()
		_, slot, err := h.slotOf(t.Context(), s.ID)
		if err != nil {
			t.Fatal(err)
		}
		g := w.Guest(t, slot.Config())
		defer g.Detach()
		if !g.Reaches("tcp", networktest.PublicAddr+":80") || g.Reaches("tcp", networktest.PublicAddr2+":80") {
			t.Fatal("the policy is not in force")
		}
	}
	traffic()
	first, tries := use(s.ID), attempts()
	if first.SentBytes == 0 || first.ReceivedBytes == 0 || first.RefusedPackets == 0 || tries == 0 {
		t.Errorf("counted %+v and %d attempts", first, tries)
	}
	if _, err := h.Pause(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	paused := use(s.ID) // the other side's last words may have come meanwhile
	if paused.SentBytes < first.SentBytes || paused.RefusedPackets != first.RefusedPackets || attempts() != tries {
		t.Errorf("paused: %+v and %d attempts, after %+v and %d", paused, attempts(), first, tries)
	}
	if _, err := h.Wake(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if woken := use(s.ID); woken != paused {
		t.Errorf("woken: %+v, want %+v", woken, paused)
	}
	traffic()
	if now := use(s.ID); now.SentBytes <= paused.SentBytes || now.RefusedPackets <= paused.RefusedPackets || attempts() <= tries {
		t.Errorf("after more: %+v and %d attempts, after %+v and %d", now, attempts(), paused, tries)
	}
	forked, err := h.Fork(t.Context(), s.ID, ForkRequest{Count: 1})
	if err != nil || forked[0].Err != nil {
		t.Fatal(err, forked)
	}
	if u := use(forked[0].Sandbox.ID); u != (kiln.NetworkUse{}) {
		t.Errorf("a copy begins with %+v", u)
	}
	if err := h.Destroy(t.Context(), forked[0].Sandbox.ID); err != nil {
		t.Fatal(err)
	}
	last := use(s.ID)
	if err := h.Destroy(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if ended := use(s.ID); ended != last || last.SentBytes == 0 {
		t.Errorf("ended: %+v, want %+v", ended, last)
	}
	if _, err := h.Denials(t.Context(), s.ID); kiln.CodeOf(err) != kiln.CodeConflict {
		t.Errorf("the deny log of one that has ended: %v", err)
	}
}

func TestJoinDenials(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration, to string, n uint64) kiln.Denial {
		return kiln.Denial{Destination: to, Protocol: "tcp", Port: 80, Reason: "deny_all", Attempts: n, LastAt: now.Add(-d)}
	}
	got := joinDenials(
		[]kiln.Denial{ago(time.Minute, "b", 2), ago(2*time.Minute, "a", 1)},
		[]kiln.Denial{ago(time.Hour, "c", 4), ago(2*time.Hour, "a", 8), ago(25*time.Hour, "d", 16)}, now)
	want := []kiln.Denial{ago(time.Minute, "b", 2), ago(2*time.Minute, "a", 9), ago(time.Hour, "c", 4)}
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("entry %d is %+v, want %+v", i, got[i], want[i])
		}
	}
}
