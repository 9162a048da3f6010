package ext4

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"math"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/extsort"
)

// rankNodes sorts the nodes into the order of their inodes, which is also that of their
// data. The order does not depend on which of several hardlinks was met as the file.
func (w *writer) rankNodes() error {
	w.ranks = extsort.NewSorter(w.opt.TempDir, w.opt.sortMemory)
	names := nameCursor{it: w.names.Sorted()}
	nodes := w.nodes.All()
	var n node
	var key, rec []byte
	for nodes.Next() {
		if err := n.decode(nodes.Value); err != nil {
			return err
		}
		var all hash.Hash
		own := n.key
		for {
			name, _, ok := names.next(n.id)
			if !ok {
				break
			}
			if all == nil {
				all = sha256.New()
				if string(name) < string(own) {
					n.key = append([]byte(nil), name...)
				}
			}
			if own != nil && string(own) < string(name) {
				hashName256(all, own)
				own = nil
			}
			hashName256(all, name)
		}
		if all != nil {
			if own != nil {
				hashName256(all, own)
			}
			n.names = all.Sum(nil)
		}
		key = rankKey(key[:0], &n)
		rec = appendNode(rec[:0], &n)
		if err := w.ranks.Add(key, rec); err != nil {
			return err
		}
	}
	if err := names.it.Err(); err != nil {
		return err
	}
	return nodes.Err()
}

func hashName256(h hash.Hash, name []byte) {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(len(name)))
	h.Write(b[:])
	h.Write(name)
}

// rankKey sorts directories first, by path, then everything else by the time of its last
// change: what one package or one build step brought stays together, and what a further
// layer adds comes between, not among it. Ties are in the order of paths.
func rankKey(dst []byte, n *node) []byte {
	if n.isDir() {
		return append(append(dst, 0), n.key...)
	}
	dst = append(dst, 1)
	dst = binary.BigEndian.AppendUint64(dst, uint64(n.mtime.sec)^1<<63)
	dst = binary.BigEndian.AppendUint32(dst, n.mtime.nsec)
	return append(dst, n.key...)
}

// ino returns the inode number of a rank.
func ino(rank uint32) uint32 { return dirIno(int(rank)) }

// eachRank calls f for every node in the order of the inodes.
func (w *writer) eachRank(f func(rank uint32, n *node) error) error {
	it := w.ranks.Sorted()
	var n node
	for rank := uint32(0); it.Next(); rank++ {
		if err := n.decode(it.Value); err != nil {
			return err
		}
		if err := f(rank, &n); err != nil {
			return err
		}
	}
	return it.Err()
}

// planInodes numbers the inodes, places file data, and counts what goes outside inodes.
func (w *writer) planInodes() error {
	w.inos = make([]uint32, len(w.nlink))
	w.dirs = make([]directory, w.dirCount)
	sum := sha256.New()
	pool := newAttrPool()
	var exts []extent
	var rec []byte
	err := w.eachRank(func(rank uint32, n *node) error {
		w.inos[n.id] = ino(rank)
		if n.isDir() {
			// Directories come in the order of paths, so the parent has its number.
			w.dirs[rank].parent = w.inos[n.parent]
		}
		rec = w.identity(rec[:0], n)
		sum.Write(rec)
		if len(n.xattrs) > 0 {
			set, err := n.attrSet()
			if err != nil {
				return refuse(n.path(), "%v", err)
			}
			if len(set.block) > 0 {
				pool.use(&set)
			}
			for _, i := range set.big {
				w.values++
				w.size.values += blocksOf(len(set.block[i].value))
			}
		}
		switch {
		case n.typ == kiln.TypeRegular:
			blocks := uint64(n.blocks())
			if blocks == 0 {
				return nil
			}
			w.place.add(rank, n.mtime.sec, n.key, blocks)
			if len(n.runs) > 1 || blocks > maxExtent {
				w.fragmented = true // it may need an extent tree
			}
		case n.typ == kiln.TypeSymlink && len(n.link) >= fastSymlink:
			w.size.targets++
		}
		return nil
	})
	if err != nil {
		return err
	}
	w.place.finish()
	if w.fragmented {
		cur := placeCursor{p: &w.place}
		err = w.eachRank(func(rank uint32, n *node) error {
			blocks := uint64(n.blocks())
			if n.typ != kiln.TypeRegular || blocks == 0 {
				return nil
			}
			at, _ := cur.next(rank, blocks)
			exts = fileExtents(exts[:0], n.runs, blocks, at, 0)
			w.size.trees += uint64(treeBlocks(len(exts)))
			return nil
		})
	}
	w.size.attrBlocks = uint64(len(pool.refs))
	w.attrRefs = pool.refs
	digest := sum.Sum(nil)
	copy(w.uuid[:], digest)
	w.uuid[6] = w.uuid[6]&0x0f | 0x80 // version 8: derived in a way of our own
	w.uuid[8] = w.uuid[8]&0x3f | 0x80
	for i := range w.seed {
		w.seed[i] = binary.LittleEndian.Uint32(digest[16+4*i:])
	}
	return err
}

// identity appends everything about a node that belongs to the image, and nothing that
// belongs to the way in which it came.
func (w *writer) identity(rec []byte, n *node) []byte {
	c := *n
	c.id, c.parent, c.open, c.ref = 0, 0, 0, nil
	return appendNode(rec, &c)
}

func (n *node) attrSet() (attrSet, error) {
	attrs := make([]attr, 0, len(n.xattrs))
	for _, x := range n.xattrs {
		a, _, err := toAttr(x)
		if err != nil {
			return attrSet{}, err
		}
		attrs = append(attrs, a)
	}
	return placeAttrs(attrs)
}

func blocksOf(n int) uint64 { return uint64(n+BlockSize-1) / BlockSize }

// planDirents sorts the names of every directory by their hash.
func (w *writer) planDirents() error {
	w.dirents = extsort.NewSorter(w.opt.TempDir, w.opt.sortMemory)
	var key []byte
	add := func(parent, child uint32, typ kiln.EntryType, path []byte) error {
		name := path[lastElement(path):]
		major, minor := dirHash(name, w.seed)
		key = direntKey(key[:0], w.inos[parent], major, minor, name)
		value := binary.LittleEndian.AppendUint32(nil, w.inos[child])
		return w.dirents.Add(key, append(value, fileType(typ)))
	}
	names := nameCursor{it: w.names.Sorted()}
	nodes := w.nodes.All()
	var n node
	for nodes.Next() {
		if err := n.decode(nodes.Value); err != nil {
			return err
		}
		if n.id != 0 {
			if err := add(n.parent, n.id, n.typ, n.key); err != nil {
				return err
			}
		}
		for {
			name, parent, ok := names.next(n.id)
			if !ok {
				break
			}
			if err := add(parent, n.id, n.typ, name); err != nil {
				return err
			}
		}
	}
	if err := names.it.Err(); err != nil {
		return err
	}
	return nodes.Err()
}

// planLayout fixes where everything goes.
func (w *writer) planLayout() error {
	dirs, err := w.planDirs()
	if err != nil {
		return err
	}
	w.size.dirs = dirs
	for i := range w.dirs {
		w.size.trees += uint64(treeBlocks(len(dirExtents(nil, 0, w.dirs[i].blocks))))
	}
	inodes := uint64(firstIno-1) + uint64(len(w.nlink)-1) + uint64(w.values)
	if inodes > math.MaxUint32-maxPerGroup {
		return kiln.Errorf(kiln.CodeInvalid, "the root filesystem has %d files, more than ext4 can number", inodes)
	}
	if w.values > 0 {
		w.incompat |= incompatEAInode
	}
	data := w.place.blocks()
	w.geo = newGeometry(uint32(inodes), w.size, data, chunkBlocks)
	if w.geo.blocks > maxBlocks {
		return kiln.Errorf(kiln.CodeInvalid, "the root filesystem takes %d blocks of 4 KiB, more than the %d of 16 TiB", w.geo.blocks, uint64(maxBlocks))
	}
	w.geo.incompat = w.incompat | incompatFiletype | incompatExtents | incompat64bit | incompatFlexBG | incompatCsumSeed
	w.geo.uuid, w.geo.seed = w.uuid, w.seed
	w.holes = nil
	hole := func(from, to uint64) {
		w.holes = append(w.holes, blockRange{from, to})
		w.geo.free += to - from
	}
	if data > 0 && w.geo.end < w.geo.data {
		hole(w.geo.end, w.geo.data)
	}
	w.place.gaps(func(from, to uint64) { hole(w.geo.data+from, w.geo.data+to) })
	if used := w.geo.used(data); used < w.geo.blocks {
		hole(used, w.geo.blocks)
	}
	return nil
}

// blockRange is a range of blocks of the image.
type blockRange struct{ from, to uint64 }

// dirExtents maps the blocks of a directory, which are contiguous.
func dirExtents(dst []extent, first uint64, blocks uint32) []extent {
	return appendExtent(dst, 0, first, uint64(blocks))
}
