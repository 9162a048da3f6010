package rootfs

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
	"github.com/kilnvm/kiln/internal/rootfs/rootfstest"
)

// manyFiles is a directory with that many empty files and two with content.
type manyFiles int

func (n manyFiles) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		for i := range int(n) {
			e := kiln.Entry{
				Path: fmt.Sprintf("data/directory/file-%08d.json", i), Type: kiln.TypeRegular, Mode: 0o644,
				ModTime: time.Unix(1700000000+int64(i%97), int64(i)).UTC(),
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (manyFiles) Close() error { return nil }

// peakHeap runs f and returns the most heap that was in use meanwhile, beyond what was
// before.
func peakHeap(f func()) uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before, peak := m.HeapInuse, m.HeapInuse
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for !stop.Load() {
			<-tick.C
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse)
		}
	}()
	f()
	stop.Store(true)
	<-done
	return peak - before
}

// soak raises counts to what takes minutes; see the Makefile.
var soak = os.Getenv("KILN_SOAK") != ""

func TestMillionEntriesInBoundedMemory(t *testing.T) {
	files, limit := 1_000_000, uint64(64<<20)
	if soak { // for every further million only what is kept by inode number: links, numbers, hashes of leaves
		files, limit = 10_000_000, 192<<20
	}
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	peak := peakHeap(func() {
		if _, err := ext4.Write(context.Background(), manyFiles(files), f, ext4.Options{TempDir: t.TempDir()}); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("peak heap %d MiB", peak>>20)
	if peak > limit {
		t.Errorf("%d entries took %d MiB of heap, more than %d", files, peak>>20, limit>>20)
	}
	rootfstest.Fsck(t, path)
	im, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if _, err := im.Lookup("data/directory/file-00777777.json"); err != nil {
		t.Error(err)
	}
	// The kernel finds names by their hashes: one that it computes otherwise it would not find.
	at := rootfstest.Mount(t, path)
	rnd := rand.New(rand.NewPCG(8, 9))
	for range 2000 {
		name := fmt.Sprintf("data/directory/file-%08d.json", rnd.IntN(files))
		if _, err := os.Lstat(filepath.Join(at, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(filepath.Join(at, fmt.Sprintf("data/directory/file-%08d.json", files))); !os.IsNotExist(err) {
		t.Errorf("a name that is not there: %v", err)
	}
}

func BenchmarkFilesInOneDirectory(b *testing.B) {
	for _, n := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				path := filepath.Join(b.TempDir(), "image")
				f, err := os.Create(path)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := ext4.Write(context.Background(), manyFiles(n), f, ext4.Options{TempDir: b.TempDir()}); err != nil {
					b.Fatal(err)
				}
				f.Close()
				os.Remove(path)
			}
		})
	}
}
