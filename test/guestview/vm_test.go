package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/rootfs"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm"
	"github.com/kilnvm/kiln/internal/vmm/qemu"
	"golang.org/x/sys/unix"
)

// addFeatures gives a tree what a Dockerfile can make and simple tools lose.
func addFeatures(t *testing.T, tree string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(tree, name) }
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(at("features/many"), 0o755))
	for i := range 3000 {
		name := at("features/many/" + strings.Repeat("n", 1+i%200) + string(rune('a'+i%26)) + time.Duration(i).String())
		check(os.WriteFile(name, bytes.Repeat([]byte{byte(i)}, i), 0o640))
	}
	check(os.WriteFile(at("features/setuid"), []byte("x"), 0o755))
	check(os.Chown(at("features/setuid"), 100000, 200000))
	check(os.Chmod(at("features/setuid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	check(os.WriteFile(at("features/capable"), []byte("x"), 0o755))
	netBind := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	check(unix.Setxattr(at("features/capable"), "security.capability", []byte(netBind), 0))
	check(unix.Setxattr(at("features/capable"), "user.note", bytes.Repeat([]byte("v"), 1500), 0))
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\xe8\x03\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"
	check(unix.Setxattr(at("features"), "system.posix_acl_default", []byte(acl), 0))
	check(os.Link(at("features/capable"), at("features/hardlink")))
	check(os.Symlink(strings.Repeat("long/", 100), at("features/symlink")))
	check(os.Link(at("features/symlink"), at("features/symlink-again")))
	check(os.WriteFile(at("features/\xff\xfe"), nil, 0o600))
	check(unix.Mknod(at("features/device"), unix.S_IFBLK|0o600, int(unix.Mkdev(300, 70000))))
	check(unix.Mkfifo(at("features/fifo"), 0o644))
	sparse, err := os.Create(at("features/sparse"))
	check(err)
	_, err = sparse.WriteAt([]byte("end"), 100<<20)
	check(err)
	check(sparse.Close())
	late := []unix.Timespec{unix.NsecToTimespec(4102444800123456789), unix.NsecToTimespec(4102444800123456789)}
	check(unix.UtimesNanoAt(unix.AT_FDCWD, at("features/setuid"), late, 0))
}

// Every entry that a VM sees of its root disk must be the entry that the image was made
// of.
func TestHazard21GuestSeesWhatWasGiven(t *testing.T) {
	testkit.RequireVM(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	tree := t.TempDir()
	testkit.MinimalTree(t, tree)
	addFeatures(t, tree)
	if out, err := exec.Command("cp", build(t), filepath.Join(tree, "usr/bin/guestview")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dir, err := os.Open(tree)
	if err != nil {
		t.Fatal(err)
	}
	src, err := rootfs.FromDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	image := filepath.Join(t.TempDir(), "rootfs")
	if _, err := rootfs.Write(ctx, src, image); err != nil {
		t.Fatal(err)
	}
	driver, err := qemu.New(ctx, qemu.Options{Accel: qemu.TCG})
	if err != nil {
		t.Fatal(err)
	}
	machine, err := driver.Boot(ctx, vmm.Config{
		ID: "guestview", Dir: testkit.ShortTempDir(t), Boot: testkit.BootBundle(t), Size: kiln.Sizes()[0],
		Rootfs: image, Scratch: testkit.ScratchDisk(t, 64),
	})
	if err != nil {
		t.Fatal(err)
	}
	client := guest.New(machine.Dial)
	defer func() {
		client.Close()
		if err := machine.Kill(); err != nil {
			t.Error(err)
		}
	}()
	if err := client.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	var listing, complaints bytes.Buffer
	exit, err := client.Run(ctx, guest.Command{
		Args: []string{"/usr/bin/guestview", "-device", "/dev/vda"}, User: "root", Stdout: &listing, Stderr: &complaints,
	})
	if err != nil || exit.Code != 0 {
		t.Fatalf("guestview: exit %+v, %v\n%s", exit, err, complaints.String())
	}
	diff, err := rootfs.CompareListing(ctx, src, &listing)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range diff {
		if t.Error(d); i == 20 {
			t.Fatalf("… %d differences", len(diff))
		}
	}
}
