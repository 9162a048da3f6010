package ext4

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

const (
	xattrMagic       = 0xEA020000
	xattrEntryHeader = 16
	xattrBlockHeader = 32
	xattrBlockSpace  = BlockSize - xattrBlockHeader - 4 // 4: the null word after the last entry
	xattrInodeSpace  = inodeSize - goodInodeSize - extraIsize - 4 - 4
	xattrMaxValue    = 64 << 10 // XATTR_SIZE_MAX
	xattrMaxName     = 255
)

// attr is an extended attribute as ext4 stores it: the prefix of the name as a number,
// the rest of it, the value in ext4's encoding.
type attr struct {
	index byte
	name  []byte
	value []byte
	inum  uint32 // inode that holds the value, 0 when it is stored here
}

// xattrIndex is the table of name prefixes. Whole names come before prefixes.
var xattrIndex = []struct {
	index byte
	name  string
	whole bool
}{
	{2, "system.posix_acl_access", true},
	{3, "system.posix_acl_default", true},
	{1, "user.", false},
	{4, "trusted.", false},
	{6, "security.", false},
}

// toAttr converts one attribute. ok is false when ext4 has no place for such a name.
func toAttr(x xattr) (a attr, ok bool, err error) {
	for _, p := range xattrIndex {
		rest, found := strings.CutPrefix(string(x.name), p.name)
		switch {
		case !found || p.whole != (rest == ""):
			continue
		case len(rest) > xattrMaxName:
			return attr{}, false, fmt.Errorf("attribute name %.40q… is longer than %d bytes", x.name, xattrMaxName)
		case len(x.value) > xattrMaxValue:
			return attr{}, false, fmt.Errorf("attribute %q has %d bytes, more than %d", x.name, len(x.value), xattrMaxValue)
		}
		a = attr{index: p.index, name: []byte(rest), value: x.value}
		if p.whole {
			if a.value, err = aclToDisk(x.value); err != nil {
				return attr{}, false, fmt.Errorf("attribute %q: %w", x.name, err)
			}
		}
		return a, true, nil
	}
	return attr{}, false, nil
}

// fullName is the inverse of the name part of toAttr.
func fullName(index byte, rest []byte) (string, error) {
	for _, p := range xattrIndex {
		if p.index == index {
			return p.name + string(rest), nil
		}
	}
	return "", fmt.Errorf("attribute %q has unknown name index %d", rest, index)
}

func align4(n int) int { return (n + 3) &^ 3 }

func (a *attr) entrySize() int { return align4(xattrEntryHeader + len(a.name)) }
func (a *attr) size() int {
	if a.inum != 0 {
		return a.entrySize()
	}
	return a.entrySize() + align4(len(a.value))
}

// attrSet says where the attributes of one inode go.
type attrSet struct {
	inode []attr // after the inode's own fields
	block []attr // in a block of their own
	// big lists those of block whose values take an inode each; inum is set by the caller.
	big []int
}

// placeAttrs distributes attributes over inode, block and inodes for values. It depends
// on nothing but the attributes.
func placeAttrs(attrs []attr) (attrSet, error) {
	slices.SortFunc(attrs, func(a, b attr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), bytes.Compare(a.name, b.name))
	})
	var set attrSet
	room, total := xattrInodeSpace, 0
	for _, a := range attrs {
		if a.size() <= room {
			room -= a.size()
			set.inode = append(set.inode, a)
			continue
		}
		total += a.size()
		set.block = append(set.block, a)
	}
	for total > xattrBlockSpace {
		largest := -1
		for i, a := range set.block {
			if !slices.Contains(set.big, i) && len(a.value) > 0 && (largest < 0 || len(a.value) > len(set.block[largest].value)) {
				largest = i
			}
		}
		if largest < 0 {
			return attrSet{}, fmt.Errorf("names of extended attributes take %d bytes, more than the %d of a block", total, xattrBlockSpace)
		}
		set.big = append(set.big, largest)
		total -= align4(len(set.block[largest].value))
	}
	slices.Sort(set.big)
	return set, nil
}

// putAttrs writes entries from base[at:] on and values backwards from the end of base;
// value offsets count from the start of base. Hashes are written in blocks only, as the
// kernel does.
func putAttrs(base []byte, at int, attrs []attr, hashes bool) {
	le := binary.LittleEndian
	end := len(base)
	for _, a := range attrs {
		e := base[at:]
		e[0], e[1] = byte(len(a.name)), a.index
		le.PutUint32(e[8:], uint32(len(a.value)))
		copy(e[xattrEntryHeader:], a.name)
		if a.inum != 0 {
			le.PutUint32(e[4:], a.inum)
			le.PutUint32(e[12:], hashWord(hashName(a.name), valueHash(a.value)))
		} else {
			if len(a.value) > 0 {
				end -= align4(len(a.value))
				le.PutUint16(e[2:], uint16(end))
				copy(base[end:], a.value)
			}
			if hashes {
				le.PutUint32(e[12:], hashAttr(&a))
			}
		}
		at += a.entrySize()
	}
}

// inodeAttrs writes attributes into the space after an inode's fields.
func inodeAttrs(space []byte, attrs []attr) {
	if len(attrs) == 0 {
		return
	}
	binary.LittleEndian.PutUint32(space, xattrMagic)
	putAttrs(space[4:], 0, attrs, false)
}

// attrBlock fills b, a zeroed block, but for its checksum.
func attrBlock(b []byte, attrs []attr, refs uint32) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], xattrMagic)
	le.PutUint32(b[4:], refs)
	le.PutUint32(b[8:], 1)
	putAttrs(b, xattrBlockHeader, attrs, true)
	hash, at := uint32(0), xattrBlockHeader
	for _, a := range attrs {
		h := le.Uint32(b[at+12:])
		if h == 0 { // an entry without a hash makes the block unshareable, for the kernel
			hash = 0
			break
		}
		hash = hash<<16 ^ hash>>16 ^ h
		at += a.entrySize()
	}
	le.PutUint32(b[12:], hash)
}

// sealAttrBlock writes the checksum of an attribute block that stands at block number nr.
func sealAttrBlock(b []byte, nr uint64) {
	binary.LittleEndian.PutUint32(b[16:], 0)
	binary.LittleEndian.PutUint32(b[16:], attrBlockSum(checksumSeed, b, nr))
}

// attrBlockSum computes the checksum over a block whose checksum field is zero.
func attrBlockSum(seed uint32, b []byte, nr uint64) uint32 {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], nr)
	return crcUpdate(crcUpdate(seed, n[:]), b)
}

func hashName(name []byte) uint32 {
	h := uint32(0)
	for _, c := range name {
		h = h<<5 ^ h>>27 ^ uint32(c)
	}
	return h
}

func hashWord(h, w uint32) uint32 { return h<<16 ^ h>>16 ^ w }

func hashAttr(a *attr) uint32 {
	h := hashName(a.name)
	v := a.value
	for len(v) >= 4 {
		h = hashWord(h, binary.LittleEndian.Uint32(v))
		v = v[4:]
	}
	if len(v) > 0 {
		var w [4]byte
		copy(w[:], v)
		h = hashWord(h, binary.LittleEndian.Uint32(w[:]))
	}
	return h
}

// valueHash is the hash of a value that lives in an inode of its own.
func valueHash(value []byte) uint32 { return crcUpdate(checksumSeed, value) }
