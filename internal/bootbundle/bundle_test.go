package bootbundle_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cavaliergopher/cpio"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/bootbundle"
	"github.com/kilnvm/kiln/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// distribution returns the files of the distribution's kernel that the test cache keeps.
func distribution(t *testing.T) (kernel, modules string) {
	t.Helper()
	testkit.BootBundle(t)
	dir := filepath.Join(testkit.CacheDir(), "bundle", "distribution-kernel")
	return one(t, dir, "boot/vmlinuz-*"), one(t, dir, "lib/modules/*")
}

func one(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s in %s: %q, %v", pattern, dir, found, err)
	}
	return found[0]
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Any number of callers that start with an empty cache end up with one and the same bundle,
// and one in another cache has the same bytes.
func TestEqualInputsGiveEqualBundles(t *testing.T) {
	kernel, modules := distribution(t)
	opts := bootbundle.Options{CacheDir: t.TempDir(), Kernel: kernel, ModulesDir: modules, Sandboxd: testkit.Sandboxd(t)}
	bundles := make([]kiln.BootBundle, 3)
	var wg sync.WaitGroup
	for i := range bundles {
		wg.Go(func() {
			b, err := bootbundle.Build(t.Context(), opts)
			if err != nil {
				t.Error(err)
			}
			bundles[i] = b
		})
	}
	wg.Wait()
	for _, b := range bundles[1:] {
		if b != bundles[0] {
			t.Errorf("got %+v and %+v", bundles[0], b)
		}
	}
	opts.CacheDir = t.TempDir()
	other, err := bootbundle.Build(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if other.Digest != bundles[0].Digest || other.KernelVersion != filepath.Base(modules) {
		t.Errorf("in another cache: %+v, want digest %s and kernel %s", other, bundles[0].Digest, filepath.Base(modules))
	}
	for _, pair := range [][2]string{{other.KernelPath, bundles[0].KernelPath}, {other.InitrdPath, bundles[0].InitrdPath}} {
		if !bytes.Equal(read(t, pair[0]), read(t, pair[1])) {
			t.Errorf("%s and %s differ", pair[0], pair[1])
		}
	}
	if left, _ := filepath.Glob(filepath.Join(opts.CacheDir, ".tmp-*")); len(left) > 0 {
		t.Errorf("temporary files left: %q", left)
	}
}

// A file that was cut off, by whatever, is made again.
func TestDamagedCacheIsRepaired(t *testing.T) {
	kernel, modules := distribution(t)
	opts := bootbundle.Options{CacheDir: t.TempDir(), Kernel: kernel, ModulesDir: modules, Sandboxd: testkit.Sandboxd(t)}
	want, err := bootbundle.Build(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{want.KernelPath, want.InitrdPath} {
		if err := os.Truncate(path, 1000); err != nil {
			t.Fatal(err)
		}
	}
	got, err := bootbundle.Build(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if got != want || len(read(t, got.InitrdPath)) == 1000 || len(read(t, got.KernelPath)) == 1000 {
		t.Errorf("got %+v, want %+v, both files whole", got, want)
	}
}

// The initramfs holds the daemon and the modules, each after what it needs.
func TestInitramfs(t *testing.T) {
	files := map[string][]byte{}
	var names []string
	archive := cpio.NewReader(bytes.NewReader(read(t, testkit.BootBundle(t).InitrdPath)))
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if files[h.Name], err = io.ReadAll(archive); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(files["init"], read(t, testkit.Sandboxd(t))) {
		t.Error("/init is not the daemon")
	}
	position := func(module string) int {
		return slices.IndexFunc(names, func(n string) bool { return strings.HasSuffix(n, "-"+module+".ko") })
	}
	for _, order := range [][]string{
		{"virtio_ring", "virtio", "virtio_mmio"},
		{"virtio_ring", "virtio", "virtio_blk"},
		{"virtio_pci_modern_dev", "virtio_pci"},
		{"failover", "net_failover", "virtio_net"},
		{"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"},
		{"overlay"}, {"virtio_console"},
	} {
		for i, m := range order {
			if position(m) < 0 {
				t.Errorf("no module %s in %q", m, names)
			} else if i > 0 && position(m) < position(order[i-1]) {
				t.Errorf("%s comes before %s", m, order[i-1])
			}
		}
	}
	if position("ext4") >= 0 {
		t.Error("ext4 is there, though it is built into the kernel")
	}
}

func TestModulesAreUnpacked(t *testing.T) {
	testkit.RequireCommands(t, "xz", "zstd", "gzip")
	kernel, modules := distribution(t)
	build := func(dir string) kiln.BootBundle {
		b, err := bootbundle.Build(t.Context(), bootbundle.Options{
			CacheDir: t.TempDir(), Kernel: kernel, ModulesDir: dir, Sandboxd: testkit.Sandboxd(t),
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	plain := build(modules)
	for _, tool := range []string{"xz -0", "zstd -q --rm", "gzip -1"} {
		dir := t.TempDir()
		script := `cp -r "$0"/. . && find . -name '*virtio*.ko' -o -name '*overlay.ko' -o -name '*vsock*.ko' -o -name '*failover.ko' | xargs ` + tool
		cmd := exec.Command("sh", "-c", script, modules)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", tool, err, out)
		}
		if b := build(dir); b.Digest != plain.Digest {
			t.Errorf("modules packed by %s give another bundle", tool)
		}
	}
}

func TestUnusableInput(t *testing.T) {
	kernel, modules := distribution(t)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, bytes.Repeat([]byte("no kernel "), 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut")
	if err := os.WriteFile(cut, read(t, kernel)[:5<<20], 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*bootbundle.Options)
		code   kiln.ErrorCode
		says   []string
	}{
		"no such kernel":     {func(o *bootbundle.Options) { o.Kernel = "/no/kernel" }, kiln.CodeInvalid, []string{"/no/kernel"}},
		"text as kernel":     {func(o *bootbundle.Options) { o.Kernel = text }, kiln.CodeInvalid, []string{text, "neither", "vmlinux"}},
		"cut kernel":         {func(o *bootbundle.Options) { o.Kernel = cut }, kiln.CodeInvalid, []string{cut, "cut off"}},
		"no such modules":    {func(o *bootbundle.Options) { o.ModulesDir = "/no/modules" }, kiln.CodeInvalid, []string{"/no/modules"}},
		"modules are absent": {func(o *bootbundle.Options) { o.ModulesDir = t.TempDir() }, kiln.CodeInvalid, []string{"lack virtio_mmio"}},
		"no daemon":          {func(o *bootbundle.Options) { o.Sandboxd = "/no/daemon" }, kiln.CodeUnavailable, []string{"/no/daemon", "make build"}},
		"text as daemon":     {func(o *bootbundle.Options) { o.Sandboxd = text }, kiln.CodeInvalid, []string{text}},
		"dynamic daemon":     {func(o *bootbundle.Options) { o.Sandboxd = "/bin/ls" }, kiln.CodeInvalid, []string{"static"}},
	} {
		t.Run(name, func(t *testing.T) {
			opts := bootbundle.Options{CacheDir: t.TempDir(), Kernel: kernel, ModulesDir: modules, Sandboxd: testkit.Sandboxd(t)}
			c.change(&opts)
			_, err := bootbundle.Build(t.Context(), opts)
			if kiln.CodeOf(err) != c.code {
				t.Fatalf("got %v (code %s), want code %s", err, kiln.CodeOf(err), c.code)
			}
			for _, want := range c.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

// Without a package manager, or with one that finds nothing, the error says what was tried
// and what to do.
func TestNoKernelToBeHad(t *testing.T) {
	opts := bootbundle.Options{CacheDir: t.TempDir(), Sandboxd: testkit.Sandboxd(t)}
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	check := func(says ...string) {
		t.Helper()
		_, err := bootbundle.Build(t.Context(), opts)
		if kiln.CodeOf(err) != kiln.CodeUnavailable {
			t.Fatalf("got %v, want code unavailable", err)
		}
		for _, want := range append(says, "linux-image-cloud-amd64", "[vm]") {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
	}
	check("apt-cache is not installed")
	for _, program := range []string{"apt-cache", "apt-get"} {
		script := "#!/bin/sh\necho 'E: nothing here' >&2\nexit 100\n"
		if err := os.WriteFile(filepath.Join(bin, program), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	check("E: nothing here", "apt-cache show", "apt-get -qq update")
	if left, _ := filepath.Glob(filepath.Join(opts.CacheDir, ".tmp-*")); len(left) > 0 {
		t.Errorf("temporary files left: %q", left)
	}
}
