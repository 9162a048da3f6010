// Rootfs measures how long it takes to make an ext4 image of a tar archive: with Kiln's
// writer, from the archive and from an extracted tree; with hcsshim's tar2ext4; with mkfs,
// a loop mount and tar; and how long tar takes to extract it. All methods run in turn,
// several times, on one file system, and the results are printed as a table: the median and
// the best time of each method, and the processor time of its processes (not that of the
// kernel's own threads, such as a loop device's), which other work on the machine changes least.
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
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
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
	times := make([][]sample, len(methods))
	for range runs {
		for i, m := range methods {
			out := filepath.Join(work, "out")
			runtime.GC()
			begin, start := processorTime(), time.Now()
			if err := m.run(out); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			times[i] = append(times[i], sample{time.Since(start), processorTime() - begin})
			if err := os.RemoveAll(out); err != nil {
				return err
			}
		}
	}
	st, err := os.Stat(archive)
	if err != nil {
		return err
	}
	fmt.Printf("%s, %d MB, %d runs of each\n\n", filepath.Base(archive), st.Size()/1e6, runs)
	fmt.Println("| method | median | best | processor | Kiln from the archive / it: median | best | processor |\n|---|---|---|---|---|---|---|")
	base := summarize(times[0])
	for i, m := range methods {
		t := summarize(times[i])
		fmt.Printf("| %s | %.2f s | %.2f s | %.2f s | %.2f | %.2f | %.2f |\n", m.name, t.median, t.best, t.processor,
			base.median/t.median, base.best/t.best, base.processor/t.processor)
	}
	fmt.Println()
	return nil
}

// sample is one run of a method.
type sample struct{ wall, processor time.Duration }

// summary is all runs of a method, in seconds.
type summary struct{ median, best, processor float64 }

func summarize(all []sample) summary {
	var wall, processor []time.Duration
	for _, s := range all {
		wall, processor = append(wall, s.wall), append(processor, s.processor)
	}
	slices.Sort(wall)
	slices.Sort(processor)
	return summary{wall[len(wall)/2].Seconds(), wall[0].Seconds(), processor[len(processor)/2].Seconds()}
}

// processorTime returns what this process and its children that have ended have used.
func processorTime() time.Duration {
	total := int64(0)
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			panic(err) // the arguments are constants
		}
		total += u.Utime.Nano() + u.Stime.Nano()
	}
	return time.Duration(total)
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
