// Package rootfstest has trees to make images of, and ways to look at images that owe
// nothing to the code under test.
package rootfstest

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
)

// Tree is a root filesystem that stands in memory.
type Tree []kiln.Entry

// Entries implements kiln.EntrySource.
func (s Tree) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		for _, e := range s {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Close implements kiln.EntrySource.
func (s Tree) Close() error { return nil }

// Pattern is content that is cheap to make and differs from file to file.
type Pattern struct {
	Seed    uint64
	Size    int64
	Extents []kiln.Extent // nil: all of it
}

// Open returns the content.
func (p Pattern) Open() (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(p, 0, p.Size)), nil
}

// ReadAt implements io.ReaderAt.
func (p Pattern) ReadAt(b []byte, off int64) (int, error) {
	n := int(min(int64(len(b)), max(p.Size-off, 0)))
	b = b[:n]
	clear(b)
	all := []kiln.Extent{{Offset: 0, Length: p.Size}}
	if p.Extents != nil {
		all = p.Extents
	}
	for _, x := range all {
		for at := max(x.Offset, off); at < min(x.Offset+x.Length, off+int64(n)); at++ {
			b[at-off] = byte((uint64(at)*2654435761 + p.Seed + uint64(at>>15)*0x9E3779B97F4A7C15) >> 7)
		}
	}
	if off+int64(n) == p.Size {
		return n, io.EOF
	}
	return n, nil
}

// Entry returns a regular file with that content.
func (p Pattern) Entry(path string) kiln.Entry {
	return kiln.Entry{Path: path, Type: kiln.TypeRegular, Mode: 0o644, Size: p.Size, Extents: p.Extents, Open: p.Open,
		ModTime: time.Unix(1700000000+int64(p.Seed%50), int64(p.Seed%1000)*1001).UTC()}
}

// ACL returns a POSIX ACL as getxattr returns it, with an entry for one user and group.
func ACL(user, group uint32) string {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, ^uint32(0)}, {2, 6, user}, {4, 5, ^uint32(0)}, {8, 4, group}, {0x10, 7, ^uint32(0)}, {0x20, 4, ^uint32(0)}} {
		b = le.AppendUint16(b, e.tag)
		b = le.AppendUint16(b, e.perm)
		b = le.AppendUint32(b, e.id)
	}
	return string(b)
}

const netBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// Stress has more than ten thousand entries with every feature at least once.
func Stress() Tree {
	var s Tree
	mtime := time.Unix(1500000000, 123456789).UTC()
	add := func(e kiln.Entry) {
		if e.ModTime.IsZero() {
			e.ModTime = mtime
		}
		s = append(s, e)
	}
	dir := func(p string) { add(kiln.Entry{Path: p, Type: kiln.TypeDirectory, Mode: 0o755}) }
	link := func(p, to string) { add(kiln.Entry{Path: p, Type: kiln.TypeHardlink, Linkname: to}) }
	add(kiln.Entry{Path: ".", Type: kiln.TypeDirectory, Mode: 0o711, UID: 3, GID: 4})
	add(kiln.Entry{Path: "tmp", Type: kiln.TypeDirectory, Mode: 0o1777})
	for i := range 6500 { // children before and without parents
		add(Pattern{Seed: uint64(i), Size: int64(i*37) % 9000}.Entry(fmt.Sprintf("big/directory/file-%06d", i)))
	}
	for i := range 1500 {
		dir(fmt.Sprintf("many/sub%d", i))
		add(Pattern{Seed: uint64(i), Size: int64(i % 3)}.Entry(fmt.Sprintf("many/sub%d/%d", i, i)))
	}
	for i, size := range []int64{0, 1, 4095, 4096, 4097, 262143, 262144, 262145, 1 << 20, 5<<20 + 17} {
		add(Pattern{Seed: uint64(i), Size: size}.Entry(fmt.Sprintf("sizes/%d", size)))
	}
	add(Pattern{Seed: 1, Size: 5 << 30, Extents: []kiln.Extent{{Offset: 0, Length: 10}, {Offset: 1 << 30, Length: 300000}, {Offset: 5<<30 - 5000, Length: 5000}}}.Entry("sparse/huge"))
	var many []kiln.Extent
	for i := range int64(1500) {
		many = append(many, kiln.Extent{Offset: i * 12288, Length: 4096})
	}
	add(Pattern{Seed: 2, Size: 1500 * 12288, Extents: many}.Entry("sparse/many"))
	add(Pattern{Seed: 3, Size: 1 << 20, Extents: []kiln.Extent{}}.Entry("sparse/nothing"))
	for _, n := range []int{1, 59, 60, 61, 255, 4000, 4095} {
		add(kiln.Entry{Path: fmt.Sprintf("links/%d", n), Type: kiln.TypeSymlink, Mode: 0o777, Linkname: strings.Repeat("x/", n)[:n]})
	}
	add(Pattern{Seed: 9, Size: 100}.Entry("names/" + strings.Repeat("n", 255)))
	add(Pattern{Seed: 9, Size: 100}.Entry("names/\xff\xfe not utf-8\n\t\x01"))
	add(Pattern{Seed: 9, Size: 100}.Entry("names/snow ☃"))
	for i, d := range [][2]uint32{{1, 3}, {0, 255}, {8, 0}, {300, 1}, {1, 70000}, {4095, 1<<20 - 1}} {
		add(kiln.Entry{Path: fmt.Sprintf("dev/c%d", i), Type: kiln.TypeCharDevice, Mode: 0o666, Major: d[0], Minor: d[1]})
		add(kiln.Entry{Path: fmt.Sprintf("dev/b%d", i), Type: kiln.TypeBlockDevice, Mode: 0o660, Major: d[0], Minor: d[1]})
	}
	add(kiln.Entry{Path: "dev/fifo", Type: kiln.TypeFIFO, Mode: 0o600})
	add(kiln.Entry{Path: "dev/socket", Type: kiln.TypeSocket, Mode: 0o600})
	for i := range 300 { // hardlinks of every kind, the link before the file too
		link(fmt.Sprintf("hard/a%d", i), "sizes/4097")
	}
	link("aaa-first", "links/4000")
	link("hard/sym", "links/59")
	link("hard/dev", "dev/c3")
	link("hard/chain", "hard/dev")
	link("hard/chain2", "hard/chain")
	for i, m := range []uint32{0o4755, 0o2755, 0o1644, 0o6711, 0, 0o7777} {
		e := Pattern{Seed: uint64(i), Size: 10}.Entry(fmt.Sprintf("modes/%o", m))
		e.Mode = m
		add(e)
	}
	for i, id := range []uint32{0, 65535, 65536, 1 << 24, 1<<32 - 2} {
		e := Pattern{Seed: uint64(i), Size: 10}.Entry(fmt.Sprintf("owners/%d", id))
		e.UID, e.GID = id, id/2
		add(e)
	}
	for i, sec := range []int64{-1 << 31, -1, 0, 1<<31 - 1, 1 << 31, 4102444800, 1<<33 + 5, 15032385535} {
		e := Pattern{Seed: uint64(i), Size: 10}.Entry(fmt.Sprintf("times/%d", i))
		e.ModTime = time.Unix(sec, int64(i)*123456).UTC()
		add(e)
	}
	attrs := func(p string, m map[string]string) {
		e := Pattern{Seed: 5, Size: 5}.Entry("xattrs/" + p)
		e.Xattrs = m
		add(e)
	}
	attrs("cap", map[string]string{"security.capability": netBind})
	attrs("acl", map[string]string{"system.posix_acl_access": ACL(1000, 70000)})
	attrs("selinux", map[string]string{"security.selinux": "system_u:object_r:bin_t:s0\x00"})
	attrs("trusted", map[string]string{"trusted.x": "y", "user.empty": ""})
	for i := range 60 { // equal sets, too large for the inode: they share blocks
		attrs(fmt.Sprintf("shared%d", i), map[string]string{"user.same": strings.Repeat("s", 200)})
	}
	attrs("full", map[string]string{"user.full": strings.Repeat("f", 4000)})
	attrs("large", map[string]string{"user.large": strings.Repeat("l", 60000), "user.small": "s"})
	lots := map[string]string{}
	for i := range 40 {
		lots[fmt.Sprintf("user.name-%d", i)] = strings.Repeat("v", i*7)
	}
	attrs("lots", lots)
	add(kiln.Entry{Path: "xattrs/dir", Type: kiln.TypeDirectory, Mode: 0o750, Xattrs: map[string]string{
		"system.posix_acl_default": ACL(5, 6), "system.posix_acl_access": ACL(7, 8), "security.selinux": "label", "user.large": strings.Repeat("d", 5000)}})
	for i := range 500 {
		dir("deep/" + strings.TrimSuffix(strings.Repeat("d/", i+1), "/"))
	}
	rand.New(rand.NewPCG(7, 7)).Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	return s
}
