package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/image/imagetest"
	"github.com/kilnvm/kiln/internal/rootfs"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm"
	"github.com/kilnvm/kiln/internal/vmm/qemu"
	"github.com/kilnvm/kiln/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) {
	imagetest.RunChild()
	testkit.Main(m)
}

// program is a file that every image of these tests has and that can be executed. The
// guest's writable layer has guestview in its place; the image stays as it is.
const program = "/usr/bin/true"

// inGuest boots a VM whose root disk is image and runs this program in it with args and stdin.
func inGuest(ctx context.Context, t testing.TB, guestview, image string, stdin io.Reader, args ...string) []byte {
	t.Helper()
	driver, err := qemu.New(ctx, qemu.Options{Accel: qemu.TCG})
	if err != nil {
		t.Fatal(err)
	}
	_, client, end := vmmtest.Boot(ctx, t, driver, vmm.Config{
		ID: "guestview", Dir: testkit.ShortTempDir(t), Boot: testkit.BootBundle(t), Size: kiln.Sizes()[0],
		Rootfs: image, Scratch: testkit.ScratchDisk(t, 64),
	})
	defer end()
	bin, err := os.Open(guestview)
	if err != nil {
		t.Fatal(err)
	}
	defer bin.Close()
	if err := client.WriteFile(ctx, program, bin); err != nil {
		t.Fatal(err)
	}
	var out, complaints bytes.Buffer
	exit, err := client.Run(ctx, guest.Command{Args: append([]string{program}, args...), User: "0:0", Dir: "/", Stdin: stdin, Stdout: &out, Stderr: &complaints})
	if err != nil || exit.Code != 0 {
		t.Fatalf("guestview: exit %+v, %v\n%s", exit, err, complaints.String())
	}
	return out.Bytes()
}

// threeViews makes an image of src and compares src with what our reader, this machine's
// kernel and the kernel of a VM see of it: every entry with all its fields.
func threeViews(ctx context.Context, t *testing.T, guestview string, src kiln.EntrySource) {
	t.Helper()
	start := time.Now()
	path := t.TempDir() + "/rootfs"
	res, err := rootfs.Write(ctx, src, path)
	if err != nil {
		t.Fatal(err)
	}
	// What the image has beyond its source.
	want, err := rootfs.Describe(ctx, rootfs.WithAgentSkeleton(src))
	if err != nil {
		t.Fatal(err)
	}
	rootfstest.Fsck(t, path)
	same := func(view string, got []rootfs.Facts, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", view, err)
		}
		diff := rootfs.Compare(want, got)
		for i, d := range diff {
			if t.Errorf("%s: %.300s", view, d); i == 9 {
				t.Fatalf("%s: %d differences", view, len(diff))
			}
		}
	}
	im, err := rootfs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	facts, err := rootfs.Describe(ctx, im)
	im.Close()
	same("reader", facts, err)
	facts, err = describeDir(ctx, rootfstest.Mount(t, path))
	same("kernel", facts, err)
	facts, err = rootfs.ReadFacts(bytes.NewReader(inGuest(ctx, t, guestview, path, nil, "-device", "/dev/vda")))
	same("guest", facts, err)
	t.Logf("%d entries, %d MiB, %s", len(want), res.Blob.Size>>20, time.Since(start).Round(time.Second))
}

func describeDir(ctx context.Context, path string) ([]rootfs.Facts, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	src, err := rootfs.FromDir(dir)
	if err != nil {
		dir.Close()
		return nil, err
	}
	defer src.Close()
	return rootfs.Describe(ctx, src)
}
