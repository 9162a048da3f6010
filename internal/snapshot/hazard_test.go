package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/guest"
	"github.com/kilnvm/kiln/internal/testkit"
	"github.com/kilnvm/kiln/internal/vmm"
)

// A capture is refused, with the list, while a connection to the outside is open.
func TestHazard06OpenConnectionRefusesCapture(t *testing.T) {
	baker, _, spec := vmBaker(t)
	// A network that leads nowhere: the connection stays half open for as long as it takes.
	spec.ReadyCmd = "ip route add 203.0.113.0/24 dev lo; (nc 203.0.113.7 4242 </dev/zero >/dev/null 2>&1 &); sleep 1"
	_, err := baker.Bake(t.Context(), spec, &lines{t: t})
	var mistake *kiln.BuildError
	if !errors.As(err, &mistake) || !strings.Contains(err.Error(), "203.0.113.7:4242") {
		t.Fatalf("error %v", err)
	}
}

// Memory and disk of a capture agree, though the guest was writing all the time: what a
// clone reads is what its checksums say, and its file system needs no repair.
func TestHazard07MemoryAndDiskAgree(t *testing.T) {
	rounds := testkit.Rounds(2, 100)
	baker, blobs, spec := vmBaker(t)
	spec.StartCmd = `echo $$ >/run/writer; mkdir -p /data; cd /data; i=0
while :; do i=$((i+1)); f=file$((i%16)); rm -f $f.sum
dd if=/dev/urandom of=$f bs=4k count=$((i%40+1)) 2>/dev/null; md5sum $f >$f.sum; rm -f file$(((i+7)%16)).sum; rm -f file$(((i+7)%16)); done`
	spec.ReadyCmd = "test -e /data/file9.sum"
	for round := range rounds {
		snap, err := baker.Bake(t.Context(), spec, kiln.DiscardProgress)
		if err != nil {
			t.Fatal(err)
		}
		disk := checkClone(t, baker, blobs, spec, snap)
		if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
			t.Errorf("round %d: the clone's disk needs repair: %v\n%s", round, err, out)
		}
	}
	if err := blobs.Verify(t.Context(), spec.Rootfs); err != nil {
		t.Errorf("the base that all of them share has changed: %v", err)
	}
}

// checkClone restores a clone, lets it compare its files with their checksums, shuts it
// down in order and returns its disk.
func checkClone(t *testing.T, b *Baker, blobs *artifact.Blobs, spec kiln.VMSpec, snap kiln.Snapshot) string {
	t.Helper()
	dir := testkit.ShortTempDir(t)
	disk := filepath.Join(dir, "scratch")
	if err := artifact.CopySparse(t.Context(), disk, blobs.Path(snap.Scratch.Digest)); err != nil {
		t.Fatal(err)
	}
	machine, err := b.opts.Driver.Restore(t.Context(), vmm.Config{
		ID: "clone", Dir: dir, Boot: b.opts.Boot, Size: spec.Size, Rootfs: blobs.Path(spec.Rootfs.Digest), Scratch: disk,
	}, vmm.State{Memory: blobs.Path(snap.Memory.Digest), State: blobs.Path(snap.VMState.Digest)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := machine.Kill(); err != nil {
			t.Error(err)
		}
	}()
	if err := machine.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := guest.New(machine.Dial)
	defer client.Close()
	if err := client.SetIdentity(t.Context(), throwaway()); err != nil {
		t.Fatal(err)
	}
	// The file that is being written has no checksum yet; all others must be right, also
	// when they are read from the disk and not from memory.
	out := runIn(t, client, `kill -9 $(cat /run/writer); kill -9 $(pidof dd) 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches
cd /data && cat *.sum | md5sum -c && ls *.sum | wc -l`)
	if strings.Contains(out, "FAILED") || !strings.Contains(out, "OK") {
		t.Errorf("checksums: %s", out)
	}
	if err := client.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-machine.Done():
	case <-time.After(time.Minute):
		t.Fatal("the clone does not shut down")
	}
	return disk
}

// runIn runs a shell command that must succeed and returns what it printed.
func runIn(t *testing.T, c *guest.Client, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	exit, err := c.Run(ctx, guest.Command{Args: []string{"/bin/sh", "-c", command}, Stdout: &out, Stderr: &out})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%s: exit %+v, error %v\n%s", command, exit, err, out.String())
	}
	return out.String()
}

// An image without a shell is legal; a command that needs one says so.
func TestImageWithoutShell(t *testing.T) {
	baker, blobs, spec := vmBaker(t)
	dir := t.TempDir()
	for _, d := range []string{"etc", "proc", "sys", "dev", "run", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(testkit.ShortTempDir(t), "rootfs")
	testkit.Rootfs(t, dir, image)
	blob, err := blobs.Ingest(t.Context(), image, kiln.RoleRootfs)
	if err != nil {
		t.Fatal(err)
	}
	spec.Rootfs = blob
	if _, err := baker.Bake(t.Context(), spec, &lines{t: t}); err != nil {
		t.Errorf("without commands: %v", err)
	}
	spec.ReadyCmd = "true"
	_, err = baker.Bake(t.Context(), spec, &lines{t: t})
	if kiln.CodeOf(err) != kiln.CodeBuildFailed || !strings.Contains(fmt.Sprint(err), "/bin/sh") {
		t.Errorf("with ready_cmd: %v", err)
	}
}
