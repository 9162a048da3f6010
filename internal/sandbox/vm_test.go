package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/network"
	"github.com/kilnvm/kiln/internal/snapshot"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm/qemu"
)

// vmHost is a manager of real VMs.
type vmHost struct {
	*Manager
	store *memoryStore
	blobs *artifact.Blobs
	snap  *kiln.Snapshot
}

// newVMHost returns a host whose one template, "hello", is the minimal root filesystem
// changed by change, with a golden snapshot of real VMs.
func newVMHost(t testing.TB, change func(*kiln.Version)) *vmHost {
	t.Helper()
	return newNetworkHost(t, nil, change)
}

// newNetworkHost is newVMHost with a network for its VMs.
func newNetworkHost(t testing.TB, pool *network.Pool, change func(*kiln.Version)) *vmHost {
	t.Helper()
	testkit.RequireVM(t)
	driver, err := qemu.New(t.Context(), qemu.Options{Accel: qemu.TCG})
	if err != nil {
		t.Fatal(err)
	}
	boot := testkit.BootBundle(t)
	v := &kiln.Version{TemplateID: "tmpl_hello", Number: 1, Status: kiln.VersionReady, Metadata: kiln.Metadata{DiskMB: 256}}
	if change != nil {
		change(v)
	}
	bake := func(dir string, blobs *artifact.Blobs) (*snapshot.Baker, kiln.VMSpec) {
		rootfs := filepath.Join(dir, "rootfs")
		if err := artifact.CopySparse(t.Context(), rootfs, testkit.MinimalRootfs(t)); err != nil {
			t.Fatal(err)
		}
		if v.Rootfs, err = blobs.Ingest(t.Context(), rootfs, kiln.RoleRootfs); err != nil {
			t.Fatal(err)
		}
		baker, err := snapshot.New(t.Context(), snapshot.Options{
			Driver: driver, Boot: boot, Blobs: blobs, Dir: filepath.Join(dir, "bake"), Network: pool,
		})
		if err != nil {
			t.Fatal(err)
		}
		size, err := kiln.SizeByName(v.DefaultSize())
		if err != nil {
			t.Fatal(err)
		}
		return baker, v.VMSpec(size)
	}
	dir := testkit.ShortTempDir(t)
	blobs, err := artifact.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	baker, spec := bake(dir, blobs)
	snap := golden(t, blobs, baker, spec)
	h := &vmHost{blobs: blobs, snap: snap, store: &memoryStore{
		template: kiln.Template{ID: v.TemplateID, Name: "hello", OrgID: kiln.LocalOrgID, Current: 1}, version: v,
		snapshots: map[kiln.Digest]*kiln.Snapshot{snap.Key: snap}, sandboxes: map[string]kiln.Sandbox{},
	}}
	h.Manager, err = New(Options{
		Driver: driver, Boot: boot, Store: h.store, Blobs: blobs, Dir: filepath.Join(dir, "sb"),
		Network: pool, SnapshotKey: baker.Key, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := h.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return h
}

// golden bakes spec, or takes what an earlier run of the tests baked under the same key.
func golden(t testing.TB, blobs *artifact.Blobs, baker *snapshot.Baker, spec kiln.VMSpec) *kiln.Snapshot {
	t.Helper()
	shelf := filepath.Join(testkit.CacheDir(), "golden")
	kept := filepath.Join(shelf, baker.Key(spec).Hex())
	if snap, err := takeFrom(t.Context(), kept, blobs); err == nil {
		return snap
	}
	snap, err := baker.Bake(t.Context(), spec, kiln.DiscardProgress)
	if err != nil {
		t.Fatal(err)
	}
	if err := putOn(t.Context(), shelf, kept, blobs, &snap); err != nil {
		t.Fatal(err)
	}
	return &snap
}

// takeFrom copies a kept snapshot among the blobs.
func takeFrom(ctx context.Context, kept string, blobs *artifact.Blobs) (*kiln.Snapshot, error) {
	text, err := os.ReadFile(filepath.Join(kept, "snapshot.json"))
	if err != nil {
		return nil, err
	}
	var snap kiln.Snapshot
	if err := json.Unmarshal(text, &snap); err != nil {
		return nil, err
	}
	dir, err := blobs.TempDir("golden")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, blob := range []kiln.Blob{snap.Memory, snap.VMState, snap.Scratch} {
		path := filepath.Join(dir, blob.Role)
		if err := artifact.CopySparse(ctx, path, filepath.Join(kept, blob.Role)); err != nil {
			return nil, err
		}
		if err := blobs.Adopt(ctx, path, blob); err != nil {
			return nil, err
		}
		if err := blobs.Check(ctx, blob); err != nil {
			return nil, err
		}
	}
	return &snap, nil
}

// putOn keeps a snapshot for later runs and throws away those that no run has used for
// long. Of two runs that do it at once one wins.
func putOn(ctx context.Context, shelf, kept string, blobs *artifact.Blobs, snap *kiln.Snapshot) error {
	if err := os.MkdirAll(shelf, 0o755); err != nil {
		return err
	}
	const keep = 6 * time.Hour
	old, err := os.ReadDir(shelf)
	if err != nil {
		return err
	}
	for _, e := range old {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > keep {
			os.RemoveAll(filepath.Join(shelf, e.Name()))
		}
	}
	tmp, err := os.MkdirTemp(shelf, "new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, blob := range []kiln.Blob{snap.Memory, snap.VMState, snap.Scratch} {
		if err := artifact.CopySparse(ctx, filepath.Join(tmp, blob.Role), blobs.Path(blob.Digest)); err != nil {
			return err
		}
	}
	text, err := json.Marshal(snap)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "snapshot.json"), text, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, kept); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// run creates nothing: it runs a shell command in a sandbox, which must succeed, and
// returns what it printed.
func (h *vmHost) run(t testing.TB, id, command string) string {
	t.Helper()
	client, err := h.Guest(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	exit, err := client.Run(ctx, guest.Command{Args: []string{"/bin/sh", "-c", command}, Stdout: &out, Stderr: &out})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%s: exit %+v, error %v\n%s", command, exit, err, out.String())
	}
	return out.String()
}

func (h *vmHost) create(t testing.TB, req CreateRequest) *kiln.Sandbox {
	t.Helper()
	s, err := h.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
