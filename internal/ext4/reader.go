package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"

	"github.com/kilnvm/kiln"
)

// Image reads an ext4 image without mounting it. It understands what [Write] makes and
// most of what mke2fs makes with 4 KiB blocks; everything it reads is checked against its
// checksum, and nothing in an image, however damaged, makes it crash or run for ever.
//
// Image is a [kiln.RefOpener]: an image can be compared with, or written again from,
// another source. It is safe for concurrent use if its ReaderAt is.
type Image struct {
	r    io.ReaderAt
	info Info
	seed uint32 // of checksums
	sums bool   // metadata has checksums
	desc uint16 // size of a group descriptor
	isz  uint16 // size of an inode
}

// Info is what the superblock says.
type Info struct {
	UUID           [16]byte
	Blocks         uint64
	FreeBlocks     uint64
	Inodes         uint32 // places for inodes, used or not
	FreeInodes     uint32
	BlocksPerGroup uint32
	InodesPerGroup uint32
	Compat         uint32
	Incompat       uint32
	ROCompat       uint32
}

// ErrDamaged is in the chain of every error about an image that breaks its own format.
var ErrDamaged = errors.New("image is damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

const readerIncompat = incompatFiletype | incompatExtents | incompat64bit | incompatFlexBG |
	incompatEAInode | incompatCsumSeed | incompatLargeDir

// OpenImage reads the superblock of an image.
func OpenImage(r io.ReaderAt) (*Image, error) {
	b := make([]byte, superSize)
	if _, err := r.ReadAt(b, superOffset); err != nil {
		return nil, damaged("no superblock: %v", err)
	}
	le := binary.LittleEndian
	if le.Uint16(b[0x38:]) != superMagic {
		return nil, damaged("not an ext4 image")
	}
	im := &Image{r: r, info: Info{
		UUID:           [16]byte(b[0x68:0x78]),
		Inodes:         le.Uint32(b[0x00:]),
		FreeInodes:     le.Uint32(b[0x10:]),
		BlocksPerGroup: le.Uint32(b[0x20:]),
		InodesPerGroup: le.Uint32(b[0x28:]),
		Compat:         le.Uint32(b[0x5C:]),
		Incompat:       le.Uint32(b[0x60:]),
		ROCompat:       le.Uint32(b[0x64:]),
		Blocks:         uint64(le.Uint32(b[0x04:])),
		FreeBlocks:     uint64(le.Uint32(b[0x0C:])),
	}, desc: 32, isz: le.Uint16(b[0x58:])}
	i := &im.info
	if i.Incompat&incompat64bit != 0 {
		im.desc = le.Uint16(b[0xFE:])
		i.Blocks |= uint64(le.Uint32(b[0x150:])) << 32
		i.FreeBlocks |= uint64(le.Uint32(b[0x158:])) << 32
	}
	im.sums = i.ROCompat&roMetadataCsum != 0
	if im.sums && le.Uint32(b[0x3FC:]) != crcUpdate(^uint32(0), b[:0x3FC]) {
		return nil, damaged("superblock has a wrong checksum")
	}
	im.seed = crcUpdate(^uint32(0), i.UUID[:])
	if i.Incompat&incompatCsumSeed != 0 {
		im.seed = le.Uint32(b[0x270:])
	}
	switch {
	case le.Uint32(b[0x18:]) != blockShift-10:
		return nil, fmt.Errorf("image has blocks of another size than %d bytes", BlockSize)
	case i.Incompat&^readerIncompat != 0:
		return nil, fmt.Errorf("image has unknown features %#x", i.Incompat&^uint32(readerIncompat))
	case im.isz < goodInodeSize || im.isz > BlockSize || im.isz&(im.isz-1) != 0:
		return nil, damaged("inodes of %d bytes", im.isz)
	case im.desc < 32 || im.desc > 1024 || im.desc&(im.desc-1) != 0:
		return nil, damaged("group descriptors of %d bytes", im.desc)
	case i.InodesPerGroup == 0 || i.BlocksPerGroup == 0 || i.InodesPerGroup > maxPerGroup || i.BlocksPerGroup > maxPerGroup:
		return nil, damaged("groups of %d blocks and %d inodes", i.BlocksPerGroup, i.InodesPerGroup)
	}
	return im, nil
}

// Info returns what the superblock says.
func (im *Image) Info() Info { return im.info }

// Close does nothing: the image's reader belongs to the caller.
func (im *Image) Close() error { return nil }

// block reads one block.
func (im *Image) block(nr uint64) ([]byte, error) {
	if nr == 0 || nr >= im.info.Blocks {
		return nil, damaged("block %d is outside the image", nr)
	}
	b := make([]byte, BlockSize)
	if _, err := im.r.ReadAt(b, int64(nr)*BlockSize); err != nil {
		return nil, damaged("block %d: %v", nr, err)
	}
	return b, nil
}

// file is an inode that has been read.
type file struct {
	inode
	ino   uint32
	raw   []byte
	major uint32
	minor uint32
}

func (f *file) kind() uint16 { return f.mode & modeType }

// inode reads an inode.
func (im *Image) inode(ino uint32) (*file, error) {
	if ino == 0 || ino > im.info.Inodes {
		return nil, damaged("inode number %d is outside 1 to %d", ino, im.info.Inodes)
	}
	le := binary.LittleEndian
	group, index := (ino-1)/im.info.InodesPerGroup, (ino-1)%im.info.InodesPerGroup
	d := make([]byte, im.desc)
	if _, err := im.r.ReadAt(d, BlockSize+int64(group)*int64(im.desc)); err != nil {
		return nil, damaged("descriptor of group %d: %v", group, err)
	}
	table := uint64(le.Uint32(d[8:]))
	if im.desc >= 64 {
		table |= uint64(le.Uint32(d[0x28:])) << 32
	}
	if table >= im.info.Blocks {
		return nil, damaged("inode table of group %d is outside the image", group)
	}
	b := make([]byte, im.isz)
	if _, err := im.r.ReadAt(b, int64(table)*BlockSize+int64(index)*int64(im.isz)); err != nil {
		return nil, damaged("inode %d: %v", ino, err)
	}
	f := &file{ino: ino, raw: b, inode: inode{
		mode:    le.Uint16(b[0x00:]),
		uid:     uint32(le.Uint16(b[0x02:])) | uint32(le.Uint16(b[0x78:]))<<16,
		gid:     uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7A:]))<<16,
		size:    uint64(le.Uint32(b[0x04:])) | uint64(le.Uint32(b[0x6C:]))<<32,
		links:   le.Uint16(b[0x1A:]),
		sectors: uint64(le.Uint32(b[0x1C:])) | uint64(le.Uint16(b[0x74:]))<<32,
		flags:   le.Uint32(b[0x20:]), attrBlock: uint64(le.Uint32(b[0x68:])) | uint64(le.Uint16(b[0x76:]))<<32,
	}}
	copy(f.block[:], b[0x28:])
	if im.sums && im.isz >= inodeSize && !im.inodeSumOK(f) {
		return nil, damaged("inode %d has a wrong checksum", ino)
	}
	f.times()
	if k := f.kind(); k == modeChar || k == modeBlock {
		f.major, f.minor = unpackDevice(f.block[:])
	}
	if f.size > maxFileSize {
		return nil, damaged("inode %d has a size of %d", ino, f.size)
	}
	return f, nil
}

func (im *Image) inodeSumOK(f *file) bool {
	le := binary.LittleEndian
	var zero [2]byte
	b := f.raw
	crc := crcUpdate(im.seed, le.AppendUint32(nil, f.ino))
	crc = crcUpdate(crc, b[0x64:0x68]) // generation
	crc = crcUpdate(crc, b[:0x7C])
	crc = crcUpdate(crc, zero[:])
	crc = crcUpdate(crc, b[0x7E:0x82])
	crc = crcUpdate(crc, zero[:])
	crc = crcUpdate(crc, b[0x84:])
	return uint16(crc) == le.Uint16(b[0x7C:]) && uint16(crc>>16) == le.Uint16(b[0x82:])
}

// times reads the times, with nanoseconds if the inode is large enough to have them.
func (f *file) times() {
	le := binary.LittleEndian
	extra := func(at int) uint32 {
		if len(f.raw) >= at+4 && int(le.Uint16(f.raw[0x80:]))+goodInodeSize >= at+4 {
			return le.Uint32(f.raw[at:])
		}
		return 0
	}
	if len(f.raw) <= goodInodeSize {
		extra = func(int) uint32 { return 0 }
	}
	f.atime = unpackTime(le.Uint32(f.raw[0x08:]), extra(0x8C))
	f.ctime = unpackTime(le.Uint32(f.raw[0x0C:]), extra(0x84))
	f.mtime = unpackTime(le.Uint32(f.raw[0x10:]), extra(0x88))
}

// extents returns the mapping of f, in ascending order without overlap.
func (im *Image) extents(f *file) ([]extent, error) {
	if f.flags&flagExtents == 0 {
		if f.size == 0 {
			return nil, nil
		}
		return nil, damaged("inode %d is not mapped by extents", f.ino)
	}
	w := extentWalk{im: im, f: f}
	if err := w.node(f.block[:], -1); err != nil {
		return nil, err
	}
	return w.list, nil
}

type extentWalk struct {
	im   *Image
	f    *file
	list []extent
	next uint64 // first logical block that an extent may begin at
}

// node adds the extents below one node. depth is what the node must say about itself,
// or -1 for the root.
func (w *extentWalk) node(b []byte, depth int) error {
	le := binary.LittleEndian
	n, d := int(le.Uint16(b[2:])), int(le.Uint16(b[6:]))
	if le.Uint16(b) != extentMagic || extentSize*(n+1) > len(b) || d > maxTreeDepth || depth >= 0 && (d != depth || n == 0) {
		return damaged("inode %d has a broken extent tree", w.f.ino)
	}
	for i := 1; i <= n; i++ {
		e := b[extentSize*i:]
		if d == 0 {
			if err := w.leaf(e); err != nil {
				return err
			}
			continue
		}
		if uint64(le.Uint32(e)) < w.next {
			return damaged("inode %d has extents out of order", w.f.ino)
		}
		child, err := w.im.block(uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32)
		if err != nil {
			return err
		}
		sum := extentSize * (int(le.Uint16(child[4:])) + 1)
		if w.im.sums && (sum > BlockSize-4 || le.Uint32(child[sum:]) != crcUpdate(w.im.inodeSeed(w.f), child[:sum])) {
			return damaged("inode %d has an extent block with a wrong checksum", w.f.ino)
		}
		if err := w.node(child, d-1); err != nil {
			return err
		}
	}
	return nil
}

func (w *extentWalk) leaf(e []byte) error {
	le := binary.LittleEndian
	x := extent{le.Uint32(e), uint32(le.Uint16(e[4:])), uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32}
	unwritten := x.count > maxExtent
	if unwritten {
		x.count -= maxExtent
	}
	if x.count == 0 || uint64(x.logical) < w.next || x.phys == 0 || x.phys+uint64(x.count) > w.im.info.Blocks {
		return damaged("inode %d has a broken extent", w.f.ino)
	}
	w.next = uint64(x.logical) + uint64(x.count)
	if !unwritten {
		w.list = append(w.list, x)
	}
	return nil
}

func (im *Image) inodeSeed(f *file) uint32 {
	crc := crcUpdate(im.seed, binary.LittleEndian.AppendUint32(nil, f.ino))
	return crcUpdate(crc, f.raw[0x64:0x68])
}

// dirent is one name in a directory.
type dirent struct {
	name string
	ino  uint32
}

// eachDirent calls f for every name in a directory but the dots. Index blocks look like
// unused entries, so that indexed directories are read like the others.
func (im *Image) eachDirent(d *file, f func(dirent) error) error {
	exts, err := im.extents(d)
	if err != nil {
		return err
	}
	budget := im.info.Blocks
	for _, x := range exts {
		if uint64(x.count) > budget {
			return damaged("directory %d is larger than the image", d.ino)
		}
		budget -= uint64(x.count)
		for i := range uint64(x.count) {
			if err := im.direntBlock(d, x.phys+i, f); err != nil {
				return err
			}
		}
	}
	return nil
}

func (im *Image) direntBlock(d *file, nr uint64, f func(dirent) error) error {
	le := binary.LittleEndian
	b, err := im.block(nr)
	if err != nil {
		return err
	}
	if im.sums && b[leafSpace+7] == ftChecksum && le.Uint16(b[leafSpace+4:]) == tailSize &&
		le.Uint32(b[leafSpace+8:]) != crcUpdate(im.inodeSeed(d), b[:leafSpace]) {
		return damaged("directory %d has a block with a wrong checksum", d.ino)
	}
	for at := 0; at+direntHeader <= BlockSize; {
		ino, size, length := le.Uint32(b[at:]), int(le.Uint16(b[at+4:])), int(b[at+6])
		if size < direntHeader || size%4 != 0 || at+size > BlockSize || direntHeader+length > size {
			return damaged("directory %d has a broken entry", d.ino)
		}
		name := string(b[at+direntHeader : at+direntHeader+length])
		at += size
		if ino == 0 || name == "." || name == ".." {
			continue
		}
		if name == "" || strings.ContainsAny(name, "/\x00") {
			return damaged("directory %d has an entry with the name %q", d.ino, name)
		}
		if err := f(dirent{name, ino}); err != nil {
			return err
		}
	}
	return nil
}

// attrs returns the extended attributes of f with full names and the kernel's values.
func (im *Image) attrs(f *file) (map[string]string, error) {
	out := map[string]string{}
	le := binary.LittleEndian
	if len(f.raw) >= inodeSize {
		at := goodInodeSize + int(le.Uint16(f.raw[0x80:]))
		if at+4 <= len(f.raw) && le.Uint32(f.raw[at:]) == xattrMagic {
			if err := im.readAttrs(f.raw[at+4:], 0, out); err != nil {
				return nil, fmt.Errorf("inode %d: %w", f.ino, err)
			}
		}
	}
	if f.attrBlock != 0 {
		b, err := im.block(f.attrBlock)
		if err != nil {
			return nil, err
		}
		sum := le.Uint32(b[16:])
		le.PutUint32(b[16:], 0)
		if le.Uint32(b) != xattrMagic || im.sums && sum != attrBlockSum(im.seed, b, f.attrBlock) {
			return nil, damaged("attribute block %d of inode %d is broken", f.attrBlock, f.ino)
		}
		if err := im.readAttrs(b, xattrBlockHeader, out); err != nil {
			return nil, fmt.Errorf("inode %d: %w", f.ino, err)
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// readAttrs reads the entries from base[at:] on.
func (im *Image) readAttrs(base []byte, at int, out map[string]string) error {
	le := binary.LittleEndian
	for at+4 <= len(base) && le.Uint32(base[at:]) != 0 {
		if at+xattrEntryHeader > len(base) {
			return damaged("attribute entry is cut short")
		}
		e := base[at:]
		length, index, off := int(e[0]), e[1], int(le.Uint16(e[2:]))
		inum, size := le.Uint32(e[4:]), int(le.Uint32(e[8:]))
		if xattrEntryHeader+length > len(e) || size > xattrMaxValue {
			return damaged("attribute entry is cut short")
		}
		name, err := fullName(index, e[xattrEntryHeader:xattrEntryHeader+length])
		if err != nil {
			return damaged("%v", err)
		}
		var value []byte
		switch {
		case inum != 0:
			if value, err = im.valueOf(inum, size); err != nil {
				return err
			}
		case off+size > len(base):
			return damaged("attribute %q goes beyond its block", name)
		default:
			value = base[off : off+size]
		}
		if strings.HasPrefix(name, "system.posix_acl_") {
			if value, err = aclFromDisk(value); err != nil {
				return damaged("%v", err)
			}
		}
		out[name] = string(value)
		at += align4(xattrEntryHeader + length)
	}
	return nil
}

// valueOf reads an attribute value that has an inode of its own.
func (im *Image) valueOf(ino uint32, size int) ([]byte, error) {
	f, err := im.inode(ino)
	if err != nil {
		return nil, err
	}
	if f.flags&flagEAInode == 0 || f.size != uint64(size) {
		return nil, damaged("inode %d holds no attribute value of %d bytes", ino, size)
	}
	r, err := im.content(f)
	if err != nil {
		return nil, err
	}
	value := make([]byte, size)
	if _, err := io.ReadFull(r, value); err != nil {
		return nil, damaged("attribute value in inode %d: %v", ino, err)
	}
	return value, nil
}

// content returns a reader of the bytes of f.
func (im *Image) content(f *file) (*content, error) {
	exts, err := im.extents(f)
	if err != nil {
		return nil, err
	}
	return &content{im: im, exts: exts, size: int64(f.size)}, nil
}

// content reads a file; holes are zeros.
type content struct {
	im   *Image
	exts []extent
	size int64
	pos  int64
}

func (c *content) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if c.pos >= c.size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), c.size-c.pos)]
	for len(c.exts) > 0 && c.pos >= c.exts[0].end() {
		c.exts = c.exts[1:]
	}
	if len(c.exts) == 0 || c.pos < int64(c.exts[0].logical)*BlockSize {
		if len(c.exts) > 0 {
			p = p[:min(int64(len(p)), int64(c.exts[0].logical)*BlockSize-c.pos)]
		}
		clear(p)
		c.pos += int64(len(p))
		return len(p), nil
	}
	x := c.exts[0]
	p = p[:min(int64(len(p)), x.end()-c.pos)]
	n, err := c.im.r.ReadAt(p, int64(x.phys)*BlockSize+c.pos-int64(x.logical)*BlockSize)
	c.pos += int64(n)
	if n == len(p) {
		err = nil
	} else if err != nil {
		err = damaged("content: %v", err)
	}
	return n, err
}

// Seek moves forward only, relative to the current position: all that skipping holes
// needs.
func (c *content) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || offset < 0 {
		return 0, errors.New("seek: forward only")
	}
	c.pos += offset
	return c.pos, nil
}

func (c *content) Close() error { return nil }

func (x extent) end() int64 { return (int64(x.logical) + int64(x.count)) * BlockSize }

// Entries yields every entry of the image, directories before what they hold. Of several
// names of one file the first met is the file and the others are hardlinks.
func (im *Image) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		w := imageWalk{im: im, yield: yield, dirs: map[uint32]bool{}, names: map[uint32]string{}}
		if err := w.visit(".", rootIno); err != nil && !errors.Is(err, errStopped) {
			yield(kiln.Entry{}, err)
		}
	}
}

var errStopped = errors.New("walk stopped by its consumer")

type imageWalk struct {
	im    *Image
	yield func(kiln.Entry, error) bool
	dirs  map[uint32]bool   // met already
	names map[uint32]string // first name of files with several
}

func (w *imageWalk) visit(path string, ino uint32) error {
	if len(path) > maxPathLen {
		return damaged("%q: the path is too long", shorten(path))
	}
	f, err := w.im.inode(ino)
	if err != nil {
		return fmt.Errorf("%q: %w", shorten(path), err)
	}
	if f.kind() != modeDir && f.links > 1 {
		if first, ok := w.names[ino]; ok {
			return w.emit(kiln.Entry{Path: path, Type: kiln.TypeHardlink, Linkname: first})
		}
		w.names[ino] = path
	}
	e, err := w.im.entry(path, f)
	if err != nil {
		return fmt.Errorf("%q: %w", shorten(path), err)
	}
	if err := w.emit(e); err != nil || e.Type != kiln.TypeDirectory {
		return err
	}
	if w.dirs[ino] {
		return damaged("%q: directory %d has two parents", shorten(path), ino)
	}
	w.dirs[ino] = true
	prefix := path + "/"
	if path == "." {
		prefix = ""
	}
	return w.im.eachDirent(f, func(d dirent) error { return w.visit(prefix+d.name, d.ino) })
}

func (w *imageWalk) emit(e kiln.Entry) error {
	if !w.yield(e, nil) {
		return errStopped
	}
	return nil
}

// entry converts an inode.
func (im *Image) entry(path string, f *file) (kiln.Entry, error) {
	e := kiln.Entry{
		Path: path, Mode: uint32(f.mode & 0o7777), UID: f.uid, GID: f.gid,
		ModTime: f.mtime.time(), AccessTime: f.atime.time(), ChangeTime: f.ctime.time(),
	}
	var err error
	if e.Xattrs, err = im.attrs(f); err != nil {
		return e, err
	}
	switch f.kind() {
	case modeRegular:
		e.Type, e.Size = kiln.TypeRegular, int64(f.size)
		e.Ref = fmt.Sprint(f.ino)
		e.Open = func() (io.ReadCloser, error) { return im.content(f) }
		e.Extents, err = im.dataExtents(f)
	case modeDir:
		e.Type = kiln.TypeDirectory
	case modeSymlink:
		e.Type = kiln.TypeSymlink
		e.Linkname, err = im.target(f)
	case modeChar:
		e.Type, e.Major, e.Minor = kiln.TypeCharDevice, f.major, f.minor
	case modeBlock:
		e.Type, e.Major, e.Minor = kiln.TypeBlockDevice, f.major, f.minor
	case modeFIFO:
		e.Type = kiln.TypeFIFO
	case modeSocket:
		e.Type = kiln.TypeSocket
	default:
		err = damaged("inode %d has the unknown type %#x", f.ino, f.kind())
	}
	return e, err
}

// dataExtents returns where f has data; nil when it has no hole.
func (im *Image) dataExtents(f *file) ([]kiln.Extent, error) {
	exts, err := im.extents(f)
	if err != nil {
		return nil, err
	}
	out := []kiln.Extent{}
	for _, x := range exts {
		from, to := int64(x.logical)*BlockSize, min(x.end(), int64(f.size))
		if from >= to {
			continue
		}
		if k := len(out); k > 0 && out[k-1].Offset+out[k-1].Length == from {
			out[k-1].Length += to - from
		} else {
			out = append(out, kiln.Extent{Offset: from, Length: to - from})
		}
	}
	if f.size == 0 || len(out) == 1 && out[0].Length == int64(f.size) {
		return nil, nil
	}
	return out, nil
}

func (im *Image) target(f *file) (string, error) {
	if f.size == 0 || f.size > maxSymlinkLen {
		return "", damaged("symlink %d has a target of %d bytes", f.ino, f.size)
	}
	if f.flags&flagExtents == 0 && f.size < fastSymlink {
		return string(f.block[:f.size]), nil
	}
	c, err := im.content(f)
	if err != nil {
		return "", err
	}
	b := make([]byte, f.size)
	if _, err := io.ReadFull(c, b); err != nil {
		return "", damaged("target of symlink %d: %v", f.ino, err)
	}
	return string(b), nil
}

// OpenRef opens a regular file by [kiln.Entry.Ref].
func (im *Image) OpenRef(ref string) (io.ReadCloser, error) {
	var ino uint32
	if _, err := fmt.Sscan(ref, &ino); err != nil {
		return nil, fmt.Errorf("content %q: %w", ref, err)
	}
	f, err := im.inode(ino)
	if err != nil {
		return nil, err
	}
	return im.content(f)
}

// Lookup returns the entry at path. No symlink is followed. An error about a path that
// is not there matches [fs.ErrNotExist].
func (im *Image) Lookup(path string) (kiln.Entry, error) {
	f, path, err := im.find(path)
	if err != nil {
		return kiln.Entry{}, err
	}
	return im.entry(path, f)
}

// ReadDir returns the entries in the directory at path, in the order of their names.
func (im *Image) ReadDir(path string) ([]kiln.Entry, error) {
	d, path, err := im.find(path)
	if err != nil {
		return nil, err
	}
	if d.kind() != modeDir {
		return nil, fmt.Errorf("%q is not a directory", path)
	}
	prefix := path + "/"
	if path == "." {
		prefix = ""
	}
	var out []kiln.Entry
	err = im.eachDirent(d, func(de dirent) error {
		f, err := im.inode(de.ino)
		if err != nil {
			return err
		}
		e, err := im.entry(prefix+de.name, f)
		out = append(out, e)
		return err
	})
	slices.SortFunc(out, func(a, b kiln.Entry) int { return strings.Compare(a.Path, b.Path) })
	return out, err
}

// find returns the inode at path and the path in the form of [kiln.Entry.Path].
func (im *Image) find(path string) (*file, string, error) {
	clean := strings.Trim(path, "/")
	if clean == "" {
		clean = "."
	}
	f, err := im.inode(rootIno)
	if err != nil || clean == "." {
		return f, clean, err
	}
	for elem := range strings.SplitSeq(clean, "/") {
		found := uint32(0)
		if f.kind() == modeDir {
			err := im.eachDirent(f, func(d dirent) error {
				if d.name == elem {
					found = d.ino
					return errStopped
				}
				return nil
			})
			if err != nil && !errors.Is(err, errStopped) {
				return nil, clean, err
			}
		}
		if found == 0 {
			return nil, clean, &fs.PathError{Op: "find", Path: path, Err: fs.ErrNotExist}
		}
		if f, err = im.inode(found); err != nil {
			return nil, clean, err
		}
	}
	return f, clean, nil
}
