package ext4

import "encoding/binary"

// geometry is the shape of an image: what the superblock and the group descriptors say.
type geometry struct {
	blocks         uint64
	blocksPerGroup uint32
	groups         uint32
	inodesPerGroup uint32
	inodes         uint32 // in use, reserved ones included: numbers 1 to inodes

	descriptors uint64 // first block of each part of the metadata
	blockMaps   uint64
	inodeMaps   uint64
	tables      uint64
	dirs        uint64
	trees       uint64
	attrBlocks  uint64
	values      uint64
	targets     uint64
	end         uint64 // of the metadata
	data        uint64 // start of the file data, on a chunk boundary

	incompat uint32
	uuid     [16]byte
	seed     hashSeed
	free     uint64 // blocks
}

// sections are the sizes in blocks of the metadata parts whose size follows from the
// entries alone.
type sections struct{ dirs, trees, attrBlocks, values, targets uint64 }

// newGeometry computes the shape of an image with that many inodes, metadata and data
// blocks.
func newGeometry(inodes uint32, s sections, data, align uint64) geometry {
	g := geometry{inodes: inodes, groups: 1}
	for {
		g.arrange(s, data, align)
		groups := uint32((g.blocks + maxPerGroup - 1) / maxPerGroup)
		// Few blocks and many inodes: smaller groups, so that every group's inodes fit
		// its one bitmap block.
		groups = max(groups, (inodes+maxPerGroup-1)/maxPerGroup)
		if groups <= g.groups {
			break
		}
		g.groups = groups
	}
	g.blocksPerGroup = maxPerGroup
	if natural := uint32((g.blocks + maxPerGroup - 1) / maxPerGroup); natural < g.groups {
		per := (g.blocks + uint64(g.groups) - 1) / uint64(g.groups)
		g.blocksPerGroup = max(uint32(per+7)&^7, 256)
	}
	// The last group holds at least one block: whole groups before it may already hold
	// all of them when blocks per group was rounded up, and then blocks are added.
	if need := uint64(g.groups-1)*uint64(g.blocksPerGroup) + 1; g.blocks < need {
		g.blocks = need
	}
	return g
}

// arrange lays the parts out one after the other for g.groups groups.
func (g *geometry) arrange(s sections, data, align uint64) {
	per := (uint64(g.inodes) + uint64(g.groups) - 1) / uint64(g.groups)
	g.inodesPerGroup = uint32(per+inodesPerBlock-1) &^ (inodesPerBlock - 1)
	n := uint64(g.groups)
	g.descriptors = 1
	g.blockMaps = g.descriptors + (n*descSize+BlockSize-1)/BlockSize
	g.inodeMaps = g.blockMaps + n
	g.tables = g.inodeMaps + n
	g.dirs = g.tables + n*uint64(g.inodesPerGroup/inodesPerBlock)
	g.trees = g.dirs + s.dirs
	g.attrBlocks = g.trees + s.trees
	g.values = g.attrBlocks + s.attrBlocks
	g.targets = g.values + s.values
	g.end = g.targets + s.targets
	g.data = (g.end + align - 1) / align * align
	g.blocks = g.data + data
	if data == 0 {
		g.blocks = g.end
	}
}

// groupBlocks returns the number of blocks in group i.
func (g *geometry) groupBlocks(i uint32) uint64 {
	return min(uint64(g.blocksPerGroup), g.blocks-uint64(i)*uint64(g.blocksPerGroup))
}

// groupInodes returns how many inodes of group i are in use: always its first ones.
func (g *geometry) groupInodes(i uint32) uint32 {
	first := uint64(i) * uint64(g.inodesPerGroup)
	if first >= uint64(g.inodes) {
		return 0
	}
	return uint32(min(uint64(g.inodesPerGroup), uint64(g.inodes)-first))
}

// superblock returns the 1024 bytes of the superblock.
func (g *geometry) superblock() []byte {
	b := make([]byte, superSize)
	le := binary.LittleEndian
	total := g.groups * g.inodesPerGroup
	le.PutUint32(b[0x00:], total)
	le.PutUint32(b[0x04:], uint32(g.blocks))
	le.PutUint32(b[0x0C:], uint32(g.free))
	le.PutUint32(b[0x10:], total-g.inodes)
	le.PutUint32(b[0x18:], blockShift-10)
	le.PutUint32(b[0x1C:], blockShift-10)
	le.PutUint32(b[0x20:], g.blocksPerGroup)
	le.PutUint32(b[0x24:], g.blocksPerGroup)
	le.PutUint32(b[0x28:], g.inodesPerGroup)
	le.PutUint16(b[0x36:], 0xFFFF) // never check because of the number of mounts
	le.PutUint16(b[0x38:], superMagic)
	le.PutUint16(b[0x3A:], 1) // clean
	le.PutUint16(b[0x3C:], 1) // on errors: continue
	le.PutUint32(b[0x4C:], 1) // dynamic revision
	le.PutUint32(b[0x54:], firstIno)
	le.PutUint16(b[0x58:], inodeSize)
	le.PutUint32(b[0x5C:], compatExtAttr|compatDirIndex|compatSparseSuper2)
	le.PutUint32(b[0x60:], g.incompat)
	le.PutUint32(b[0x64:], roSparseSuper|roLargeFile|roHugeFile|roDirNlink|roExtraIsize|roMetadataCsum|roReadonly)
	copy(b[0x68:], g.uuid[:])
	for i, w := range g.seed {
		le.PutUint32(b[0xEC+4*i:], w)
	}
	b[0xFC] = hashHalfMD4
	le.PutUint16(b[0xFE:], descSize)
	le.PutUint32(b[0x150:], uint32(g.blocks>>32))
	le.PutUint32(b[0x158:], uint32(g.free>>32))
	le.PutUint16(b[0x15C:], extraIsize)
	le.PutUint16(b[0x15E:], extraIsize)
	le.PutUint32(b[0x160:], flagUnsignedHash)
	b[0x174] = 4 // log2 of groups per flex group; without meaning for a file system that is never written
	b[0x175] = 1 // CRC-32C
	le.PutUint32(b[0x270:], checksumSeed)
	le.PutUint32(b[0x3FC:], crcUpdate(^uint32(0), b[:0x3FC]))
	return b
}

const (
	hashHalfMD4      = 1
	flagUnsignedHash = 2
	groupZeroed      = 4 // descriptor flag: unused inodes of the table are zero
)

// group is what a descriptor says about one block group beside where things are.
type group struct {
	freeBlocks, dirs uint32
	blockMapSum      uint32
	inodeMapSum      uint32
}

// descriptor writes the descriptor of group i into b.
func (g *geometry) descriptor(b []byte, i uint32, s group) {
	le := binary.LittleEndian
	put := func(lo, hi int, v uint64) {
		le.PutUint32(b[lo:], uint32(v))
		le.PutUint32(b[hi:], uint32(v>>32))
	}
	half := func(lo, hi int, v uint32) {
		le.PutUint16(b[lo:], uint16(v))
		le.PutUint16(b[hi:], uint16(v>>16))
	}
	put(0x00, 0x20, g.blockMaps+uint64(i))
	put(0x04, 0x24, g.inodeMaps+uint64(i))
	put(0x08, 0x28, g.tables+uint64(i)*uint64(g.inodesPerGroup/inodesPerBlock))
	unused := g.inodesPerGroup - g.groupInodes(i)
	half(0x0C, 0x2C, s.freeBlocks)
	half(0x0E, 0x2E, unused)
	half(0x10, 0x30, s.dirs)
	le.PutUint16(b[0x12:], groupZeroed)
	half(0x18, 0x38, s.blockMapSum)
	half(0x1A, 0x3A, s.inodeMapSum)
	half(0x1C, 0x32, unused)
	le.PutUint16(b[0x1E:], descriptorSum(checksumSeed, b, i))
}

// descriptorSum computes the checksum of a descriptor whose checksum field is zero.
func descriptorSum(seed uint32, b []byte, i uint32) uint16 {
	var n [4]byte
	binary.LittleEndian.PutUint32(n[:], i)
	return uint16(crcUpdate(crcUpdate(seed, n[:]), b[:descSize]))
}
