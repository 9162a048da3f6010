package ext4

import (
	"crypto/sha256"
	"encoding/binary"
)

const (
	maxAttrRefs  = 1024    // inodes that may share one attribute block
	maxAttrCache = 1 << 16 // distinct sets remembered for sharing
)

// attrPool numbers attribute blocks, one for all inodes with the same attributes.
// Calling use again for the same inodes in the same order gives the same numbers.
type attrPool struct {
	refs []uint16 // by block
	seen map[[sha256.Size]byte]uint32
}

func newAttrPool() *attrPool {
	return &attrPool{seen: map[[sha256.Size]byte]uint32{}}
}

// use returns the number of the block for a set with something in its block part, and
// whether the block is a new one.
func (p *attrPool) use(set *attrSet) (nr uint32, fresh bool) {
	if len(set.big) > 0 { // a value in an inode belongs to one block
		return p.add(), true
	}
	key := set.key()
	if nr, ok := p.seen[key]; ok && p.refs[nr] < maxAttrRefs {
		p.refs[nr]++
		return nr, false
	}
	nr = p.add()
	if _, ok := p.seen[key]; ok || len(p.seen) < maxAttrCache {
		p.seen[key] = nr
	}
	return nr, true
}

func (p *attrPool) add() uint32 {
	p.refs = append(p.refs, 1)
	return uint32(len(p.refs) - 1)
}

func (s *attrSet) key() [sha256.Size]byte {
	var b []byte
	for _, a := range s.block {
		b = append(b, a.index)
		b = binary.AppendUvarint(b, uint64(len(a.name)))
		b = append(b, a.name...)
		b = binary.AppendUvarint(b, uint64(len(a.value)))
		b = append(b, a.value...)
	}
	return sha256.Sum256(b)
}
