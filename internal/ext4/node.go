package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"

	"github.com/kilnvm/kiln"
)

// node is what becomes one inode: an entry on its way through the writer. Between
// passes nodes are kept as records (see appendNode), because a million of them would not
// fit into the memory that the writer allows itself.
type node struct {
	key      []byte // path with NUL for slash: sorts a directory right before its content
	id       uint32 // position in path order
	parent   uint32 // id of the directory
	typ      kiln.EntryType
	mode     uint32 // permission bits
	uid, gid uint32
	mtime    timestamp
	atime    timestamp
	ctime    timestamp
	major    uint32
	minor    uint32
	link     []byte // target of a symlink; path of what a hardlink names
	xattrs   []xattr
	size     int64
	runs     []run // data of a regular file, in blocks
	ref      []byte
	names    []byte // digest of all names of a file that has several
	open     uint32 // 1 + index among the kept Open functions, 0 when ref serves
}

// run is a range of logical blocks of a file that holds data.
type run struct{ start, count uint32 }

// xattr is an extended attribute with its full name and the kernel's value.
type xattr struct{ name, value []byte }

// timestamp is a time as an inode holds it.
type timestamp struct {
	sec  int64
	nsec uint32
}

// The range of times that 34 bits of seconds hold, from 1901 to 2446.
const (
	minSeconds = -1 << 31
	maxSeconds = 1<<34 - 1<<31 - 1
)

// stamp converts t, moving it into the range that ext4 can hold. The zero time, that of
// an entry which says nothing, becomes 1970.
func stamp(t time.Time) (s timestamp, clamped bool) {
	switch sec := t.Unix(); {
	case t.IsZero():
		return timestamp{}, false
	case sec < minSeconds:
		return timestamp{minSeconds, 0}, true
	case sec > maxSeconds:
		return timestamp{maxSeconds, 0}, true
	default:
		return timestamp{sec, uint32(t.Nanosecond())}, false
	}
}

func (s timestamp) time() time.Time { return time.Unix(s.sec, int64(s.nsec)).UTC() }

func (n *node) isDir() bool { return n.typ == kiln.TypeDirectory }

// path returns the path for messages.
func (n *node) path() string { return keyPath(n.key) }

func keyPath(key []byte) string {
	if len(key) == 0 {
		return "."
	}
	return string(bytes.ReplaceAll(key, []byte{0}, []byte{'/'}))
}

func pathKey(dst []byte, path string) []byte {
	if path == "." {
		return dst
	}
	start := len(dst)
	dst = append(dst, path...)
	for i := start; i < len(dst); i++ {
		if dst[i] == '/' {
			dst[i] = 0
		}
	}
	return dst
}

// blocks returns how many blocks the content of a regular file takes.
func (n *node) blocks() int64 {
	total := int64(0)
	for _, r := range n.runs {
		total += int64(r.count)
	}
	return total
}

// appendNode appends the record of n to b.
func appendNode(b []byte, n *node) []byte {
	u := binary.AppendUvarint
	bs := func(b, p []byte) []byte { return append(u(b, uint64(len(p))), p...) }
	ts := func(b []byte, t timestamp) []byte {
		return u(binary.AppendVarint(b, t.sec), uint64(t.nsec))
	}
	b = bs(b, n.key)
	b = u(u(b, uint64(n.id)), uint64(n.parent))
	b = append(b, byte(n.typ))
	b = u(u(u(b, uint64(n.mode)), uint64(n.uid)), uint64(n.gid))
	b = ts(ts(ts(b, n.mtime), n.atime), n.ctime)
	b = u(u(b, uint64(n.major)), uint64(n.minor))
	b = bs(b, n.link)
	b = u(b, uint64(len(n.xattrs)))
	for _, x := range n.xattrs {
		b = bs(bs(b, x.name), x.value)
	}
	b = u(b, uint64(n.size))
	b = u(b, uint64(len(n.runs)))
	for _, r := range n.runs {
		b = u(u(b, uint64(r.start)), uint64(r.count))
	}
	b = bs(bs(b, n.ref), n.names)
	return u(b, uint64(n.open))
}

var errRecord = errors.New("ext4 writer: damaged record in temporary file")

// decode fills n from a record of appendNode. Byte slices point into rec; slices of n
// are used again.
func (n *node) decode(rec []byte) error {
	d := decoder{b: rec}
	n.key = d.bytes()
	n.id, n.parent = d.u32(), d.u32()
	n.typ = kiln.EntryType(d.byte())
	n.mode, n.uid, n.gid = d.u32(), d.u32(), d.u32()
	n.mtime, n.atime, n.ctime = d.time(), d.time(), d.time()
	n.major, n.minor = d.u32(), d.u32()
	n.link = d.bytes()
	n.xattrs = n.xattrs[:0]
	for range d.count() {
		n.xattrs = append(n.xattrs, xattr{d.bytes(), d.bytes()})
	}
	n.size = int64(d.uvarint())
	n.runs = n.runs[:0]
	for range d.count() {
		n.runs = append(n.runs, run{d.u32(), d.u32()})
	}
	n.ref, n.names = d.bytes(), d.bytes()
	n.open = d.u32()
	if d.bad {
		return errRecord
	}
	return nil
}

// decoder reads the parts of a record; after the first fault everything is zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) u32() uint32 { return uint32(d.uvarint()) }

// count is a number of elements, each of which takes at least a byte.
func (d *decoder) count() int {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return 0
	}
	return int(n)
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.bad = true
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.bad, d.b = true, nil
		return nil
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) time() timestamp {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return timestamp{}
	}
	d.b = d.b[n:]
	return timestamp{v, d.u32()}
}
