package ext4

import (
	"encoding/binary"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/extsort"
)

const (
	direntHeader = 8
	tailSize     = 12                   // the fake entry with the checksum that ends a block
	leafSpace    = BlockSize - tailSize // for entries
	dotsSize     = 24                   // "." and ".."

	indexEntry    = 8
	rootIndexFrom = 32 // in the root block: after the dots and the hash parameters
	nodeIndexFrom = 8
	rootIndexMax  = (BlockSize - rootIndexFrom - 8) / indexEntry
	nodeIndexMax  = (BlockSize - nodeIndexFrom - 8) / indexEntry
)

// A dirent record is keyed by directory, hash and name, all in the order in which an
// indexed directory holds its entries. The value is inode number and type.
const direntKeyHeader = 12

func direntKey(dst []byte, dir, major, minor uint32, name []byte) []byte {
	be := binary.BigEndian
	dst = be.AppendUint32(dst, dir)
	dst = be.AppendUint32(dst, major)
	dst = be.AppendUint32(dst, minor)
	return append(dst, name...)
}

func fileType(t kiln.EntryType) byte {
	switch t {
	case kiln.TypeRegular:
		return ftRegular
	case kiln.TypeDirectory:
		return ftDir
	case kiln.TypeSymlink:
		return ftSymlink
	case kiln.TypeCharDevice:
		return ftChar
	case kiln.TypeBlockDevice:
		return ftBlock
	default:
		return ftFIFO
	}
}

func direntSize(name []byte) int { return direntHeader + align4(len(name)) }

// directory is a directory in the making. Index i of writer.dirs is the root for 0 and
// the inode firstIno+i-1 for the others.
type directory struct {
	parent uint32 // inode
	first  uint32 // block, from the start of the directory section
	blocks uint32
	leaf   uint32 // index of its first leaf in writer.leaves
	leaves uint32 // 0 for a directory of one unindexed block
}

func dirIno(i int) uint32 {
	if i == 0 {
		return rootIno
	}
	return firstIno + uint32(i) - 1
}

// indexLevels returns the sizes of the levels of index nodes below the root, top first,
// for that many leaves.
func indexLevels(leaves int) []int {
	var sizes []int
	for leaves > rootIndexMax {
		leaves = (leaves + nodeIndexMax - 1) / nodeIndexMax
		sizes = append([]int{leaves}, sizes...)
	}
	return sizes
}

// direntCursor reads sorted directory entries, one directory after the other.
type direntCursor struct {
	it   *extsort.Iterator
	have bool // the current record has not been consumed
}

// next returns the next entry of directory ino, or ok false when it has no more.
func (c *direntCursor) next(ino uint32) (hash uint32, name []byte, child uint32, ft byte, ok bool) {
	if !c.have {
		if !c.it.Next() {
			return
		}
		c.have = true
	}
	if binary.BigEndian.Uint32(c.it.Key) != ino {
		return
	}
	c.have = false
	hash = binary.BigEndian.Uint32(c.it.Key[4:])
	return hash, c.it.Key[direntKeyHeader:], binary.LittleEndian.Uint32(c.it.Value), c.it.Value[4], true
}

// planDirs decides for every directory whether it is one block or an indexed one, and
// where its blocks go. It returns the number of blocks of all of them.
func (w *writer) planDirs() (uint64, error) {
	cur := direntCursor{it: w.dirents.Sorted()}
	total := uint64(0)
	for i := range w.dirs {
		d := &w.dirs[i]
		d.first, d.leaf = uint32(total), uint32(len(w.leaves))
		flat, room, last, n := dotsSize, 0, uint32(0), 0
		for {
			hash, name, _, _, ok := cur.next(dirIno(i))
			if !ok {
				break
			}
			size := direntSize(name)
			flat = min(flat+size, BlockSize)
			if size > room {
				first := hash
				if n > 0 && hash == last {
					first |= 1 // this leaf goes on with the hash that the one before ended with
				}
				w.leaves = append(w.leaves, first)
				room = leafSpace
			}
			room -= size
			last = hash
			n++
		}
		if flat <= leafSpace {
			w.leaves = w.leaves[:d.leaf]
			d.blocks = 1
		} else {
			d.leaves = uint32(len(w.leaves)) - d.leaf
			levels := indexLevels(int(d.leaves))
			if len(levels) > 1 {
				w.incompat |= incompatLargeDir
			}
			d.blocks = 1 + d.leaves
			for _, l := range levels {
				d.blocks += uint32(l)
			}
			if uint64(d.blocks)*BlockSize > 1<<31 {
				w.incompat |= incompatLargeDir
			}
		}
		total += uint64(d.blocks)
	}
	return total, cur.it.Err()
}

// writeDirs writes the blocks of all directories.
func (w *writer) writeDirs() error {
	cur := direntCursor{it: w.dirents.Sorted()}
	for i := range w.dirs {
		d, ino := &w.dirs[i], dirIno(i)
		b := blockBuilder{w: w, seed: inodeSeed(checksumSeed, ino)}
		if d.leaves == 0 {
			b.add(ino, ftDir, []byte("."))
			b.add(d.parent, ftDir, []byte(".."))
		} else {
			w.writeIndex(d, ino)
		}
		for {
			_, name, child, ft, ok := cur.next(ino)
			if !ok {
				break
			}
			b.add(child, ft, name)
		}
		b.flush()
	}
	return cur.it.Err()
}

// blockBuilder packs entries into directory blocks.
type blockBuilder struct {
	w     *writer
	seed  uint32
	block [BlockSize]byte
	used  int
	last  int // offset of the last entry
}

func (b *blockBuilder) add(ino uint32, ft byte, name []byte) {
	if b.used+direntSize(name) > leafSpace {
		b.flush()
	}
	putDirent(b.block[b.used:], ino, direntSize(name), ft, name)
	b.last = b.used
	b.used += direntSize(name)
}

// flush writes the block: its last entry takes all that is left.
func (b *blockBuilder) flush() {
	le := binary.LittleEndian
	le.PutUint16(b.block[b.last+4:], uint16(leafSpace-b.last))
	putDirent(b.block[leafSpace:], 0, tailSize, ftChecksum, nil)
	le.PutUint32(b.block[leafSpace+8:], crcUpdate(b.seed, b.block[:leafSpace]))
	b.w.out.write(b.block[:])
	b.block, b.used, b.last = [BlockSize]byte{}, 0, 0
}

func putDirent(b []byte, ino uint32, size int, ft byte, name []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], ino)
	le.PutUint16(b[4:], uint16(size))
	b[6], b[7] = byte(len(name)), ft
	copy(b[direntHeader:], name)
}

// indexItem points from an index block to a block of the level below.
type indexItem struct{ hash, block uint32 }

// writeIndex writes the root block and the index nodes of a directory. Its blocks stand
// in the order root, nodes from the top level down, leaves.
func (w *writer) writeIndex(d *directory, ino uint32) {
	levels := indexLevels(int(d.leaves))
	at := uint32(1)
	starts := make([]uint32, len(levels)+1)
	for i, n := range levels {
		starts[i] = at
		at += uint32(n)
	}
	starts[len(levels)] = at
	items := make([]indexItem, d.leaves)
	for i := range items {
		items[i] = indexItem{w.leaves[d.leaf+uint32(i)], at + uint32(i)}
	}
	seed := inodeSeed(checksumSeed, ino)
	nodes := make([][]byte, len(levels)) // the blocks of each level
	for l := len(levels) - 1; l >= 0; l-- {
		var up []indexItem
		for len(items) > 0 {
			n := min(len(items), nodeIndexMax)
			var b [BlockSize]byte
			putDirent(b[:], 0, BlockSize, 0, nil)
			putIndex(b[:], nodeIndexFrom, nodeIndexMax, items[:n], seed)
			up = append(up, indexItem{items[0].hash, starts[l] + uint32(len(nodes[l])/BlockSize)})
			nodes[l] = append(nodes[l], b[:]...)
			items = items[n:]
		}
		items = up
	}
	var root [BlockSize]byte
	putDirent(root[0:], ino, 12, ftDir, []byte("."))
	putDirent(root[12:], d.parent, BlockSize-12, ftDir, []byte(".."))
	root[28], root[29], root[30] = hashHalfMD4, 8, byte(len(levels))
	putIndex(root[:], rootIndexFrom, rootIndexMax, items, seed)
	w.out.write(root[:])
	for _, n := range nodes {
		w.out.write(n)
	}
}

// putIndex writes index entries and the checksum behind them into b. The first entry's
// hash is implied; its place holds the limit and the count.
func putIndex(b []byte, from, limit int, items []indexItem, seed uint32) {
	le := binary.LittleEndian
	for i, it := range items {
		le.PutUint32(b[from+i*indexEntry:], it.hash)
		le.PutUint32(b[from+i*indexEntry+4:], it.block)
	}
	le.PutUint16(b[from:], uint16(limit))
	le.PutUint16(b[from+2:], uint16(len(items)))
	le.PutUint32(b[BlockSize-4:], indexSum(b, from, len(items), seed))
}

// indexSum computes the checksum of an index block: over what is in use and over the
// eight bytes of the tail, whose second half is the checksum itself and counts as zero.
func indexSum(b []byte, from, count int, seed uint32) uint32 {
	var zero [4]byte
	crc := crcUpdate(seed, b[:from+count*indexEntry])
	crc = crcUpdate(crc, b[BlockSize-8:BlockSize-4])
	return crcUpdate(crc, zero[:])
}
