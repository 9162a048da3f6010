package storetest

import (
	"maps"
	"testing"

	"github.com/kilnvm/kiln"
)

func networkSlots(t *testing.T, f fixture) {
	wantOwners := func(node string, want map[int]string) {
		t.Helper()
		if got, err := f.NetworkSlots(f.ctx, node); err != nil || !maps.Equal(got, want) {
			t.Errorf("slots of %s: %v, %v, want %v", node, got, err, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	wantOwners("a", map[int]string{})
	must(f.AddNetworkSlot(f.ctx, "a", 0))
	must(f.AddNetworkSlot(f.ctx, "a", 1))
	must(f.AddNetworkSlot(f.ctx, "b", 0))
	if err := f.AddNetworkSlot(f.ctx, "a", 1); kiln.CodeOf(err) != kiln.CodeConflict {
		t.Errorf("a slot was added twice: %v", err)
	}
	must(f.ClaimNetworkSlot(f.ctx, "a", 1, "sandbox"))
	for _, slot := range []int{1, 7} { // taken, and not there
		if err := f.ClaimNetworkSlot(f.ctx, "a", slot, "other"); kiln.CodeOf(err) != kiln.CodeConflict {
			t.Errorf("slot %d was claimed: %v", slot, err)
		}
	}
	wantOwners("a", map[int]string{0: "", 1: "sandbox"})
	wantOwners("b", map[int]string{0: ""})
	for range 2 { // both may be repeated
		must(f.FreeNetworkSlot(f.ctx, "a", 1))
		must(f.RemoveNetworkSlot(f.ctx, "a", 0))
	}
	wantOwners("a", map[int]string{1: ""})
	must(f.ClaimNetworkSlot(f.ctx, "a", 1, "other"))
}
