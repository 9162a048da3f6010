package extsort

import (
	"bufio"
	"bytes"
	"container/heap"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
)

// Sorter sorts records by key, bytewise. Records with equal keys keep the order in which
// they were added. It is not safe for concurrent use.
type Sorter struct {
	dir   string
	limit int
	arena []byte
	index []slot
	runs  []run
	file  *os.File
	size  int64 // bytes of file in use
	err   error
}

// slot is one record in memory: key and value stand in the arena one after the other.
type slot struct {
	prefix   uint64 // first eight bytes of the key, so that most comparisons stay in the index
	off      uint32
	key, val uint32
}

const slotSize = 24

// run is one sorted stretch of the temporary file.
type run struct{ off, len int64 }

// NewSorter returns an empty sorter that holds about limit bytes in memory and puts what
// goes beyond into a temporary file in dir ("" means the system's).
func NewSorter(dir string, limit int) *Sorter {
	return &Sorter{dir: dir, limit: min(max(limit, 1<<16), 1<<31)}
}

// Add takes a copy of key and value.
func (s *Sorter) Add(key, value []byte) error {
	if s.err != nil {
		return s.err
	}
	if len(s.index) > 0 && len(s.arena)+len(key)+len(value)+slotSize*(len(s.index)+1) > s.limit {
		if s.err = s.spill(); s.err != nil {
			return s.err
		}
	}
	s.index = append(s.index, slot{prefix(key), uint32(len(s.arena)), uint32(len(key)), uint32(len(value))})
	s.arena = append(append(s.arena, key...), value...)
	return nil
}

func prefix(key []byte) uint64 {
	var b [8]byte
	copy(b[:], key)
	return binary.BigEndian.Uint64(b[:])
}

func (s *Sorter) key(e slot) []byte { return s.arena[e.off : e.off+e.key] }
func (s *Sorter) val(e slot) []byte { return s.arena[e.off+e.key : e.off+e.key+e.val] }

func (s *Sorter) sort() {
	slices.SortFunc(s.index, func(a, b slot) int {
		if a.prefix != b.prefix {
			if a.prefix < b.prefix {
				return -1
			}
			return 1
		}
		if c := bytes.Compare(s.key(a), s.key(b)); c != 0 {
			return c
		}
		return int(int64(a.off) - int64(b.off))
	})
}

// spill writes what is in memory to the temporary file as a sorted run.
func (s *Sorter) spill() error {
	if s.file == nil {
		f, err := tempFile(s.dir)
		if err != nil {
			return err
		}
		s.file = f
	}
	s.sort()
	w := bufio.NewWriterSize(io.NewOffsetWriter(s.file, s.size), 1<<18)
	n := int64(0)
	for _, e := range s.index {
		m, err := writeRecord(w, s.key(e), s.val(e))
		if err != nil {
			return fmt.Errorf("spill: %w", err)
		}
		n += m
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("spill: %w", err)
	}
	s.runs = append(s.runs, run{s.size, n})
	s.size += n
	s.arena, s.index = s.arena[:0], s.index[:0]
	return nil
}

// Iterator yields records. Key and Value are valid until the next call of Next.
type Iterator struct {
	Key, Value []byte
	err        error
	next       func(*Iterator) bool
}

// Next advances to the next record and reports whether there is one.
func (it *Iterator) Next() bool { return it.err == nil && it.next(it) }

// Err returns the error that ended the iteration, or nil.
func (it *Iterator) Err() error { return it.err }

// Sorted starts an iteration over all records in the order of their keys. Nothing may
// be added during or after it; any number of iterations may follow one another or run
// side by side.
func (s *Sorter) Sorted() *Iterator {
	if s.err != nil {
		return &Iterator{err: s.err}
	}
	if s.file == nil {
		s.sort()
		i := 0
		return &Iterator{next: func(it *Iterator) bool {
			if i == len(s.index) {
				return false
			}
			it.Key, it.Value = s.key(s.index[i]), s.val(s.index[i])
			i++
			return true
		}}
	}
	if len(s.index) > 0 {
		if s.err = s.spill(); s.err != nil {
			return &Iterator{err: s.err}
		}
	}
	s.arena, s.index = nil, nil
	return s.merge()
}

// mergeBuffers is how much memory one merge uses for reading all runs.
const mergeBuffers = 4 << 20

func (s *Sorter) merge() *Iterator {
	size := min(max(mergeBuffers/len(s.runs), 4<<10), 256<<10)
	h := make(runHeap, 0, len(s.runs))
	for i, r := range s.runs {
		c := &cursor{n: i, r: bufio.NewReaderSize(io.NewSectionReader(s.file, r.off, r.len), size)}
		if ok, err := c.next(); err != nil {
			return &Iterator{err: err}
		} else if ok {
			h = append(h, c)
		}
	}
	heap.Init(&h)
	first := true
	return &Iterator{next: func(it *Iterator) bool {
		if !first && len(h) > 0 {
			ok, err := h[0].next()
			if err != nil {
				it.err = err
				return false
			}
			if ok {
				heap.Fix(&h, 0)
			} else {
				heap.Pop(&h)
			}
		}
		first = false
		if len(h) == 0 {
			return false
		}
		it.Key, it.Value = h[0].key, h[0].val
		return true
	}}
}

// Close releases memory and the temporary file.
func (s *Sorter) Close() error {
	s.arena, s.index, s.runs = nil, nil, nil
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return err
}

type cursor struct {
	n        int
	r        *bufio.Reader
	buf      []byte
	key, val []byte
}

func (c *cursor) next() (bool, error) {
	key, val, buf, err := readRecord(c.r, c.buf)
	if err == io.EOF {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read spilled records: %w", err)
	}
	c.key, c.val, c.buf = key, val, buf
	return true, nil
}

type runHeap []*cursor

func (h runHeap) Len() int      { return len(h) }
func (h runHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h runHeap) Less(i, j int) bool {
	if c := bytes.Compare(h[i].key, h[j].key); c != 0 {
		return c < 0
	}
	return h[i].n < h[j].n
}
func (h *runHeap) Push(x any) { *h = append(*h, x.(*cursor)) }
func (h *runHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return c
}
