package ext4

import "encoding/binary"

// inode holds the fields of an inode that this package uses.
type inode struct {
	mode                uint16
	uid, gid            uint32
	size                uint64
	atime, ctime, mtime timestamp
	links               uint16
	sectors             uint64 // 512-byte units
	flags               uint32
	version             uint64
	block               [60]byte
	attrBlock           uint64
}

// put writes the inode into b, which is zero apart from attributes that are already in
// their place, and seals it.
func (n *inode) put(b []byte, ino uint32) {
	le := binary.LittleEndian
	le.PutUint16(b[0x00:], n.mode)
	le.PutUint16(b[0x02:], uint16(n.uid))
	le.PutUint32(b[0x04:], uint32(n.size))
	le.PutUint16(b[0x18:], uint16(n.gid))
	le.PutUint16(b[0x1A:], n.links)
	le.PutUint32(b[0x1C:], uint32(n.sectors))
	le.PutUint32(b[0x20:], n.flags)
	le.PutUint32(b[0x24:], uint32(n.version))
	copy(b[0x28:0x64], n.block[:])
	le.PutUint32(b[0x68:], uint32(n.attrBlock))
	le.PutUint32(b[0x6C:], uint32(n.size>>32))
	le.PutUint16(b[0x74:], uint16(n.sectors>>32))
	le.PutUint16(b[0x76:], uint16(n.attrBlock>>32))
	le.PutUint16(b[0x78:], uint16(n.uid>>16))
	le.PutUint16(b[0x7A:], uint16(n.gid>>16))
	le.PutUint16(b[0x80:], extraIsize)
	le.PutUint32(b[0x98:], uint32(n.version>>32))
	for _, t := range []struct {
		low, extra int
		v          timestamp
	}{{0x08, 0x8C, n.atime}, {0x0C, 0x84, n.ctime}, {0x10, 0x88, n.mtime}, {0x90, 0x94, n.mtime}} {
		le.PutUint32(b[t.low:], uint32(t.v.sec))
		le.PutUint32(b[t.extra:], t.v.extra())
	}
	sum := inodeSum(checksumSeed, b, ino)
	le.PutUint16(b[0x7C:], uint16(sum))
	le.PutUint16(b[0x82:], uint16(sum>>16))
}

// extra returns the bits that do not fit into the classic 32-bit seconds: two bits of
// epoch and thirty of nanoseconds.
func (s timestamp) extra() uint32 {
	epoch := uint32((s.sec-int64(int32(s.sec)))>>32) & 3
	return epoch | s.nsec<<2
}

func unpackTime(low, extra uint32) timestamp {
	return timestamp{int64(int32(low)) + int64(extra&3)<<32, extra >> 2}
}

// inodeSum computes the checksum of the inode in b, taking its checksum fields as zero.
func inodeSum(seed uint32, b []byte, ino uint32) uint32 {
	var zero [2]byte
	crc := inodeSeed(seed, ino)
	crc = crcUpdate(crc, b[:0x7C])
	crc = crcUpdate(crc, zero[:])
	crc = crcUpdate(crc, b[0x7E:0x82])
	crc = crcUpdate(crc, zero[:])
	return crcUpdate(crc, b[0x84:inodeSize])
}

// device packs device numbers the way inodes hold them.
func device(major, minor uint32) (block [60]byte) {
	le := binary.LittleEndian
	if major < 256 && minor < 256 {
		le.PutUint32(block[0:], major<<8|minor)
	} else {
		le.PutUint32(block[4:], minor&0xff|major<<8|(minor&^0xff)<<12)
	}
	return block
}

func unpackDevice(block []byte) (major, minor uint32) {
	le := binary.LittleEndian
	if old := le.Uint32(block); old != 0 {
		return old >> 8 & 0xff, old & 0xff
	}
	dev := le.Uint32(block[4:])
	return dev >> 8 & 0xfff, dev&0xff | dev>>12&0xfff00
}

// Limits of device numbers.
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)
