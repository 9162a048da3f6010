package ext4

import (
	"encoding/binary"
	"hash/crc32"
)

// crcUpdate continues an ext4 checksum: CRC-32C without the inversions that most other
// users of the polynomial apply before and after.
func crcUpdate(crc uint32, p []byte) uint32 {
	return ^crc32.Update(^crc, castagnoli, p)
}

// castagnoli is the table of the CRC-32C polynomial; it never changes.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksumSeed begins every checksum but the superblock's. ext4 usually derives it from
// the UUID; here it is one constant for all images (feature metadata_csum_seed), so that
// metadata which is equal in two images is equal in bytes too.
var checksumSeed = crcUpdate(^uint32(0), []byte("kiln rootfs"))

// inodeSeed begins every checksum that belongs to an inode (generation 0).
func inodeSeed(seed, ino uint32) uint32 {
	var b [8]byte
	binary.LittleEndian.PutUint32(b[:], ino)
	return crcUpdate(seed, b[:])
}
