package kiln_test

import (
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
)

func TestParseDigest(t *testing.T) {
	good := string(kiln.DigestOf(nil))
	if _, err := kiln.ParseDigest(good); err != nil {
		t.Errorf("ParseDigest(%q): %v", good, err)
	}
	for _, bad := range []string{"", "sha256:", good[:len(good)-1], strings.ToUpper(good), "md5:" + good[7:], good[:len(good)-1] + "g"} {
		if d, err := kiln.ParseDigest(bad); err == nil {
			t.Errorf("ParseDigest(%q) = %q, want an error", bad, d)
		}
	}
}

// A separator that a value may contain would let two different lists of parts collide.
func TestKeysDoNotCollide(t *testing.T) {
	key := func() *kiln.KeyBuilder { return kiln.NewKey(kiln.StageImage, 1) }
	keys := map[string]kiln.Digest{
		"nothing":       key().Key(),
		"a=b":           key().Add("a", "b").Key(),
		"ab=":           key().Add("ab", "").Key(),
		"=ab":           key().Add("", "ab").Key(),
		"two parts":     key().Add("a", "b").Add("c", "d").Key(),
		"one long part": key().Add("a", "bcd").Key(),
		"list":          key().AddList("l", []string{"x", "y"}).Key(),
		"joined list":   key().AddList("l", []string{"xy"}).Key(),
		"map":           key().AddMap("l", map[string]string{"x": "y"}).Key(),
		"other stage":   kiln.NewKey(kiln.StageRootfs, 1).Key(),
		"other format":  kiln.NewKey(kiln.StageImage, 2).Key(),
	}
	seen := map[kiln.Digest]string{}
	for name, k := range keys {
		if other, ok := seen[k]; ok {
			t.Errorf("%q and %q have one key", name, other)
		}
		seen[k] = name
	}
}

func TestMapOrderDoesNotChangeKeys(t *testing.T) {
	m := map[string]string{"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}
	want := kiln.NewKey(kiln.StageImage, 1).AddMap("args", m).Key()
	for range 50 {
		if got := kiln.NewKey(kiln.StageImage, 1).AddMap("args", m).Key(); got != want {
			t.Fatal("the key of one map differs between two computations")
		}
	}
}

// Everything a snapshot depends on must change its key.
func TestSnapshotKeyCoversEveryInput(t *testing.T) {
	base := func() kiln.SnapshotKey {
		return kiln.SnapshotKey{
			VMSpec: kiln.VMSpec{
				Rootfs: kiln.Blob{Digest: kiln.DigestOf([]byte("rootfs"))},
				Size:   kiln.Sizes()[0], ScratchMB: 1024,
			},
			BootBundle: kiln.DigestOf([]byte("bundle")), VMM: "qemu-tcg 7.2", CPUFingerprint: "max",
		}
	}
	changes := map[string]func(*kiln.SnapshotKey){
		"rootfs":      func(k *kiln.SnapshotKey) { k.Rootfs.Digest = kiln.DigestOf([]byte("other")) },
		"boot bundle": func(k *kiln.SnapshotKey) { k.BootBundle = kiln.DigestOf([]byte("other")) },
		"size":        func(k *kiln.SnapshotKey) { k.Size = kiln.Sizes()[1] },
		"memory":      func(k *kiln.SnapshotKey) { k.Size.MemoryMiB++ },
		"vmm":         func(k *kiln.SnapshotKey) { k.VMM = "qemu-tcg 9.0" },
		"cpu":         func(k *kiln.SnapshotKey) { k.CPUFingerprint = "other" },
		"start":       func(k *kiln.SnapshotKey) { k.StartCmd = "x" },
		"ready":       func(k *kiln.SnapshotKey) { k.ReadyCmd = "x" },
		"image env":   func(k *kiln.SnapshotKey) { k.Config.Env = []string{"A=b"} },
		"user":        func(k *kiln.SnapshotKey) { k.Config.User = "maker" },
		"workdir":     func(k *kiln.SnapshotKey) { k.Config.WorkingDir = "/srv" },
		"env":         func(k *kiln.SnapshotKey) { k.Env = map[string]string{"A": "b"} },
		"scratch":     func(k *kiln.SnapshotKey) { k.ScratchMB = 2048 },
		"egress":      func(k *kiln.SnapshotKey) { k.Egress.DenyCIDRs = []string{"10.0.0.0/8"} },
		"network":     func(k *kiln.SnapshotKey) { k.Network = true },
	}
	want := base().Digest()
	for name, change := range changes {
		k := base()
		change(&k)
		if k.Digest() == want {
			t.Errorf("changing %s does not change the key", name)
		}
	}
}
