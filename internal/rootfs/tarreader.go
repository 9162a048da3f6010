package rootfs

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
)

const (
	tarBlock      = 512
	maxTarHeader  = 1 << 20 // bytes of PAX records or of a GNU long name
	maxTarSparse  = 1 << 17 // stretches of data of one sparse member
	maxTarXattrs  = 1 << 10 // attributes of one member
	maxTarPathLen = 64 << 10
)

// tarReader reads the headers of an archive. It is not archive/tar, because that
// expands sparse files, does not say where a member's data stands, and leaves out which
// member is at fault.
type tarReader struct {
	r       io.ReaderAt
	size    int64
	pos     int64
	limits  Limits
	entries int64
	bytes   int64
	window  []byte // what was read last, beginning at byte at
	at      int64
	global  map[string]string // PAX records for all members that follow
	last    string            // name of the last member, for messages
}

// tarHeader is a member's header block together with what extended headers add to it.
type tarHeader struct {
	raw      []byte
	pax      map[string]string
	longName string
	longLink string
	hasName  bool
	hasLink  bool
}

// fail returns an error about the current member.
func (t *tarReader) fail(name, format string, args ...any) error {
	if name == "" {
		return badArchive("member %d (after %q), at byte %d: %s", t.entries+1, brief(t.last), t.pos, fmt.Sprintf(format, args...))
	}
	return kiln.Errorf(kiln.CodeInvalid, "archive: entry %q: %s", brief(name), fmt.Sprintf(format, args...))
}

func brief(s string) string {
	if len(s) > 300 {
		return s[:300] + "…"
	}
	return s
}

// windowSize is enough for the headers of one member. What stands between headers is not
// read, so more would not help.
const windowSize = 4096

// read returns n bytes from the current position, valid until the next call, and moves on
// by them.
func (t *tarReader) read(n int64) ([]byte, error) {
	if n > t.size-t.pos {
		return nil, t.fail("", "the archive is cut short")
	}
	from := t.pos - t.at
	if from < 0 || from+n > int64(len(t.window)) {
		size := min(max(n, windowSize), t.size-t.pos)
		if int64(cap(t.window)) < size {
			t.window = make([]byte, size)
		}
		t.window = t.window[:size]
		if k, err := t.r.ReadAt(t.window, t.pos); k < len(t.window) {
			t.window = t.window[:0]
			return nil, fmt.Errorf("read archive: %w", err)
		}
		t.at, from = t.pos, 0
	}
	t.pos += n
	return t.window[from : from+n], nil
}

func padded(n int64) int64 { return (n + tarBlock - 1) &^ (tarBlock - 1) }

// next returns the next entry, or io.EOF.
func (t *tarReader) next() (kiln.Entry, error) {
	for {
		h, err := t.header()
		if err != nil {
			return kiln.Entry{}, err
		}
		if t.entries++; t.entries > t.limits.Entries {
			return kiln.Entry{}, t.fail("", "more than %d entries", t.limits.Entries)
		}
		e, skip, err := t.entry(h)
		if err != nil {
			return kiln.Entry{}, err
		}
		if !skip {
			t.last = e.Path
			return e, nil
		}
	}
}

// header reads header blocks up to the one of a member.
func (t *tarReader) header() (*tarHeader, error) {
	h := &tarHeader{}
	extended := 0
	for {
		if t.pos >= t.size && extended == 0 {
			return nil, io.EOF // without the two zero blocks, as some tools leave it
		}
		raw, err := t.read(tarBlock)
		if err != nil {
			return nil, err
		}
		if raw[0] == 0 && allZero(raw) {
			if extended > 0 {
				return nil, t.fail("", "an extended header without a member")
			}
			return nil, io.EOF
		}
		if !tarSumOK(raw) {
			return nil, t.fail("", "the header has a wrong checksum")
		}
		h.raw = raw
		flag := raw[156]
		if !strings.ContainsRune("xgLKXV", rune(flag)) {
			return h, nil
		}
		if extended++; extended > 64 {
			return nil, t.fail("", "too many extended headers")
		}
		size, err := tarNumber(raw[124:136])
		if err != nil || size < 0 || size > maxTarHeader {
			return nil, t.fail("", "an extended header of %d bytes", size)
		}
		at := t.pos
		body, err := t.read(size)
		if err != nil {
			return nil, err
		}
		t.pos = at + padded(size)
		switch flag {
		case 'x', 'X':
			h.pax, err = parsePAX(h.pax, body)
		case 'g':
			t.global, err = parsePAX(t.global, body)
		case 'L':
			h.longName, h.hasName = cString(body), true
		case 'K':
			h.longLink, h.hasLink = cString(body), true
		}
		if err != nil {
			return nil, t.fail("", "%v", err)
		}
	}
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// tarSumOK checks a header's checksum, which old tools computed with signed bytes. The
// checksum's own eight bytes count as spaces.
func tarSumOK(b []byte) bool {
	want, err := tarNumber(b[148:156])
	if err != nil {
		return false
	}
	sum := func(b []byte) (n, high int64) {
		for _, c := range b {
			n += int64(c)
			high += int64(c >> 7)
		}
		return n, high
	}
	all, high := sum(b)
	own, ownHigh := sum(b[148:156])
	unsigned := all - own + 8*' '
	return want == unsigned || want == unsigned-256*(high-ownHigh)
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// tarNumber reads an octal number, or a binary one in GNU's base-256 form.
func tarNumber(b []byte) (int64, error) {
	if b[0]&0x80 != 0 {
		neg := b[0]&0x40 != 0
		var fill byte
		if neg {
			fill = 0xff
		}
		v := uint64(0)
		for i, c := range b {
			if i == 0 {
				c &= 0x7f
				if neg {
					c |= 0x80
				}
			}
			if len(b)-i > 8 {
				if c != fill {
					return 0, errors.New("number is too large")
				}
				continue
			}
			v = v<<8 | uint64(c)
		}
		if (int64(v) < 0) != neg {
			return 0, errors.New("number is too large")
		}
		return int64(v), nil
	}
	s := strings.Trim(string(b), " \x00")
	if s == "" {
		return 0, nil
	}
	v, err := strconv.ParseUint(s, 8, 63)
	if err != nil {
		return 0, fmt.Errorf("%q is not an octal number", s)
	}
	return int64(v), nil
}

// parsePAX adds the records "length key=value\n" of an extended header.
func parsePAX(into map[string]string, b []byte) (map[string]string, error) {
	if into == nil {
		into = map[string]string{}
	}
	for len(b) > 0 {
		sp := bytes.IndexByte(b, ' ')
		if sp < 1 || sp > 10 {
			return nil, errors.New("a PAX record without a length")
		}
		n, err := strconv.Atoi(string(b[:sp]))
		if err != nil || n <= sp+1 || n > len(b) || b[n-1] != '\n' {
			return nil, fmt.Errorf("a PAX record of the length %q", b[:sp])
		}
		key, value, ok := strings.Cut(string(b[sp+1:n-1]), "=")
		if !ok || key == "" {
			return nil, errors.New("a PAX record without a name")
		}
		b = b[n:]
		switch {
		case key == "GNU.sparse.offset" || key == "GNU.sparse.numbytes":
			// Format 0.0 repeats these two: gather them into the map of format 0.1.
			if m := into["GNU.sparse.map"]; m != "" {
				value = m + "," + value
			}
			key = "GNU.sparse.map"
		case len(into) > 4*maxTarXattrs:
			return nil, errors.New("too many PAX records")
		}
		into[key] = value
	}
	return into, nil
}

// get returns a PAX record of the member, or of all members. An empty value takes a
// record back.
func (t *tarReader) get(h *tarHeader, key string) (string, bool) {
	v, ok := h.pax[key]
	if !ok {
		v, ok = t.global[key]
	}
	return v, ok && v != ""
}

// entry converts a member and moves to the next one. skip is true for members that are
// no entries.
func (t *tarReader) entry(h *tarHeader) (e kiln.Entry, skip bool, err error) {
	name := t.name(h)
	fail := func(format string, args ...any) (kiln.Entry, bool, error) {
		return kiln.Entry{}, false, t.fail(name, format, args...)
	}
	if name == "" {
		return fail("its name is empty")
	}
	if e.Path, err = cleanTarPath(name); err != nil {
		return fail("%v", err)
	}
	n := t.numbers(h)
	if n.err != nil {
		return fail("%v", n.err)
	}
	e.Mode, e.UID, e.GID = uint32(n.mode)&0o7777, n.uid, n.gid
	e.ModTime, e.AccessTime, e.ChangeTime = n.mtime, n.atime, n.ctime
	if e.Xattrs, err = t.xattrs(h); err != nil {
		return fail("%v", err)
	}
	flag := h.raw[156]
	size := n.size
	switch flag {
	case '0', 0, '7', 'S':
		e.Type = kiln.TypeRegular
		if flag != 'S' && strings.HasSuffix(name, "/") {
			e.Type = kiln.TypeDirectory
		}
	case '1':
		e.Type, size = kiln.TypeHardlink, 0
		if e.Linkname, err = cleanTarPath(t.linkname(h)); err != nil {
			return fail("hardlink to %q: %v", brief(t.linkname(h)), err)
		}
	case '2':
		e.Type, e.Linkname, size = kiln.TypeSymlink, t.linkname(h), 0
	case '3', '4':
		e.Type, size = kiln.TypeCharDevice, 0
		if flag == '4' {
			e.Type = kiln.TypeBlockDevice
		}
		e.Major, e.Minor = n.major, n.minor
	case '5', 'D':
		e.Type = kiln.TypeDirectory
	case '6':
		e.Type, size = kiln.TypeFIFO, 0
	default:
		return fail("unknown type %q", flag)
	}
	if e.Path == "." && e.Type != kiln.TypeDirectory {
		return fail("the root is not a directory")
	}
	if size < 0 || size > t.size-t.pos {
		return fail("it claims %d bytes, the archive has %d left", size, t.size-t.pos)
	}
	if t.bytes += size; t.bytes > t.limits.Bytes {
		return fail("the files together have more than %d bytes", t.limits.Bytes)
	}
	if e.Type == kiln.TypeRegular {
		if err := t.content(h, &e, size); err != nil {
			return fail("%v", err)
		}
	}
	t.pos = min(t.pos+padded(size), t.size)
	return e, false, nil
}

// name returns the member's name from the most authoritative place.
func (t *tarReader) name(h *tarHeader) string {
	if v, ok := t.get(h, "GNU.sparse.name"); ok {
		return v
	}
	if v, ok := t.get(h, "path"); ok {
		return v
	}
	if h.hasName {
		return h.longName
	}
	name := cString(h.raw[0:100])
	if string(h.raw[257:263]) == "ustar\x00" {
		if prefix := cString(h.raw[345:500]); prefix != "" {
			return prefix + "/" + name
		}
	}
	return name
}

func (t *tarReader) linkname(h *tarHeader) string {
	if v, ok := t.get(h, "linkpath"); ok {
		return v
	}
	if h.hasLink {
		return h.longLink
	}
	return cString(h.raw[157:257])
}

// cleanTarPath brings a name into the form of [kiln.Entry.Path]. A leading slash means
// the root of the archive, as it does for tar.
func cleanTarPath(name string) (string, error) {
	if len(name) > maxTarPathLen {
		return "", fmt.Errorf("the path has %d bytes, more than %d", len(name), maxTarPathLen)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("the path has a NUL byte")
	}
	if name == "" {
		return "", errors.New("the path is empty")
	}
	var elems []string
	for elem := range strings.SplitSeq(name, "/") {
		switch elem {
		case "", ".":
		case "..":
			return "", errors.New(`the path has the element ".."`)
		default:
			elems = append(elems, elem)
		}
	}
	if len(elems) == 0 {
		return ".", nil
	}
	return strings.Join(elems, "/"), nil
}

// tarNumbers are the numeric fields of a member.
type tarNumbers struct {
	mode, size          int64
	uid, gid            uint32
	major, minor        uint32
	mtime, atime, ctime time.Time
	err                 error
}

func (t *tarReader) numbers(h *tarHeader) (n tarNumbers) {
	field := func(what, pax string, from, to int, limit int64) int64 {
		v, err := tarNumber(h.raw[from:to])
		if s, ok := t.get(h, pax); ok && pax != "" {
			v, err = strconv.ParseInt(s, 10, 64)
		}
		if err != nil || v < 0 || v > limit {
			if n.err == nil {
				n.err = fmt.Errorf("its %s is out of range", what)
			}
			return 0
		}
		return v
	}
	n.mode = field("mode", "", 100, 108, math.MaxInt32)
	n.uid = uint32(field("owner", "uid", 108, 116, math.MaxUint32))
	n.gid = uint32(field("group", "gid", 116, 124, math.MaxUint32))
	n.size = field("size", "size", 124, 136, math.MaxInt64-tarBlock)
	if sec, err := tarNumber(h.raw[136:148]); err == nil {
		n.mtime = time.Unix(sec, 0).UTC()
	} else if n.err == nil {
		n.err = errors.New("its time is not a number")
	}
	if f := h.raw[156]; f == '3' || f == '4' {
		n.major = uint32(field("device number", "", 329, 337, math.MaxUint32))
		n.minor = uint32(field("device number", "", 337, 345, math.MaxUint32))
	}
	for _, x := range []struct {
		key string
		to  *time.Time
	}{{"mtime", &n.mtime}, {"atime", &n.atime}, {"ctime", &n.ctime}} {
		if s, ok := t.get(h, x.key); ok {
			v, err := paxTime(s)
			if err != nil && n.err == nil {
				n.err = err
			}
			*x.to = v
		}
	}
	return n
}

// paxTime reads decimal seconds with an optional fraction.
func paxTime(s string) (time.Time, error) {
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || strings.Trim(frac, "0123456789") != "" || sec > math.MaxInt64/4 || sec < math.MinInt64/4 {
		return time.Time{}, fmt.Errorf("%q is not a time", brief(s))
	}
	ns, _ := strconv.ParseInt((frac + "000000000")[:9], 10, 64)
	if strings.HasPrefix(whole, "-") {
		ns = -ns
	}
	return time.Unix(sec, ns).UTC(), nil
}

const (
	schilyXattr     = "SCHILY.xattr."
	libarchiveXattr = "LIBARCHIVE.xattr."
)

// xattrs returns the attributes among the PAX records.
func (t *tarReader) xattrs(h *tarHeader) (map[string]string, error) {
	var out map[string]string
	for key, value := range h.pax {
		name, ok := strings.CutPrefix(key, schilyXattr)
		if !ok {
			if name, ok = strings.CutPrefix(key, libarchiveXattr); !ok {
				continue
			}
			if _, both := h.pax[schilyXattr+name]; both {
				continue
			}
			raw, err := base64.StdEncoding.DecodeString(pad64(value))
			if err != nil {
				return nil, fmt.Errorf("attribute %q: %v", brief(name), err)
			}
			if plain, err := url.PathUnescape(name); err == nil {
				name = plain
			}
			value = string(raw)
		}
		if out == nil {
			out = map[string]string{}
		}
		if out[name] = value; len(out) > maxTarXattrs {
			return nil, fmt.Errorf("more than %d attributes", maxTarXattrs)
		}
	}
	return out, nil
}

func pad64(s string) string {
	s = strings.TrimRight(s, "=")
	return s + strings.Repeat("=", (4-len(s)%4)%4)
}

// content finds the data of a regular file of size bytes in the archive, and fills in
// size, extents and reference. t.pos is moved over a sparse map that
// does not count as data.
func (t *tarReader) content(h *tarHeader, e *kiln.Entry, size int64) error {
	start, sparse, real, err := t.sparse(h, size)
	if err != nil {
		return err
	}
	if sparse == nil {
		e.Size = size
		e.Ref = contentRef(size, []part{{0, size, start}})
		return nil
	}
	end := t.pos + size // the map of PAX format 1.0 stands within the member
	if h.raw[156] == 'S' {
		// GNU's old format has it between header and data.
		t.pos, end = start, start+size
	}
	if end > t.size {
		return errors.New("the archive is cut short")
	}
	e.Size, e.Extents = real, []kiln.Extent{}
	at, pos := start, int64(0)
	parts := make([]part, 0, len(sparse))
	for _, x := range sparse {
		if x.Offset < pos || x.Length < 0 || x.Length > real-x.Offset || x.Length > end-at {
			return fmt.Errorf("its sparse map claims %d bytes at %d of %d", x.Length, x.Offset, real)
		}
		pos = x.Offset + x.Length
		if x.Length > 0 {
			e.Extents = append(e.Extents, x)
			parts = append(parts, part{x.Offset, x.Length, at})
		}
		at += x.Length
	}
	e.Ref = contentRef(real, parts)
	return nil
}

// sparse returns where the data of a member begins, its sparse map, nil if it has none,
// and its real size.
func (t *tarReader) sparse(h *tarHeader, size int64) (start int64, m []kiln.Extent, real int64, err error) {
	if h.raw[156] == 'S' {
		return t.oldSparse(h)
	}
	major, _ := t.get(h, "GNU.sparse.major")
	list, hasMap := t.get(h, "GNU.sparse.map")
	realSize, ok := t.get(h, "GNU.sparse.realsize")
	if !ok {
		realSize, _ = t.get(h, "GNU.sparse.size")
	}
	if major != "1" && !hasMap {
		return t.pos, nil, size, nil
	}
	if real, err = strconv.ParseInt(realSize, 10, 64); err != nil || real < 0 {
		return 0, nil, 0, fmt.Errorf("its real size is %q", brief(realSize))
	}
	if major == "1" {
		start, m, err = t.sparse10(size)
		return start, m, real, err
	}
	nums := strings.Split(list, ",")
	if len(nums)%2 != 0 || len(nums) > 2*maxTarSparse {
		return 0, nil, 0, fmt.Errorf("its sparse map has %d numbers", len(nums))
	}
	m = []kiln.Extent{}
	for i := 0; i < len(nums); i += 2 {
		off, err1 := strconv.ParseInt(nums[i], 10, 64)
		length, err2 := strconv.ParseInt(nums[i+1], 10, 64)
		if err1 != nil || err2 != nil {
			return 0, nil, 0, errors.New("its sparse map has something else than numbers")
		}
		m = append(m, kiln.Extent{Offset: off, Length: length})
	}
	return t.pos, m, real, nil
}

// sparse10 reads the map of PAX sparse format 1.0, decimal numbers in lines at the
// beginning of the member's data.
func (t *tarReader) sparse10(size int64) (int64, []kiln.Extent, error) {
	at, end := t.pos, t.pos+size
	var buf []byte
	number := func() (int64, error) {
		for {
			if i := bytes.IndexByte(buf, '\n'); i >= 0 {
				n, err := strconv.ParseInt(string(buf[:i]), 10, 64)
				buf = buf[i+1:]
				if err != nil {
					return 0, errors.New("its sparse map has something else than numbers")
				}
				return n, nil
			}
			if at+tarBlock > end || len(buf) > 64 {
				return 0, errors.New("its sparse map is cut short")
			}
			var b [tarBlock]byte
			if _, err := t.r.ReadAt(b[:], at); err != nil {
				return 0, errors.New("its sparse map is cut short")
			}
			at += tarBlock
			buf = append(buf, b[:]...)
		}
	}
	n, err := number()
	if err != nil || n < 0 || n > maxTarSparse {
		return 0, nil, orError(err, fmt.Errorf("its sparse map has %d stretches", n))
	}
	m := []kiln.Extent{}
	for range n {
		off, err := number()
		if err != nil {
			return 0, nil, err
		}
		length, err := number()
		if err != nil {
			return 0, nil, err
		}
		m = append(m, kiln.Extent{Offset: off, Length: length})
	}
	return at, m, nil
}

func orError(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// oldSparse reads the map of GNU's old format: four stretches in the header and more in
// blocks behind it.
func (t *tarReader) oldSparse(h *tarHeader) (int64, []kiln.Extent, int64, error) {
	real, err := tarNumber(h.raw[483:495])
	if err != nil || real < 0 {
		return 0, nil, 0, errors.New("its real size is not a number")
	}
	m := []kiln.Extent{}
	add := func(b []byte, n int) error {
		for i := range n {
			f := b[24*i : 24*i+24]
			if f[0] == 0 && f[12] == 0 {
				break
			}
			off, err1 := tarNumber(f[:12])
			length, err2 := tarNumber(f[12:])
			if err1 != nil || err2 != nil {
				return errors.New("its sparse map has something else than numbers")
			}
			m = append(m, kiln.Extent{Offset: off, Length: length})
		}
		return nil
	}
	if err := add(h.raw[386:], 4); err != nil {
		return 0, nil, 0, err
	}
	at := t.pos
	for more := h.raw[482] != 0; more; {
		var b [tarBlock]byte
		if _, err := t.r.ReadAt(b[:], at); err != nil || len(m) > maxTarSparse {
			return 0, nil, 0, errors.New("its sparse map is cut short")
		}
		at += tarBlock
		if err := add(b[:], 21); err != nil {
			return 0, nil, 0, err
		}
		more = b[504] != 0
	}
	return at, m, real, nil
}
