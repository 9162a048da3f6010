package nestedhost

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnvm/kiln/internal/bootbundle"
	"github.com/kilnvm/kiln/internal/rootfs"
	"github.com/kilnvm/kiln/internal/testkit"
)

// release of Debian that the nested host runs.
const release = "bookworm"

// packages of the nested host: what Kiln and its tests use on a host, without compilers.
const packages = "qemu-system-x86,seabios,e2fsprogs,runc,iproute2,nftables,kmod,mount,util-linux,procps,busybox-static"

// cacheDir is the test cache of the nested host.
const cacheDir = "/var/cache/kiln-test"

// addKernel gives the new system the modules of its kernel, and its tests the kernel itself.
const addKernel = `set -e
mkdir -p "$1/lib/modules" "$1` + cacheDir + `/bundle/distribution-kernel"
cp -r "$KILN_MODULES" "$1/lib/modules/"
chroot "$1" depmod "${KILN_MODULES##*/}"
cd "$1` + cacheDir + `/bundle/distribution-kernel"
mkdir boot
cp "$KILN_KERNEL" boot/
ln -s /lib lib`

// imageFormat stands for what is done with all that; raise it with every change.
const imageFormat = "1"

// image returns the root filesystem of the nested host.
func image(t testing.TB) string {
	t.Helper()
	testkit.RequireCommands(t, "mmdebstrap")
	kernel, modules, err := bootbundle.Distribution(t.Context(), filepath.Join(testkit.CacheDir(), "bundle"))
	if err != nil {
		t.Fatal(err)
	}
	name := testkit.ContentName("nested-host", []byte(release), []byte(packages), []byte(addKernel), []byte(imageFormat),
		[]byte(filepath.Base(modules)))
	return testkit.Cached(t, name, func(path string) {
		if err := makeImage(t, kernel, modules, path); err != nil {
			t.Fatal(err)
		}
	})
}

func makeImage(t testing.TB, kernel, modules, path string) error {
	args := []string{
		"--quiet", "--mode=root", "--variant=essential", "--include=" + packages, `--aptopt=APT::Install-Recommends "false"`,
		"--dpkgopt=force-unsafe-io", "--skip=output/dev", "--customize-hook=" + addKernel,
	}
	for _, unused := range []string{"doc", "man", "info", "locale"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+unused+"/*")
	}
	cmd := exec.CommandContext(t.Context(), "mmdebstrap", append(args, release, "-")...)
	cmd.Env = append(os.Environ(), "KILN_KERNEL="+kernel, "KILN_MODULES="+modules)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	r, w := io.Pipe()
	cmd.Stdout = w
	go func() { w.CloseWithError(cmd.Run()) }()
	src, err := rootfs.FromTar(r)
	if err == nil {
		defer src.Close()
		_, err = rootfs.Write(t.Context(), src, path)
	}
	if err != nil {
		err = errors.Join(err, errors.New(complaints.String()))
	}
	r.CloseWithError(err)
	return err
}
