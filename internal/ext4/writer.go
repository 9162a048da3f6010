package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/extsort"
)

// Options are the choices of a caller of [Write]. None of them changes a byte of the
// image.
type Options struct {
	// TempDir is where records go that exceed the memory limit; "" means the system's
	// directory for temporary files.
	TempDir string
	// Memory is about how many bytes the writer may use for sorting; 0 means 16 MiB.
	Memory int
	// Chunk, if not nil, receives the digest of every chunk in ascending order.
	Chunk func(Chunk)

	sortMemory int
}

// Result describes a written image.
type Result struct {
	Digest kiln.Digest // of the whole file, holes read as zeros
	Size   int64       // apparent, in bytes
	Inodes int         // files, directories and everything else, each counted once
	// Notes are what was changed or left out, for people.
	Notes []string
}

// maxNotes bounds Result.Notes.
const maxNotes = 100

// writer is one run of [Write]. Its methods are called in the order in which they stand
// in Write; fields are filled by the one and used by those after it.
type writer struct {
	opt   Options
	notes []string
	more  int // notes beyond maxNotes

	entries *extsort.Sorter // by path
	opener  kiln.RefOpener
	opens   []func() (io.ReadCloser, error)

	nodes    *extsort.Log    // by path, unique
	links    *extsort.Sorter // hardlinks by target
	names    *extsort.Sorter // additional names by node
	nlink    []uint32        // by node id
	dirCount int

	ranks      *extsort.Sorter // nodes in the order of inodes
	inos       []uint32        // by node id
	dirs       []directory     // by rank
	place      placer
	fragmented bool
	attrRefs   []uint16
	values     uint32 // attribute values that take an inode
	uuid       [16]byte
	seed       hashSeed
	incompat   uint32

	dirents *extsort.Sorter // by directory and hash
	leaves  []uint32        // first hash of each leaf of an indexed directory

	size  sections
	geo   geometry
	holes []blockRange // blocks that nothing uses, ascending

	out *output
}

// Write reads src and writes an ext4 image of it to file, which must be empty. The image
// depends on the entries alone: not on their order of arrival, the time, the machine or
// the options. An entry that cannot be part of an image is a [kiln.Error] that names it.
// The file is not synced. If Write fails, the file's content is undefined.
func Write(ctx context.Context, src kiln.EntrySource, file *os.File, opt Options) (Result, error) {
	if opt.Memory <= 0 {
		opt.Memory = 16 << 20
	}
	opt.sortMemory = opt.Memory / 2
	if opt.Chunk == nil {
		opt.Chunk = func(Chunk) {}
	}
	w := &writer{opt: opt}
	defer w.release()
	if err := w.intake(ctx, src); err != nil {
		return Result{}, err
	}
	for _, step := range []func() error{
		w.buildTree, w.resolveLinks, w.rankNodes, w.planInodes, w.planDirents, w.planLayout,
	} {
		if err := ctx.Err(); err != nil {
			return Result{}, context.Cause(ctx)
		}
		if err := step(); err != nil {
			return Result{}, err
		}
	}
	digest, err := w.emit(ctx, file)
	if err != nil {
		return Result{}, err
	}
	if w.more > 0 {
		w.notes = append(w.notes, fmt.Sprintf("and %d more", w.more))
	}
	return Result{
		Digest: digest,
		Size:   int64(w.geo.blocks) * BlockSize,
		Inodes: len(w.nlink),
		Notes:  w.notes,
	}, nil
}

// release frees everything that spilled.
func (w *writer) release() {
	for _, s := range []*extsort.Sorter{w.entries, w.links, w.names, w.ranks, w.dirents} {
		if s != nil {
			s.Close()
		}
	}
	if w.nodes != nil {
		w.nodes.Close()
	}
}

func (w *writer) note(format string, args ...any) {
	if len(w.notes) == maxNotes {
		w.more++
		return
	}
	w.notes = append(w.notes, fmt.Sprintf(format, args...))
}

// emit writes the image.
func (w *writer) emit(ctx context.Context, file *os.File) (kiln.Digest, error) {
	w.out = newOutput(file, w.opt.Chunk)
	w.writeGroups()
	steps := []struct {
		at, size uint64
		do       func() error
	}{
		{w.geo.tables, 1, w.writeInodes},
		{w.geo.dirs, 1, w.writeDirs},
		{w.geo.trees, w.size.trees, w.writeTrees},
		{w.geo.attrBlocks, w.size.attrBlocks, w.writeAttrBlocks},
		{w.geo.values, w.size.values, w.writeValues},
		{w.geo.targets, w.size.targets, w.writeTargets},
		{w.geo.data, w.place.blocks(), func() error { return w.writeData(ctx) }},
	}
	for _, s := range steps {
		if s.size == 0 {
			continue
		}
		w.out.holeTo(s.at)
		if err := s.do(); err != nil {
			w.out.fail(err)
			break
		}
	}
	if w.out.failed() == nil {
		w.out.holeTo(w.geo.blocks)
	}
	return w.out.close()
}

// used returns the first block after everything that is in use.
func (g *geometry) used(data uint64) uint64 {
	if data == 0 {
		return g.end
	}
	return g.data + data
}

// writeGroups writes superblock, descriptors and bitmaps.
func (w *writer) writeGroups() {
	g := &w.geo
	first := make([]byte, BlockSize)
	copy(first[superOffset:], g.superblock())
	desc := make([]byte, (g.blockMaps-g.descriptors)*BlockSize)
	for i := range g.groups {
		blocks, inodes := w.blockMap(i), g.inodeMap(i)
		g.descriptor(desc[i*descSize:], i, group{
			freeBlocks:  w.freeIn(i),
			dirs:        w.dirsIn(i),
			blockMapSum: crcUpdate(checksumSeed, blocks[:g.blocksPerGroup/8]),
			inodeMapSum: crcUpdate(checksumSeed, inodes[:g.inodesPerGroup/8]),
		})
	}
	w.out.write(first)
	w.out.write(desc)
	for i := range g.groups {
		w.out.write(w.blockMap(i))
	}
	for i := range g.groups {
		w.out.write(g.inodeMap(i))
	}
}

// eachHoleIn calls f for the holes in group i, as blocks from the group's start.
func (w *writer) eachHoleIn(i uint32, f func(from, to uint64)) {
	start := uint64(i) * uint64(w.geo.blocksPerGroup)
	end := start + w.geo.groupBlocks(i)
	first := sort.Search(len(w.holes), func(k int) bool { return w.holes[k].to > start })
	for _, h := range w.holes[first:] {
		from, to := max(h.from, start), min(h.to, end)
		if from >= to {
			break
		}
		f(from-start, to-start)
	}
}

func (w *writer) freeIn(i uint32) uint32 {
	free := uint64(0)
	w.eachHoleIn(i, func(from, to uint64) { free += to - from })
	return uint32(free)
}

// blockMap returns the block bitmap of group i. Bits beyond the group are set.
func (w *writer) blockMap(i uint32) []byte {
	b := make([]byte, BlockSize)
	for k := range b {
		b[k] = 0xFF
	}
	w.eachHoleIn(i, func(from, to uint64) {
		for k := from; k < to; k++ {
			b[k/8] &^= 1 << (k % 8)
		}
	})
	return b
}

// inodeMap returns the inode bitmap of group i. Bits beyond the group are set.
func (g *geometry) inodeMap(i uint32) []byte {
	b := make([]byte, BlockSize)
	set := func(k uint32) { b[k/8] |= 1 << (k % 8) }
	for k := range g.groupInodes(i) {
		set(k)
	}
	for k := g.inodesPerGroup; k < maxPerGroup; k++ {
		set(k)
	}
	return b
}

// dirsIn returns the number of directories among the inodes of group i.
func (w *writer) dirsIn(i uint32) uint32 {
	from := i*w.geo.inodesPerGroup + 1
	to := from + w.geo.inodesPerGroup
	n := uint32(0)
	if from <= rootIno && rootIno < to {
		n++
	}
	// All others are numbered from firstIno on.
	last := firstIno + uint32(len(w.dirs)) - 1
	if lo, hi := max(from, firstIno), min(to, last); lo < hi {
		n += hi - lo
	}
	return n
}

// cursors walk the places of what stands outside inodes, in the order of inodes.
type cursors struct {
	data   placeCursor
	tree   uint64
	value  uint64
	inum   uint32
	target uint64
	pool   *attrPool
	exts   []extent
}

func (w *writer) cursors() *cursors {
	return &cursors{
		data:   placeCursor{p: &w.place},
		tree:   w.geo.trees,
		value:  w.geo.values,
		inum:   firstIno + uint32(len(w.nlink)) - 1,
		target: w.geo.targets,
		pool:   newAttrPool(),
	}
}

// mapBlocks returns the extents of node n, and the first block of its tree if it has
// one outside the inode.
func (w *writer) mapBlocks(c *cursors, rank uint32, n *node) (exts []extent, tree uint64) {
	exts = c.exts[:0]
	switch {
	case n.isDir():
		exts = dirExtents(exts, w.geo.dirs+uint64(w.dirs[rank].first), w.dirs[rank].blocks)
	case n.typ == kiln.TypeRegular && len(n.runs) > 0:
		blocks := uint64(n.blocks())
		at, _ := c.data.next(rank, blocks)
		exts = fileExtents(exts, n.runs, blocks, at, w.geo.data)
	case n.typ == kiln.TypeSymlink && len(n.link) >= fastSymlink:
		exts = append(exts, extent{0, 1, c.target})
		c.target++
	}
	c.exts = exts
	tree = c.tree
	c.tree += uint64(treeBlocks(len(exts)))
	return exts, tree
}

// assignAttrs places the attributes of n and numbers the inodes and the block that they
// need.
func (w *writer) assignAttrs(c *cursors, n *node) (set attrSet, block uint32, fresh bool, err error) {
	if len(n.xattrs) == 0 {
		return set, 0, false, nil
	}
	if set, err = n.attrSet(); err != nil {
		return set, 0, false, err
	}
	if len(set.block) > 0 {
		block, fresh = c.pool.use(&set)
	}
	for _, i := range set.big {
		set.block[i].inum = c.inum
		c.inum++
	}
	return set, block, fresh, nil
}

// modeOf returns st_mode.
func modeOf(n *node) uint16 {
	kind := [...]uint16{
		kiln.TypeRegular: modeRegular, kiln.TypeDirectory: modeDir, kiln.TypeSymlink: modeSymlink,
		kiln.TypeCharDevice: modeChar, kiln.TypeBlockDevice: modeBlock, kiln.TypeFIFO: modeFIFO,
	}
	return kind[n.typ] | uint16(n.mode)
}

// writeInodes writes the inode tables of all groups, which form one array.
func (w *writer) writeInodes() error {
	c := w.cursors()
	at := uint32(1)
	put := func(ino uint32, raw []byte) {
		var zero [inodeSize]byte
		for ; at < ino; at++ {
			if (at-1)%inodesPerBlock == 0 && ino-at >= inodesPerBlock {
				at += inodesPerBlock - 1
				w.out.holeTo(w.out.block() + 1)
				continue
			}
			w.out.write(zero[:])
		}
		w.out.write(raw)
		at++
	}
	err := w.eachRank(func(rank uint32, n *node) error {
		raw, err := w.inode(c, rank, n)
		if err == nil {
			put(ino(rank), raw[:])
		}
		return err
	})
	if err != nil || w.values == 0 {
		return err
	}
	return w.eachValue(func(ino uint32, value []byte, block uint64) {
		raw := valueInode(ino, value, block)
		put(ino, raw[:])
	})
}

// inode returns the inode of node n.
func (w *writer) inode(c *cursors, rank uint32, n *node) (raw [inodeSize]byte, err error) {
	exts, tree := w.mapBlocks(c, rank, n)
	set, block, _, err := w.assignAttrs(c, n)
	if err != nil {
		return raw, err
	}
	in := inode{
		mode: modeOf(n), uid: n.uid, gid: n.gid, size: uint64(n.size),
		atime: n.atime, ctime: n.ctime, mtime: n.mtime, links: w.links16(n),
	}
	blocks := uint64(treeBlocks(len(exts)))
	for _, e := range exts {
		blocks += uint64(e.count)
	}
	if len(set.block) > 0 {
		in.attrBlock = w.geo.attrBlocks + uint64(block)
		blocks++
	}
	for _, i := range set.big {
		blocks += blocksOf(len(set.block[i].value))
	}
	in.sectors = blocks * (BlockSize / 512)
	switch {
	case n.isDir():
		d := &w.dirs[rank]
		in.size = uint64(d.blocks) * BlockSize
		if d.leaves > 0 {
			in.flags |= flagIndex
		}
		fallthrough
	case n.typ == kiln.TypeRegular, len(exts) > 0:
		in.flags |= flagExtents
		in.block, _ = buildTree(exts, ino(rank), tree)
	case n.typ == kiln.TypeSymlink:
		copy(in.block[:], n.link)
	case n.typ == kiln.TypeCharDevice, n.typ == kiln.TypeBlockDevice:
		in.block = device(n.major, n.minor)
	}
	inodeAttrs(raw[goodInodeSize+extraIsize:], set.inode)
	in.put(raw[:], ino(rank))
	return raw, nil
}

// links16 returns the link count. A directory with more sub-directories than the field
// holds has the count 1, which means unknown.
func (w *writer) links16(n *node) uint16 {
	if l := w.nlink[n.id]; l <= maxLinks {
		return uint16(l)
	}
	return 1
}

// writeTrees writes the extent tree blocks that do not fit into inodes.
func (w *writer) writeTrees() error {
	c := w.cursors()
	return w.eachRank(func(rank uint32, n *node) error {
		exts, tree := w.mapBlocks(c, rank, n)
		if len(exts) > inodeExtents {
			_, blocks := buildTree(exts, ino(rank), tree)
			w.out.write(blocks)
		}
		return nil
	})
}

// writeAttrBlocks writes the blocks with attributes.
func (w *writer) writeAttrBlocks() error {
	c := w.cursors()
	return w.eachRank(func(_ uint32, n *node) error {
		set, nr, fresh, err := w.assignAttrs(c, n)
		if err != nil || !fresh {
			return err
		}
		var b [BlockSize]byte
		attrBlock(b[:], set.block, uint32(w.attrRefs[nr]))
		sealAttrBlock(b[:], w.geo.attrBlocks+uint64(nr))
		w.out.write(b[:])
		return nil
	})
}

// eachValue calls f for every attribute value that has an inode.
func (w *writer) eachValue(f func(ino uint32, value []byte, block uint64)) error {
	c := w.cursors()
	return w.eachRank(func(_ uint32, n *node) error {
		set, _, _, err := w.assignAttrs(c, n)
		for _, i := range set.big {
			a := &set.block[i]
			f(a.inum, a.value, c.value)
			c.value += blocksOf(len(a.value))
		}
		return err
	})
}

// valueInode returns the inode that holds an attribute value. Its access time is the
// hash of the value, its version the number of references.
func valueInode(ino uint32, value []byte, block uint64) (raw [inodeSize]byte) {
	in := inode{
		mode: modeRegular | 0o600, size: uint64(len(value)), links: 1, version: 1,
		flags: flagExtents | flagEAInode, sectors: blocksOf(len(value)) * (BlockSize / 512),
		atime: timestamp{sec: int64(int32(valueHash(value)))},
	}
	in.block, _ = buildTree(appendExtent(nil, 0, block, blocksOf(len(value))), ino, 0)
	in.put(raw[:], ino)
	return raw
}

// writeValues writes the attribute values that have an inode.
func (w *writer) writeValues() error {
	return w.eachValue(func(_ uint32, value []byte, _ uint64) {
		var pad [BlockSize]byte
		w.out.write(value)
		w.out.write(pad[:blocksOf(len(value))*BlockSize-uint64(len(value))])
	})
}

// writeTargets writes the targets of symlinks that are too long for an inode.
func (w *writer) writeTargets() error {
	return w.eachRank(func(_ uint32, n *node) error {
		if n.typ == kiln.TypeSymlink && len(n.link) >= fastSymlink {
			var b [BlockSize]byte
			copy(b[:], n.link)
			w.out.write(b[:])
		}
		return nil
	})
}

// writeData writes the content of all files, opening each one once.
func (w *writer) writeData(ctx context.Context) error {
	cur := placeCursor{p: &w.place}
	var group *dataGroup
	var parts [2][]byte // pieces and rests of the current group's files
	flush := func() {
		if group != nil {
			w.writeSmall(group, parts[0], parts[1])
			parts[0], parts[1] = parts[0][:0], parts[1][:0]
		}
	}
	err := w.eachRank(func(rank uint32, n *node) error {
		if n.typ != kiln.TypeRegular || len(n.runs) == 0 {
			return nil
		}
		if _, begins := cur.next(rank, uint64(n.blocks())); begins {
			flush()
			group = &w.place.groups[cur.group-1]
			w.out.holeTo(w.geo.data + group.start)
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := w.out.failed(); err != nil {
			return err
		}
		return w.copyFile(n, &parts)
	})
	if err == nil {
		flush()
	}
	return err
}

// writeSmall writes the pieces and the units of a group, whose bodies are written.
func (w *writer) writeSmall(g *dataGroup, pieces, rests []byte) {
	w.out.write(pieces)
	for _, u := range w.place.units[g.from:g.to] {
		if u.blocks > 0 {
			w.out.holeTo(w.geo.data + u.start)
			w.out.write(rests[:u.blocks*BlockSize])
			rests = rests[u.blocks*BlockSize:]
		}
	}
}

// copyFile writes the body of a file to the output and appends the other parts to those
// of its group.
func (w *writer) copyFile(n *node, parts *[2][]byte) error {
	r, err := w.open(n)
	if err != nil {
		return fmt.Errorf("read %q: %w", shorten(n.path()), err)
	}
	defer r.Close()
	d := divide(uint64(n.blocks()))
	left := [3]int64{int64(d.body) * BlockSize, int64(d.mid) * BlockSize, int64(d.rest) * BlockSize}
	pos := int64(0)
	for _, run := range n.runs {
		from := int64(run.start) * BlockSize
		if err := skip(r, from-pos); err != nil {
			return unreadable(n, err)
		}
		pos = from
		for rest := int64(run.count) * BlockSize; rest > 0; {
			k := 0
			for left[k] == 0 {
				k++
			}
			size := min(rest, left[k])
			var dst []byte
			if k == 0 {
				dst = w.out.space()
				dst = dst[:min(int64(len(dst)), size)]
			} else {
				parts[k-1] = grow(parts[k-1], int(size))
				dst = parts[k-1][len(parts[k-1])-int(size):]
			}
			data := dst[:min(int64(len(dst)), n.size-pos)]
			if _, err := io.ReadFull(r, data); err != nil {
				return unreadable(n, err)
			}
			clear(dst[len(data):])
			if k == 0 {
				w.out.advance(len(dst))
			}
			pos += int64(len(data))
			rest -= int64(len(dst))
			left[k] -= int64(len(dst))
		}
	}
	if pos < n.size {
		return nil // ends in a hole
	}
	var one [1]byte
	if k, _ := r.Read(one[:]); k > 0 {
		return fmt.Errorf("read %q: it has grown beyond %d bytes", shorten(n.path()), n.size)
	}
	return nil
}

func unreadable(n *node, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read %q: it ends before its %d bytes", shorten(n.path()), n.size)
	}
	return fmt.Errorf("read %q: %w", shorten(n.path()), err)
}

// grow returns b with n more bytes of any content.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) < n {
		b = append(make([]byte, 0, max(2*cap(b), len(b)+n, 1<<20)), b...)
	}
	return b[:len(b)+n]
}

// skip moves on by n bytes, by seeking where r can.
func skip(r io.Reader, n int64) error {
	if n == 0 {
		return nil
	}
	if s, ok := r.(io.Seeker); ok {
		_, err := s.Seek(n, io.SeekCurrent)
		return err
	}
	_, err := io.CopyN(io.Discard, r, n)
	return err
}

func (w *writer) open(n *node) (io.ReadCloser, error) {
	if n.open == 0 {
		return w.opener.OpenRef(string(n.ref))
	}
	return w.opens[n.open-1]()
}

// lastElement returns where the name in a path key begins.
func lastElement(key []byte) int {
	for i := len(key); i > 0; i-- {
		if key[i-1] == 0 {
			return i
		}
	}
	return 0
}
