package ext4

// Numbers of the on-disk format, as the Linux kernel documents them
// (Documentation/filesystems/ext4). All integers on disk are little-endian.
const (
	// BlockSize is the only block size written; the reader takes no other.
	BlockSize = 4096

	blockShift     = 12
	superOffset    = 1024
	superSize      = 1024
	superMagic     = 0xEF53
	descSize       = 64
	inodeSize      = 256
	goodInodeSize  = 128 // the part that ext2 had
	extraIsize     = 32
	inodesPerBlock = BlockSize / inodeSize

	rootIno     = 2
	firstIno    = 11 // first that is not reserved
	maxPerGroup = 8 * BlockSize

	maxNameLen    = 255
	maxSymlinkLen = BlockSize - 1
	fastSymlink   = 60 // symlinks shorter than this live in the inode
	maxLinks      = 65000
	maxBlocks     = 1 << 32 // 16 TiB: extents name 32-bit logical blocks, and so does this writer for physical ones
)

// Feature flags.
const (
	compatExtAttr      = 0x0008
	compatDirIndex     = 0x0020
	compatSparseSuper2 = 0x0200

	incompatFiletype = 0x0002
	incompatExtents  = 0x0040
	incompat64bit    = 0x0080
	incompatFlexBG   = 0x0200
	incompatEAInode  = 0x0400
	incompatCsumSeed = 0x2000
	incompatLargeDir = 0x4000

	roSparseSuper  = 0x0001
	roLargeFile    = 0x0002
	roHugeFile     = 0x0008
	roDirNlink     = 0x0020
	roExtraIsize   = 0x0040
	roMetadataCsum = 0x0400
	roReadonly     = 0x1000
)

// File types in st_mode.
const (
	modeFIFO    = 0x1000
	modeChar    = 0x2000
	modeDir     = 0x4000
	modeBlock   = 0x6000
	modeRegular = 0x8000
	modeSymlink = 0xA000
	modeSocket  = 0xC000
	modeType    = 0xF000
)

// File types in directory entries.
const (
	ftRegular  = 1
	ftDir      = 2
	ftChar     = 3
	ftBlock    = 4
	ftFIFO     = 5
	ftSocket   = 6
	ftSymlink  = 7
	ftChecksum = 0xDE // of the fake entry that holds a block's checksum
)

// Inode flags.
const (
	flagIndex   = 0x00001000
	flagExtents = 0x00080000
	flagEAInode = 0x00200000
	flagInline  = 0x10000000
)
