package artifact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/kilnvm/kiln"
)

// holds knows which blobs somebody is about to refer to, so that a sweep spares them.
type holds struct {
	mu    sync.Mutex
	count map[kiln.Digest]int // of the holds that are open
	// touched are the blobs that were held when the sweep that runs began, or written or
	// checked since; nil when none runs.
	touched map[kiln.Digest]bool
}

type holdKey struct{ of *holds }

// hold is what one [Blobs.Hold] keeps.
type hold struct {
	blobs    map[kiln.Digest]bool
	released bool
}

// Hold returns a context under which every blob that is written or checked stays until
// release: for as long as it takes to store a reference to it. A hold within a hold adds
// to the outer one.
func (b *Blobs) Hold(ctx context.Context) (_ context.Context, release func()) {
	if ctx.Value(holdKey{&b.holds}) != nil {
		return ctx, func() {}
	}
	h := &hold{blobs: map[kiln.Digest]bool{}}
	return context.WithValue(ctx, holdKey{&b.holds}, h), sync.OnceFunc(func() { b.holds.release(h) })
}

// Touch keeps a blob, whether it is there or not, as looking at it with Check does.
func (b *Blobs) Touch(ctx context.Context, d kiln.Digest) { b.holds.touch(ctx, d) }

func (s *holds) release(h *hold) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.released = true
	for d := range h.blobs {
		if s.count[d]--; s.count[d] == 0 {
			delete(s.count, d)
		}
	}
}

// touch keeps a blob for the hold in ctx, if there is one, and for the sweep that runs. It
// comes before the look at the file: a blob that is seen to be there stays.
func (s *holds) touch(ctx context.Context, d kiln.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.touched != nil {
		s.touched[d] = true
	}
	h, ok := ctx.Value(holdKey{s}).(*hold)
	if !ok || h.released || h.blobs[d] {
		return
	}
	h.blobs[d] = true
	if s.count == nil {
		s.count = map[kiln.Digest]int{}
	}
	s.count[d]++
}

// Sweep is one removal of what nothing refers to. It spares every blob that is held when it
// begins, or written or checked from then on, so a reference that is stored while it runs is
// good.
type Sweep struct{ blobs *Blobs }

// errSweeping is an error of the caller: sweeps are started by one goroutine.
var errSweeping = errors.New("blobs: a sweep runs already")

// BeginSweep begins a sweep. Read which blobs are referred to after it, and end it.
func (b *Blobs) BeginSweep() (*Sweep, error) {
	b.holds.mu.Lock()
	defer b.holds.mu.Unlock()
	if b.holds.touched != nil {
		return nil, errSweeping
	}
	b.holds.touched = map[kiln.Digest]bool{}
	// A hold that is open now may end, its reference stored, after references were read.
	for d := range b.holds.count {
		b.holds.touched[d] = true
	}
	return &Sweep{b}, nil
}

// End ends the sweep.
func (s *Sweep) End() {
	s.blobs.holds.mu.Lock()
	defer s.blobs.holds.mu.Unlock()
	s.blobs.holds.touched = nil
}

// Remove removes a blob unless somebody is about to use it, and reports whether it did.
func (s *Sweep) Remove(d kiln.Digest) (bool, error) {
	h := &s.blobs.holds
	// The lock is kept while the file goes, so that whoever touches it afterwards looks
	// for it afterwards, too.
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.touched[d] {
		return false, nil
	}
	return true, s.blobs.Remove(d)
}

// Stored is a blob that is there.
type Stored struct {
	Digest    kiln.Digest
	Allocated int64 // bytes of disk; less than the apparent size where the file is sparse
}

// List returns every blob that is there, in the order of their digests.
func (b *Blobs) List() ([]Stored, error) {
	var list []Stored
	err := filepath.WalkDir(filepath.Join(b.dir, "sha256"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		d, ok := digestNamed(e.Name())
		if !ok {
			return nil // not ours to judge
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		list = append(list, Stored{Digest: d, Allocated: diskUse(info)})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("blobs: %w", err)
	}
	return list, nil
}

func diskUse(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512 // the unit of st_blocks, whatever the block size
	}
	return info.Size()
}

// digestNamed returns the digest of the blob whose file has that name.
func digestNamed(file string) (kiln.Digest, bool) {
	d, err := kiln.ParseDigest("sha256:" + file)
	return d, err == nil
}
