package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/orphan"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm/fakevm"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const fakeMemory = "memory of a fake machine\n" // what fakevm restores

// host is a manager with fake machines, whose guest daemon is the real one.
type host struct {
	*Manager
	driver *fakevm.Driver
	guests *fakevm.Guests
	store  *memoryStore
	blobs  *artifact.Blobs
	opts   Options

	mu    sync.Mutex
	bakes []error // why of every RequestBake
}

// newHost returns a host whose one template, "hello", has a golden snapshot. At the end
// of the test everything must be gone.
func newHost(t *testing.T, change ...func(*Options)) *host {
	t.Helper()
	dir := testkit.ShortTempDir(t)
	blobs, err := artifact.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	h := &host{guests: &fakevm.Guests{}, blobs: blobs}
	h.driver = &fakevm.Driver{Version: "1", Serve: h.guests.Serve}
	h.store = &memoryStore{snapshots: map[kiln.Digest]*kiln.Snapshot{}, sandboxes: map[string]kiln.Sandbox{}}
	h.store.template = kiln.Template{ID: "tmpl_hello", Name: "hello", OrgID: kiln.LocalOrgID, Current: 1}
	h.store.version = &kiln.Version{
		TemplateID: "tmpl_hello", Number: 1, Status: kiln.VersionReady, Metadata: kiln.Metadata{DiskMB: 16},
		Rootfs: h.blob(t, kiln.RoleRootfs, "rootfs"),
	}
	h.opts = Options{
		Driver: h.driver, Store: h.store, Blobs: blobs, Dir: filepath.Join(dir, "sb"),
		SnapshotKey: func(spec kiln.VMSpec) kiln.Digest { return h.key(spec) },
		RequestBake: h.requestBake,
		Log:         slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, f := range change {
		f(&h.opts)
	}
	h.Manager, err = New(h.opts)
	if err != nil {
		t.Fatal(err)
	}
	h.addSnapshot(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := h.Close(ctx); err != nil {
			t.Error(err)
		}
		h.checkEmpty(t)
	})
	return h
}

func (h *host) key(spec kiln.VMSpec) kiln.Digest {
	info := h.driver.Info()
	return kiln.SnapshotKey{VMSpec: spec, VMM: info.Name + " " + info.Version, CPUFingerprint: info.CPU}.Digest()
}

func (h *host) requestBake(_ *kiln.Version, _ kiln.Size, why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bakes = append(h.bakes, why)
}

// blob ingests a file with that content.
func (h *host) blob(t *testing.T, role, content string) kiln.Blob {
	t.Helper()
	path := filepath.Join(testkit.ShortTempDir(t), role)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	blob, err := h.blobs.Ingest(t.Context(), path, role)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// addSnapshot gives the template a golden snapshot at its default size.
func (h *host) addSnapshot(t *testing.T) *kiln.Snapshot {
	t.Helper()
	size, err := kiln.SizeByName(h.store.version.DefaultSize())
	if err != nil {
		t.Fatal(err)
	}
	snap := &kiln.Snapshot{
		Key: h.key(h.store.version.VMSpec(size)), SizeName: size.Name, Rootfs: h.store.version.Rootfs,
		Memory:  h.blob(t, kiln.RoleMemory, fakeMemory),
		VMState: h.blob(t, kiln.RoleVMState, fakeMemory),
		Scratch: h.blob(t, kiln.RoleScratch, "scratch disk"),
	}
	h.store.snapshots[snap.Key] = snap
	return snap
}

func hello() CreateRequest { return CreateRequest{OrgID: kiln.LocalOrgID, Template: "hello"} }

func (h *host) create(t *testing.T, req CreateRequest) *kiln.Sandbox {
	t.Helper()
	s, err := h.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkEmpty fails the test unless every sandbox has ended and left nothing.
func (h *host) checkEmpty(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(h.opts.Dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		t.Errorf("folder %s is left", e.Name())
	}
	for _, s := range h.store.all() {
		if s.Status.Living() {
			t.Errorf("the row of sandbox %s says %s", s.ID, s.Status)
		}
		if s.EndedAt.IsZero() || s.Reason == "" {
			t.Errorf("sandbox %s ended without time or reason: %+v", s.ID, s)
		}
	}
	if holders, err := orphan.Holders(h.opts.Dir); err != nil || len(holders) > 0 {
		t.Errorf("processes %v are left, error %v", holders, err)
	}
	if h.admission.admitted != 0 || h.admission.promised != 0 || len(h.admission.starts) != 0 {
		t.Errorf("%d sandboxes with %d MiB stay promised, %d starts under way",
			h.admission.admitted, h.admission.promised, len(h.admission.starts))
	}
}

// awaitEnd waits until a sandbox has ended by itself and returns its row.
func (h *host) awaitEnd(t *testing.T, id string) *kiln.Sandbox {
	t.Helper()
	if b := h.box(id); b != nil {
		select {
		case <-b.ended:
		case <-time.After(20 * time.Second):
			t.Fatalf("sandbox %s does not end", id)
		}
	}
	s, err := h.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantCode(t *testing.T, err error, code kiln.ErrorCode) {
	t.Helper()
	if kiln.CodeOf(err) != code {
		t.Errorf("error %v has code %q, want %q", err, kiln.CodeOf(err), code)
	}
}

// gone returns an error if p still runs. One that waits for its parent to ask how it
// ended does not: it has no command line any more.
func gone(p kiln.Process) error {
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
	if now, err := orphan.Identify(p.PID); err == nil && now == p && len(cmdline) > 0 {
		return fmt.Errorf("process %d is left", p.PID)
	}
	return nil
}
