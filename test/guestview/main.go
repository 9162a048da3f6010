// Guestview prints what the kernel it runs under shows of a root filesystem: one line of
// JSON, a [rootfs.Facts], for every entry below a directory. It is built without cgo and
// run inside a VM, where the host can then compare its output with the image's entries
// ([rootfs.ReadFacts], [rootfs.Compare]).
//
// Usage: guestview DIRECTORY, or guestview -device DEVICE, which mounts the device
// read-only, looks at it, and unmounts it: so nothing that is mounted over the running
// system stands in the way. With -lookups N it instead looks up the first N of the paths in
// its standard input, and prints how many nanoseconds that took and what was read.
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
	lookups := flag.Int("lookups", 0, "look up that many of the paths in standard input")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: guestview [-device] [-lookups N] PATH")
		os.Exit(2)
	}
	look := list
	if *lookups > 0 {
		look = func(dir string) error { return lookUp(dir, *lookups, flag.Arg(0)) }
	}
	if err := run(flag.Arg(0), *device, look); err != nil {
		fmt.Fprintln(os.Stderr, "guestview:", err)
		os.Exit(1)
	}
}

func run(path string, device bool, look func(dir string) error) error {
	if !device {
		return look(path)
	}
	at, err := os.MkdirTemp("/", "guestview-") // an image need not have a /tmp
	if err != nil {
		return err
	}
	defer os.Remove(at)
	if err := unix.Mount(path, at, "ext4", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	defer unix.Unmount(at, 0)
	return look(at)
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
