// Rootfs measures how long it takes to make an ext4 image of a tar archive: with Kiln's
// writer, from the archive and from an extracted tree; with hcsshim's tar2ext4; with mkfs,
// a loop mount and tar; and how long tar takes to extract it. All methods run in turn,
// several times, on one file system, and the medians and ratios are printed as a table.
//
// Usage (as root): rootfs -dir /dev/shm/bench [-peer PATH/tar2ext4] ARCHIVE…
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/rootfs"
)

func main() {
	dir := flag.String("dir", os.TempDir(), "where to write, best a tmpfs")
	peer := flag.String("peer", "", "program built from test/bench/tar2ext4")
	runs := flag.Int("runs", 3, "runs of each method")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: rootfs [-dir DIR] [-peer PROGRAM] [-runs N] ARCHIVE…")
		os.Exit(2)
	}
	for _, archive := range flag.Args() {
		if err := bench(*dir, *peer, archive, *runs); err != nil {
			fmt.Fprintln(os.Stderr, "rootfs:", err)
			os.Exit(1)
		}
	}
}

type method struct {
	name string
	run  func(out string) error
}

func bench(dir, peer, archive string, runs int) error {
	work, err := os.MkdirTemp(dir, "rootfs-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	tree := filepath.Join(work, "tree")
	if err := extract(archive, tree); err != nil {
		return err
	}
	methods := []method{
		{"Kiln, from the archive", func(out string) error { return ours(out, func() (kiln.EntrySource, error) { return fromTar(archive) }) }},
		{"Kiln, from a directory", func(out string) error { return ours(out, func() (kiln.EntrySource, error) { return fromDir(tree) }) }},
		{"`tar x`", func(out string) error { return extract(archive, out) }},
		{"mkfs + loop + tar", func(out string) error { return loop(archive, out) }},
	}
	if peer != "" {
		methods = append(methods, method{"tar2ext4", func(out string) error { return exec.Command(peer, archive, out).Run() }})
	}
	times := make([][]time.Duration, len(methods))
	for range runs {
		for i, m := range methods {
			out := filepath.Join(work, "out")
			start := time.Now()
			if err := m.run(out); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			times[i] = append(times[i], time.Since(start))
			if err := os.RemoveAll(out); err != nil {
				return err
			}
		}
	}
	st, err := os.Stat(archive)
	if err != nil {
		return err
	}
	fmt.Printf("%s, %d MB, medians of %d\n\n| method | time | Kiln from the archive / it |\n|---|---|---|\n", filepath.Base(archive), st.Size()/1e6, runs)
	median := func(d []time.Duration) time.Duration { slices.Sort(d); return d[len(d)/2] }
	base := median(times[0])
	for i, m := range methods {
		t := median(times[i])
		fmt.Printf("| %s | %.2f s | %.2f |\n", m.name, t.Seconds(), base.Seconds()/t.Seconds())
	}
	fmt.Println()
	return nil
}

func fromTar(archive string) (kiln.EntrySource, error) {
	f, err := os.Open(archive) // stays open until the program ends
	if err != nil {
		return nil, err
	}
	return rootfs.FromTar(f)
}

func fromDir(tree string) (kiln.EntrySource, error) {
	d, err := os.Open(tree)
	if err != nil {
		return nil, err
	}
	return rootfs.FromDir(d)
}

func ours(out string, open func() (kiln.EntrySource, error)) error {
	src, err := open()
	if err != nil {
		return err
	}
	defer src.Close()
	_, err = rootfs.Write(context.Background(), src, out)
	return err
}

func extract(archive, to string) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	return exec.Command("tar", "--xattrs", "--xattrs-include=*", "-xpf", archive, "-C", to).Run()
}

// loop makes an image the way of a shell script.
func loop(archive, out string) (err error) {
	st, err := os.Stat(archive)
	if err != nil {
		return err
	}
	size := strconv.FormatInt(st.Size()/1024*5/4+65536, 10) + "k"
	if err := exec.Command("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", out, size).Run(); err != nil {
		return fmt.Errorf("mkfs: %w", err)
	}
	at := out + ".mnt"
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	defer os.Remove(at)
	if err := exec.Command("mount", "-o", "loop", out, at).Run(); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	defer func() {
		if uerr := exec.Command("umount", at).Run(); err == nil && uerr != nil {
			err = fmt.Errorf("umount: %w", uerr)
		}
	}()
	return exec.Command("tar", "--xattrs", "--xattrs-include=*", "-xpf", archive, "-C", at).Run()
}
