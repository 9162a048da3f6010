package main

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
	"golang.org/x/sys/unix"
)

// manyFiles is a directory with that many empty files.
type manyFiles int

func fileName(i int) string { return fmt.Sprintf("many/file-%08d.json", i) }

func (n manyFiles) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		for i := range int(n) {
			if !yield(kiln.Entry{Path: fileName(i), Type: kiln.TypeRegular, Mode: 0o644}, nil) {
				return
			}
		}
	}
}

func (manyFiles) Close() error { return nil }

// kernelMade makes the same image with mke2fs and the kernel: mke2fs alone takes time in
// the square of the number of files.
func kernelMade(b *testing.B, files int) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "image")
	run := func(name string, args ...string) {
		b.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			b.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-N", strconv.Itoa(files+20000), path, "1G")
	at := b.TempDir()
	run("mount", "-o", "loop", path, at)
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			b.Fatal(err)
		}
	}()
	small, _ := writeImage(b, minimalTree(b))
	from := b.TempDir()
	run("mount", "-o", "ro,loop", small, from)
	run("cp", "-a", from+"/.", at)
	if err := unix.Unmount(from, 0); err != nil {
		b.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(at, "many"), 0o755); err != nil {
		b.Fatal(err)
	}
	for i := range files {
		fd, err := unix.Open(filepath.Join(at, fileName(i)), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		if err != nil {
			b.Fatal(err)
		}
		unix.Close(fd)
	}
	return path
}

func writeImage(b *testing.B, src kiln.EntrySource) (string, ext4.Result) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	res, err := ext4.Write(context.Background(), src, f, ext4.Options{TempDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	return path, res
}

// BenchmarkLookups compares cold look-ups by a guest's kernel in a directory of a million
// files: in our image, and in one that mke2fs and the kernel made.
func BenchmarkLookups(b *testing.B) {
	const files, lookups, rounds = 1_000_000, 2000, 5
	var paths strings.Builder
	rnd := rand.New(rand.NewPCG(5, 6))
	for range lookups {
		paths.WriteString(fileName(rnd.IntN(files)) + "\n")
	}
	guestview := build(b)
	ours, _ := writeImage(b, both{minimalTree(b), manyFiles(files)})
	images := []struct{ name, path string }{{"kiln", ours}, {"mke2fs", kernelMade(b, files)}}
	for b.Loop() {
		took := map[string][]float64{}
		for range rounds {
			for _, im := range images {
				out := inGuest(b.Context(), b, guestview, im.path, strings.NewReader(paths.String()), "-device", "-lookups", strconv.Itoa(lookups), "/dev/vda")
				var ns, requests, sectors float64
				if _, err := fmt.Sscan(string(out), &ns, &requests, &sectors); err != nil {
					b.Fatal(err)
				}
				took[im.name] = append(took[im.name], ns/lookups/1e3)
				b.ReportMetric(requests/lookups, im.name+"-reads/lookup")
				b.ReportMetric(sectors/2/lookups, im.name+"-KiB/lookup")
			}
		}
		for name, t := range took {
			slices.Sort(t)
			b.ReportMetric(t[0], name+"-best-µs/lookup")
			b.ReportMetric(t[len(t)/2], name+"-median-µs/lookup")
		}
	}
}
