package sandbox

import (
	"math/rand/v2"
	"os"
	"testing"

	"github.com/kilnvm/kiln"
)

// A snapshot made under other conditions is not loaded: the sandbox boots cold, and a new
// bake is asked for.
func TestHazard08SnapshotOfAnotherHostIsNotLoaded(t *testing.T) {
	h := newHost(t)
	for _, snap := range h.store.snapshots { // what is stored under this key was made elsewhere
		delete(h.store.snapshots, snap.Key)
		h.store.snapshots[kiln.DigestOf([]byte("another CPU"))] = snap
	}
	if s := h.create(t, hello()); s.BootMode != kiln.BootCold {
		t.Errorf("boot mode %s", s.BootMode)
	}
	if len(h.bakes) != 1 {
		t.Errorf("%d bakes asked for, want 1", len(h.bakes))
	}
	// Once baked under the right key it is used.
	h.addSnapshot(t)
	if s := h.create(t, hello()); s.BootMode != kiln.BootSnapshot {
		t.Errorf("boot mode %s after the bake", s.BootMode)
	}
}

// Every damage to a snapshot's files is found before a guest is given them.
func TestHazard09DamagedSnapshotIsRefused(t *testing.T) {
	h := newHost(t)
	snap := h.addSnapshot(t)
	check := func() error { return h.checkBlobs(t.Context(), snap.Memory, snap.VMState, snap.Scratch) }
	if err := check(); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(9, 9))
	blobs := []kiln.Blob{snap.VMState, snap.Scratch} // memory has the content of the state here
	for i := range 10_000 {
		path := h.blobs.Path(blobs[i%len(blobs)].Digest)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		bad := append([]byte(nil), good...)
		if at := random.IntN(len(bad)); i%3 == 0 {
			bad = bad[:at]
		} else {
			bad[at] ^= 1 << random.IntN(8)
		}
		rewrite(t, path, bad)
		if check() == nil {
			t.Fatalf("damage %d to %s was not found: %q", i, path, bad)
		}
		rewrite(t, path, good)
	}
	if err := check(); err != nil {
		t.Errorf("the mended snapshot is refused: %v", err)
	}

	rewrite(t, h.blobs.Path(snap.VMState.Digest), []byte("damaged"))
	if s := h.create(t, hello()); s.BootMode != kiln.BootCold {
		t.Errorf("boot mode %s", s.BootMode)
	}
	if len(h.bakes) != 1 || h.bakes[0] == nil {
		t.Errorf("asked to bake because of %v", h.bakes)
	}
	rewrite(t, h.blobs.Path(snap.Rootfs.Digest), []byte("damaged"))
	if _, err := h.Create(t.Context(), hello()); err == nil {
		t.Error("a damaged root filesystem was given to a guest")
	}
}

// rewrite changes a file in place, as a fault would: it stays the same file.
func rewrite(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHazard10UpgradedVMMStrandsNothing(t *testing.T) {
	h := newHost(t)
	if s := h.create(t, hello()); s.BootMode != kiln.BootSnapshot {
		t.Fatalf("boot mode %s", s.BootMode)
	}
	h.driver.Version = "2"
	if s := h.create(t, hello()); s.BootMode != kiln.BootCold {
		t.Errorf("boot mode %s after the upgrade", s.BootMode)
	}
	if len(h.bakes) != 1 {
		t.Errorf("%d bakes asked for, want 1", len(h.bakes))
	}
	h.addSnapshot(t)
	if s := h.create(t, hello()); s.BootMode != kiln.BootSnapshot {
		t.Errorf("boot mode %s after the new bake", s.BootMode)
	}
}
