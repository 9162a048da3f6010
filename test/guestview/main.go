// Guestview prints what the kernel it runs under shows of a root filesystem: one line of
// JSON, a [rootfs.Facts], for every entry below a directory. It is built without cgo and
// run inside a VM, where the host can then compare its output with the image's entries
// ([rootfs.ReadFacts], [rootfs.Compare]).
//
// Usage: guestview DIRECTORY, or guestview -device DEVICE, which mounts the device
// read-only, looks at it, and unmounts it: so nothing that is mounted over the running
// system stands in the way.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"github.com/kilnvm/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

func main() {
	device := flag.Bool("device", false, "the argument is a block device to be mounted")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: guestview [-device] PATH")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *device); err != nil {
		fmt.Fprintln(os.Stderr, "guestview:", err)
		os.Exit(1)
	}
}

func run(path string, device bool) error {
	if !device {
		return list(path)
	}
	at, err := os.MkdirTemp("", "guestview-")
	if err != nil {
		return err
	}
	defer os.Remove(at)
	if err := unix.Mount(path, at, "ext4", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	defer unix.Unmount(at, 0)
	return list(at)
}

func list(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	src, err := rootfs.FromDir(dir)
	if err != nil {
		dir.Close()
		return err
	}
	defer src.Close()
	facts, err := rootfs.Describe(context.Background(), src)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(os.Stdout)
	enc := json.NewEncoder(w)
	for i := range facts {
		if err := enc.Encode(&facts[i]); err != nil {
			return err
		}
	}
	return w.Flush()
}
