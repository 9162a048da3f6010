package ext4

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/extsort"
)

// intake takes the entries of src in the order in which they come and sorts them by
// path.
func (w *writer) intake(ctx context.Context, src kiln.EntrySource) error {
	w.entries = extsort.NewSorter(w.opt.TempDir, w.opt.sortMemory)
	opener, _ := src.(kiln.RefOpener)
	var rec, key []byte
	for e, err := range src.Entries() {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if e.Type == kiln.TypeSocket {
			w.note("%s: socket left out", e.Path)
			continue
		}
		n, err := w.check(&e)
		if err != nil {
			return err
		}
		if n.typ == kiln.TypeRegular && n.size > 0 {
			if opener == nil || e.Ref == "" {
				if e.Open == nil {
					return refuse(e.Path, "no content for %d bytes", e.Size)
				}
				w.opens = append(w.opens, e.Open)
				n.open, n.ref = uint32(len(w.opens)), nil
			}
		}
		key = pathKey(key[:0], e.Path)
		n.key = key
		rec = appendNode(rec[:0], n)
		if err := w.entries.Add(key, rec); err != nil {
			return err
		}
	}
	w.opener = opener
	return nil
}

// refuse returns the error for an entry that cannot be part of an image.
func refuse(path, format string, args ...any) error {
	return kiln.Errorf(kiln.CodeInvalid, "entry %q: %s", shorten(path), fmt.Sprintf(format, args...))
}

// shorten keeps messages readable when a path is absurdly long.
func shorten(path string) string {
	const most = 300
	if len(path) <= most {
		return path
	}
	return path[:most] + "…"
}

// check validates an entry and converts it.
func (w *writer) check(e *kiln.Entry) (*node, error) {
	if err := checkPath(e.Path); err != nil {
		return nil, err
	}
	n := &node{typ: e.Type, mode: e.Mode & 0o7777, uid: e.UID, gid: e.GID, ref: []byte(e.Ref)}
	if e.Path == "." && e.Type != kiln.TypeDirectory {
		return nil, refuse(e.Path, "the root is not a directory")
	}
	if e.Type != kiln.TypeHardlink {
		w.times(n, e)
	}
	switch e.Type {
	case kiln.TypeRegular:
		if e.Size < 0 || e.Size > maxFileSize {
			return nil, refuse(e.Path, "size %d is outside 0 to %d", e.Size, int64(maxFileSize))
		}
		runs, err := blockRuns(e)
		if err != nil {
			return nil, err
		}
		n.size, n.runs = e.Size, runs
	case kiln.TypeSymlink:
		if len(e.Linkname) == 0 || len(e.Linkname) > maxSymlinkLen || strings.IndexByte(e.Linkname, 0) >= 0 {
			return nil, refuse(e.Path, "a symlink's target has 1 to %d bytes without NUL, this one %d", maxSymlinkLen, len(e.Linkname))
		}
		n.link = []byte(e.Linkname)
		n.size = int64(len(e.Linkname))
	case kiln.TypeHardlink:
		if err := checkPath(e.Linkname); err != nil {
			return nil, refuse(e.Path, "hardlink: %v", err)
		}
		n.link = pathKey(nil, e.Linkname)
	case kiln.TypeCharDevice, kiln.TypeBlockDevice:
		if e.Major > maxMajor || e.Minor > maxMinor {
			return nil, refuse(e.Path, "device number %d:%d is beyond %d:%d", e.Major, e.Minor, maxMajor, maxMinor)
		}
		n.major, n.minor = e.Major, e.Minor
	case kiln.TypeDirectory, kiln.TypeFIFO:
	default:
		return nil, refuse(e.Path, "unknown type %d", e.Type)
	}
	if e.Type != kiln.TypeHardlink {
		if err := w.checkXattrs(n, e); err != nil {
			return nil, err
		}
	}
	if e.Type != kiln.TypeRegular {
		n.ref = nil
	}
	return n, nil
}

const maxFileSize = 1<<32*BlockSize - BlockSize // as the kernel has it for extent-mapped files

// times converts the three times.
func (w *writer) times(n *node, e *kiln.Entry) {
	at, ct := e.AccessTime, e.ChangeTime
	if at.IsZero() {
		at = e.ModTime
	}
	if ct.IsZero() {
		ct = e.ModTime
	}
	var c [3]bool
	n.mtime, c[0] = stamp(e.ModTime)
	n.atime, c[1] = stamp(at)
	n.ctime, c[2] = stamp(ct)
	if c != [3]bool{} {
		w.note("%s: a time outside 1901 to 2446 was moved into that range", e.Path)
	}
}

func checkPath(p string) error {
	if p == "." {
		return nil
	}
	if p == "" {
		return refuse(p, "path is empty")
	}
	if strings.IndexByte(p, 0) >= 0 {
		return refuse(p, "path has a NUL byte")
	}
	if p[0] == '/' {
		return refuse(p, "path is absolute")
	}
	if len(p) > maxPathLen {
		return refuse(p, "path has %d bytes, more than %d", len(p), maxPathLen)
	}
	for elem := range strings.SplitSeq(p, "/") {
		switch {
		case elem == "" || elem == "." || elem == "..":
			return refuse(p, "path has the element %q", elem)
		case len(elem) > maxNameLen:
			return refuse(p, "name has %d bytes, more than %d", len(elem), maxNameLen)
		}
	}
	return nil
}

// maxPathLen bounds the length of a path, so that no archive can make one record exhaust
// memory. It is well above PATH_MAX: a tree may be deeper than one system call can name.
const maxPathLen = 64 << 10

// checkXattrs converts the attributes' map into a sorted list of those that ext4 can hold.
func (w *writer) checkXattrs(n *node, e *kiln.Entry) error {
	for name, value := range e.Xattrs {
		x := xattr{[]byte(name), []byte(value)}
		_, ok, err := toAttr(x)
		if err != nil {
			return refuse(e.Path, "%v", err)
		}
		if !ok {
			w.note("%s: attribute %q left out: ext4 does not know its kind", e.Path, name)
			continue
		}
		n.xattrs = append(n.xattrs, x)
	}
	slices.SortFunc(n.xattrs, func(a, b xattr) int { return bytes.Compare(a.name, b.name) })
	return nil
}

// blockRuns converts the extents of a regular file to runs of blocks.
func blockRuns(e *kiln.Entry) ([]run, error) {
	blocks := (e.Size + BlockSize - 1) / BlockSize
	if e.Extents == nil {
		if blocks == 0 {
			return nil, nil
		}
		return []run{{0, uint32(blocks)}}, nil
	}
	var runs []run
	end := int64(0)
	for _, x := range e.Extents {
		if x.Offset < end || x.Length < 0 || x.Length > e.Size-x.Offset {
			return nil, refuse(e.Path, "data at %d+%d overlaps, is out of order or goes beyond the size %d", x.Offset, x.Length, e.Size)
		}
		end = x.Offset + x.Length
		if x.Length == 0 {
			continue
		}
		from, to := x.Offset/BlockSize, (end+BlockSize-1)/BlockSize
		if k := len(runs); k > 0 && int64(runs[k-1].start)+int64(runs[k-1].count) >= from {
			runs[k-1].count = uint32(to - int64(runs[k-1].start))
		} else {
			runs = append(runs, run{uint32(from), uint32(to - from)})
		}
	}
	return runs, nil
}

// buildTree walks the sorted entries: of several with one path the last wins, missing
// directories are made, every entry but a hardlink becomes a node with the next id.
func (w *writer) buildTree() error {
	w.nodes = extsort.NewLog(w.opt.TempDir, w.opt.sortMemory)
	w.links = extsort.NewSorter(w.opt.TempDir, w.opt.sortMemory/2)
	t := treeBuilder{w: w}
	it := w.entries.Sorted()
	var key, rec []byte
	have := false
	for it.Next() {
		if have && !bytes.Equal(key, it.Key) {
			if err := t.add(rec); err != nil {
				return err
			}
		}
		key, rec, have = append(key[:0], it.Key...), append(rec[:0], it.Value...), true
	}
	if err := it.Err(); err != nil {
		return err
	}
	if have {
		if err := t.add(rec); err != nil {
			return err
		}
	}
	if len(t.open) == 0 {
		if err := t.makeDir(nil); err != nil {
			return err
		}
	}
	return w.entries.Close()
}

// treeBuilder holds the directories from the root to the current entry.
type treeBuilder struct {
	w    *writer
	open []openDir
	n    node
	rec  []byte
	// file is the key of the non-directory that was added last. Its children, if some
	// entry claims to be one, follow right behind it.
	file []byte
}

type openDir struct {
	key []byte
	id  uint32
}

// add takes the next entry in path order.
func (t *treeBuilder) add(rec []byte) error {
	if err := t.n.decode(rec); err != nil {
		return err
	}
	n := &t.n
	if len(n.key) > 0 {
		if err := t.enter(n.key[:max(bytes.LastIndexByte(n.key, 0), 0)]); err != nil {
			return err
		}
		n.parent = t.open[len(t.open)-1].id
	}
	if n.typ == kiln.TypeHardlink {
		t.file = append(t.file[:0], n.key...)
		v := binary.LittleEndian.AppendUint32(nil, n.parent)
		return t.w.links.Add(n.link, append(v, n.key...))
	}
	return t.emit(n)
}

// enter makes the directory with that key the last open one.
func (t *treeBuilder) enter(dir []byte) error {
	for len(t.open) > 0 {
		top := t.open[len(t.open)-1].key
		if len(top) == 0 || bytes.Equal(top, dir) ||
			len(dir) > len(top) && dir[len(top)] == 0 && bytes.HasPrefix(dir, top) {
			break
		}
		t.open = t.open[:len(t.open)-1]
	}
	if len(t.open) == 0 {
		if err := t.makeDir(nil); err != nil {
			return err
		}
	}
	for {
		top := t.open[len(t.open)-1].key
		if len(top) == len(dir) {
			return nil
		}
		from := len(top)
		if from > 0 {
			from++
		}
		to := len(dir)
		if i := bytes.IndexByte(dir[from:], 0); i >= 0 {
			to = from + i
		}
		if err := t.makeDir(dir[:to]); err != nil {
			return err
		}
	}
}

// makeDir adds a directory that no entry describes.
func (t *treeBuilder) makeDir(key []byte) error {
	if len(key) > 0 && bytes.Equal(key, t.file) {
		return refuse(t.n.path(), "its parent %q is not a directory", shorten(keyPath(key)))
	}
	d := node{key: key, typ: kiln.TypeDirectory, mode: 0o755}
	if len(t.open) > 0 {
		d.parent = t.open[len(t.open)-1].id
	}
	return t.emit(&d)
}

// emit writes a node with the next id.
func (t *treeBuilder) emit(n *node) error {
	w := t.w
	n.id = uint32(len(w.nlink))
	w.nlink = append(w.nlink, 1)
	if n.isDir() {
		w.nlink[n.id] = 2
		if n.id != 0 {
			w.nlink[n.parent]++
		}
		t.open = append(t.open, openDir{bytes.Clone(n.key), n.id})
		w.dirCount++
	} else {
		t.file = append(t.file[:0], n.key...)
	}
	t.rec = appendNode(t.rec[:0], n)
	return w.nodes.Add(t.rec)
}
