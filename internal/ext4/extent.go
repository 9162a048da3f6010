package ext4

import "encoding/binary"

const (
	extentMagic   = 0xF30A
	extentSize    = 12 // of header, leaf entry and index entry alike
	inodeExtents  = 4  // fit into an inode
	blockExtents  = (BlockSize - extentSize) / extentSize
	maxExtent     = 32768 // blocks
	maxTreeDepth  = 5
	extentSumFrom = extentSize + blockExtents*extentSize
)

// extent maps logical blocks of a file to blocks of the image.
type extent struct {
	logical uint32
	count   uint32 // at most maxExtent
	phys    uint64
}

// appendExtent adds a mapping, merging it into the last one where they continue each
// other and splitting what is too long for one extent.
func appendExtent(dst []extent, logical uint32, phys uint64, count uint64) []extent {
	for count > 0 {
		if n := len(dst); n > 0 {
			e := &dst[n-1]
			if e.count < maxExtent && uint64(e.logical)+uint64(e.count) == uint64(logical) && e.phys+uint64(e.count) == phys {
				c := min(count, uint64(maxExtent-e.count))
				e.count += uint32(c)
				logical, phys, count = logical+uint32(c), phys+c, count-c
				continue
			}
		}
		c := min(count, maxExtent)
		dst = append(dst, extent{logical, uint32(c), phys})
		logical, phys, count = logical+uint32(c), phys+c, count-c
	}
	return dst
}

// treeBlocks returns how many blocks the tree of n extents takes outside the inode.
func treeBlocks(n int) int {
	total := 0
	for n > inodeExtents {
		n = (n + blockExtents - 1) / blockExtents
		total += n
	}
	return total
}

// buildTree returns the 60 bytes of the inode and the blocks of the tree, which will
// stand from block number first on.
func buildTree(exts []extent, ino uint32, first uint64) (root [60]byte, blocks []byte) {
	le := binary.LittleEndian
	type item struct {
		logical uint32
		raw     [extentSize]byte
	}
	level := make([]item, len(exts))
	for i, e := range exts {
		it := item{logical: e.logical}
		le.PutUint32(it.raw[0:], e.logical)
		le.PutUint16(it.raw[4:], uint16(e.count))
		le.PutUint16(it.raw[6:], uint16(e.phys>>32))
		le.PutUint32(it.raw[8:], uint32(e.phys))
		level[i] = it
	}
	put := func(b []byte, items []item, room, depth int) {
		le.PutUint16(b[0:], extentMagic)
		le.PutUint16(b[2:], uint16(len(items)))
		le.PutUint16(b[4:], uint16(room))
		le.PutUint16(b[6:], uint16(depth))
		for i, it := range items {
			copy(b[extentSize*(i+1):], it.raw[:])
		}
	}
	depth := 0
	for ; len(level) > inodeExtents; depth++ {
		var up []item
		for len(level) > 0 {
			n := min(len(level), blockExtents)
			b := make([]byte, BlockSize)
			put(b, level[:n], blockExtents, depth)
			le.PutUint32(b[extentSumFrom:], crcUpdate(inodeSeed(checksumSeed, ino), b[:extentSumFrom]))
			nr := first + uint64(len(blocks)/BlockSize)
			it := item{logical: level[0].logical}
			le.PutUint32(it.raw[0:], it.logical)
			le.PutUint32(it.raw[4:], uint32(nr))
			le.PutUint16(it.raw[8:], uint16(nr>>32))
			up = append(up, it)
			blocks = append(blocks, b...)
			level = level[n:]
		}
		level = up
	}
	put(root[:], level, inodeExtents, depth)
	return root, blocks
}
