package snapshot

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm/qemu"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// lines is a Progress that keeps what it is told.
type lines struct {
	t  *testing.T
	mu sync.Mutex
	l  []string
}

func (l *lines) Log(_ kiln.Stage, line string) {
	l.t.Log(line)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.l = append(l.l, line)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.l, "\n")
}

// vmBaker returns a baker of real VMs and a spec for the minimal root filesystem.
func vmBaker(t *testing.T) (*Baker, *artifact.Blobs, kiln.VMSpec) {
	t.Helper()
	testkit.RequireVM(t)
	driver, err := qemu.New(t.Context(), qemu.Options{Accel: qemu.TCG})
	if err != nil {
		t.Fatal(err)
	}
	dir := testkit.ShortTempDir(t)
	blobs, err := artifact.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	baker, err := New(t.Context(), Options{
		Driver: driver, Boot: testkit.BootBundle(t), Blobs: blobs, Dir: filepath.Join(dir, "bake"),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	rootfs := filepath.Join(dir, "rootfs")
	if err := artifact.CopySparse(t.Context(), rootfs, testkit.MinimalRootfs(t)); err != nil {
		t.Fatal(err)
	}
	blob, err := blobs.Ingest(t.Context(), rootfs, kiln.RoleRootfs)
	if err != nil {
		t.Fatal(err)
	}
	size, err := kiln.SizeByName(kiln.DefaultSizeName)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkNothingLeft(t, baker) })
	return baker, blobs, kiln.VMSpec{Rootfs: blob, Size: size, ScratchMB: 64}
}

// checkNothingLeft fails the test if a bake left files.
func checkNothingLeft(t *testing.T, b *Baker) {
	t.Helper()
	entries, err := os.ReadDir(b.opts.Dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left", filepath.Join(b.opts.Dir, e.Name()))
	}
}

func TestBakeRealVM(t *testing.T) {
	baker, blobs, spec := vmBaker(t)
	spec.Config = kiln.ImageConfig{Env: []string{"FROM_IMAGE=1"}, User: "maker", WorkingDir: "/tmp"}
	spec.Env = map[string]string{"FROM_TEMPLATE": "2"}
	spec.StartCmd = "echo starting $FROM_IMAGE$FROM_TEMPLATE; sleep 1; touch /tmp/up; sleep 1000"
	spec.ReadyCmd = "test -e /tmp/up"
	progress := &lines{t: t}
	snap, err := baker.Bake(t.Context(), spec, progress)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []kiln.Blob{snap.Memory, snap.VMState, snap.Scratch} {
		if err := blobs.Verify(t.Context(), b); err != nil || b.Role == "" {
			t.Errorf("blob %+v: %v", b, err)
		}
	}
	if want := int64(spec.Size.MemoryMiB) << 20; snap.Memory.Size != want {
		t.Errorf("memory has %d bytes, want %d", snap.Memory.Size, want)
	}
	if snap.Key != baker.Key(spec) || snap.SizeName != spec.Size.Name {
		t.Errorf("snapshot %+v", snap)
	}
	for _, want := range []string{"starting 12", "boot: ", "save: ", "try out: "} {
		if !strings.Contains(progress.String(), want) {
			t.Errorf("progress does not say %q:\n%s", want, progress)
		}
	}
}

// A template that asks for an init system which its image lacks is told so.
func TestBakeWithoutTheInitSystem(t *testing.T) {
	baker, _, spec := vmBaker(t)
	spec.Init = kiln.InitSystemd
	_, err := baker.Bake(t.Context(), spec, &lines{t: t})
	var mistake *kiln.BuildError
	if !errors.As(err, &mistake) {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(mistake.Message, `init = "systemd"`) || !strings.Contains(mistake.Hint, "systemd-sysv") {
		t.Errorf("message %q, hint %q", mistake.Message, mistake.Hint)
	}
}
