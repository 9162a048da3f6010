package rootfs

import (
	"context"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/ext4"
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

func TestMillionEntriesInBoundedMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	peak := peakHeap(func() {
		if _, err := ext4.Write(context.Background(), manyFiles(1_000_000), f, ext4.Options{TempDir: t.TempDir()}); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("peak heap %d MiB", peak>>20)
	if peak > 64<<20 {
		t.Errorf("a million entries took %d MiB of heap, more than 64", peak>>20)
	}
	fsck(t, path)
	im, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if _, err := im.Lookup("data/directory/file-00777777.json"); err != nil {
		t.Error(err)
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
