package network_test

import (
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/network/networktest"
	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func acquire(t testing.TB, pool *network.Pool, owner string, policy kiln.EgressPolicy) *network.Slot {
	t.Helper()
	slot, err := pool.Acquire(t.Context(), owner, policy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := slot.Release(); err != nil {
			t.Error(err)
		}
	})
	return slot
}

func TestReach(t *testing.T) {
	w := networktest.New(t)
	w.TCP(t, networktest.PublicAddr+":80")
	w.UDP(t, networktest.PublicAddr+":7")
	pool := w.Pool(t, network.Settings{Prepared: 1})
	slot := acquire(t, pool, "a", kiln.EgressPolicy{})
	g := w.Guest(t, slot.Config())
	if !g.Reaches("tcp", networktest.PublicAddr+":80") || !g.Reaches("udp", networktest.PublicAddr+":7") {
		t.Error("nothing is reached under allow_all")
	}
}
