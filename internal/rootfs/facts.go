package rootfs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kilnvm/kiln"
)

// Facts is everything about one entry that must be the same wherever it is looked at: in
// a build's result, in an image, by a kernel that has mounted the image. Paths and values
// are bytes, since they need not be text; in JSON they are base64.
type Facts struct {
	Path    []byte            `json:"path"`
	Type    kiln.EntryType    `json:"type"`
	Mode    uint32            `json:"mode"`
	UID     uint32            `json:"uid"`
	GID     uint32            `json:"gid"`
	ModTime time.Time         `json:"mtime"`
	Target  []byte            `json:"target,omitempty"` // of a symlink
	Same    []byte            `json:"same,omitempty"`   // first in path order of the names of a file with several
	Major   uint32            `json:"major,omitempty"`
	Minor   uint32            `json:"minor,omitempty"`
	Size    int64             `json:"size,omitempty"`
	Data    int64             `json:"data,omitempty"`    // bytes of Size that are not holes, counted in blocks of 4 KiB
	Content string            `json:"content,omitempty"` // digest of a regular file's bytes; see contentSum
	Xattrs  map[string][]byte `json:"xattrs,omitempty"`
}

// Describe reads all of src, content included, and returns the facts in the order of
// paths. Sockets are left out, directories that have no entry are added, as in an image.
func Describe(ctx context.Context, src kiln.EntrySource) ([]Facts, error) {
	return describeWith(ctx, src, contentSum)
}

// describeWith is [Describe] with a choice of what to say about content. It calls content
// once for every regular file, however many names that has.
func describeWith(ctx context.Context, src kiln.EntrySource, content func(*kiln.Entry) (string, error)) ([]Facts, error) {
	entries := map[string]kiln.Entry{}
	for e, err := range src.Entries() {
		if err != nil {
			return nil, err
		}
		if e.Type != kiln.TypeSocket {
			entries[e.Path] = e
		}
	}
	addParents(entries)
	first, err := linkGroups(entries)
	if err != nil {
		return nil, err
	}
	out := make([]Facts, 0, len(entries))
	hashes := map[string]string{} // of files with several names
	for _, path := range slices.Sorted(maps.Keys(entries)) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		e := entries[path]
		for e.Type == kiln.TypeHardlink {
			e = entries[e.Linkname]
		}
		f := factsOf(path, &e)
		same, many := first[e.Path]
		if many {
			f.Same = []byte(same)
		}
		if e.Type == kiln.TypeRegular {
			sum, known := hashes[e.Path]
			if !known {
				if sum, err = content(&e); err != nil {
					return nil, fmt.Errorf("read %q: %w", path, err)
				}
			}
			if f.Content = sum; many {
				hashes[e.Path] = sum
			}
		}
		out = append(out, f)
	}
	return out, nil
}

func addParents(entries map[string]kiln.Entry) {
	paths := slices.Collect(maps.Keys(entries))
	for _, p := range append(paths, ".") {
		for p != "." {
			i := strings.LastIndexByte(p, '/')
			if p = p[:max(i, 0)]; p == "" {
				p = "."
			}
			if _, ok := entries[p]; ok {
				break
			}
			entries[p] = kiln.Entry{Path: p, Type: kiln.TypeDirectory, Mode: 0o755, ModTime: time.Unix(0, 0)}
		}
	}
	if _, ok := entries["."]; !ok {
		entries["."] = kiln.Entry{Path: ".", Type: kiln.TypeDirectory, Mode: 0o755, ModTime: time.Unix(0, 0)}
	}
}

// linkGroups maps the path of every file that has several names to the first of them.
func linkGroups(entries map[string]kiln.Entry) (map[string]string, error) {
	first := map[string]string{}
	for path, e := range entries {
		hops := 0
		for e.Type == kiln.TypeHardlink {
			to, ok := entries[e.Linkname]
			if hops++; !ok || hops > len(entries) {
				return nil, fmt.Errorf("hardlink %q names nothing", path)
			}
			e = to
		}
		if e.Path == path {
			continue
		}
		if cur, ok := first[e.Path]; !ok {
			first[e.Path] = min(e.Path, path)
		} else {
			first[e.Path] = min(cur, path)
		}
	}
	return first, nil
}

func factsOf(path string, e *kiln.Entry) Facts {
	f := Facts{
		Path: []byte(path), Type: e.Type, Mode: e.Mode, UID: e.UID, GID: e.GID,
		ModTime: e.ModTime.UTC(), Major: e.Major, Minor: e.Minor,
	}
	if e.ModTime.IsZero() {
		f.ModTime = time.Unix(0, 0).UTC()
	}
	if e.Type == kiln.TypeSymlink {
		f.Target = []byte(e.Linkname)
	}
	if e.Type == kiln.TypeRegular {
		f.Size, f.Data = e.Size, dataBytes(e)
	}
	if len(e.Xattrs) > 0 {
		f.Xattrs = map[string][]byte{}
		for k, v := range e.Xattrs {
			f.Xattrs[k] = []byte(v)
		}
	}
	return f
}

// dataBytes counts the blocks that hold data.
func dataBytes(e *kiln.Entry) int64 {
	const block = 4096
	if e.Extents == nil {
		return (e.Size + block - 1) / block * block
	}
	total, end := int64(0), int64(0)
	for _, x := range e.Extents {
		if x.Length == 0 {
			continue
		}
		from, to := max(x.Offset/block, end), (x.Offset+x.Length+block-1)/block
		total += max(to-from, 0) * block
		end = max(end, to)
	}
	return total
}

// contentSum returns the SHA-256 over the number, eight bytes, and the bytes of every
// block of 4 KiB that holds something else than zeros: it takes no time for holes, and is
// the same wherever they are.
func contentSum(e *kiln.Entry) (string, error) {
	h := sha256.New()
	if e.Size == 0 {
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	r, err := e.Open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	extents := e.Extents
	if extents == nil {
		extents = []kiln.Extent{{Length: e.Size}}
	}
	pos, buf := int64(0), make([]byte, 64<<10)
	for _, x := range extents {
		from := max(x.Offset/sumBlock*sumBlock, pos)
		if err := skipTo(r, pos, from); err != nil {
			return "", err
		}
		to := min((x.Offset+x.Length+sumBlock-1)/sumBlock*sumBlock, e.Size)
		for pos = from; pos < to; {
			n, err := io.ReadFull(r, buf[:min(int64(len(buf)), to-pos)])
			if err != nil {
				return "", fmt.Errorf("it ends at byte %d of %d", pos+int64(n), e.Size)
			}
			sumBlocks(h, pos/sumBlock, buf[:n])
			pos += int64(n)
		}
	}
	if pos == e.Size {
		if n, _ := r.Read(buf[:1]); n > 0 {
			return "", fmt.Errorf("it has more than %d bytes", e.Size)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

const sumBlock = 4096

func sumBlocks(h hash.Hash, nr int64, b []byte) {
	var zeros [sumBlock]byte
	for ; len(b) > 0; nr++ {
		n := min(len(b), sumBlock)
		if !bytes.Equal(b[:n], zeros[:n]) {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(nr)))
			h.Write(b[:n])
		}
		b = b[n:]
	}
}

// skipTo moves a reader from one offset to a later one.
func skipTo(r io.Reader, from, to int64) error {
	if from == to {
		return nil
	}
	if s, ok := r.(io.Seeker); ok {
		_, err := s.Seek(to-from, io.SeekCurrent)
		return err
	}
	_, err := io.CopyN(io.Discard, r, to-from)
	return err
}

// Difference is one thing in which two root filesystems differ.
type Difference struct {
	Path  string `json:"path"`
	Field string `json:"field"` // "entry" when one side has no such path
	A     string `json:"a"`
	B     string `json:"b"`
}

func (d Difference) String() string {
	return fmt.Sprintf("%s: %s: %s → %s", d.Path, d.Field, d.A, d.B)
}

// Compare returns how b differs from a, both in the order of paths.
func Compare(a, b []Facts) []Difference {
	var out []Difference
	add := func(f *Facts, field, x, y string) {
		if x != y {
			out = append(out, Difference{showPath(f.Path), field, x, y})
		}
	}
	for len(a) > 0 || len(b) > 0 {
		var order int
		switch {
		case len(a) == 0:
			order = 1
		case len(b) == 0:
			order = -1
		default:
			order = cmp.Compare(string(a[0].Path), string(b[0].Path))
		}
		switch {
		case order < 0:
			add(&a[0], "entry", a[0].kind(), "absent")
			a = a[1:]
			continue
		case order > 0:
			add(&b[0], "entry", "absent", b[0].kind())
			b = b[1:]
			continue
		}
		x, y := &a[0], &b[0]
		add(x, "type", x.kind(), y.kind())
		add(x, "mode", fmt.Sprintf("%04o", x.Mode), fmt.Sprintf("%04o", y.Mode))
		add(x, "owner", fmt.Sprintf("%d:%d", x.UID, x.GID), fmt.Sprintf("%d:%d", y.UID, y.GID))
		add(x, "time", x.ModTime.UTC().Format(time.RFC3339Nano), y.ModTime.UTC().Format(time.RFC3339Nano))
		add(x, "target", fmt.Sprintf("%q", x.Target), fmt.Sprintf("%q", y.Target))
		add(x, "hardlink", fmt.Sprintf("%q", x.Same), fmt.Sprintf("%q", y.Same))
		add(x, "device", fmt.Sprintf("%d:%d", x.Major, x.Minor), fmt.Sprintf("%d:%d", y.Major, y.Minor))
		add(x, "size", fmt.Sprint(x.Size), fmt.Sprint(y.Size))
		add(x, "data", fmt.Sprint(x.Data), fmt.Sprint(y.Data))
		add(x, "content", x.Content, y.Content)
		for _, name := range slices.Sorted(maps.Keys(mergedKeys(x.Xattrs, y.Xattrs))) {
			add(x, "attribute "+name, showValue(x.Xattrs, name), showValue(y.Xattrs, name))
		}
		a, b = a[1:], b[1:]
	}
	return out
}

// showPath returns a path as text, quoted if it is none that can be shown.
func showPath(path []byte) string {
	for _, r := range string(path) {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			return strconv.Quote(string(path))
		}
	}
	return string(path)
}

func mergedKeys(a, b map[string][]byte) map[string]bool {
	out := map[string]bool{}
	for k := range a {
		out[k] = true
	}
	for k := range b {
		out[k] = true
	}
	return out
}

func showValue(m map[string][]byte, name string) string {
	v, ok := m[name]
	if !ok {
		return "absent"
	}
	return fmt.Sprintf("%q", v)
}

// kind names the type for people.
func (f *Facts) kind() string { return TypeName(f.Type) }

// TypeName names an entry's type for people.
func TypeName(t kiln.EntryType) string {
	switch t {
	case kiln.TypeRegular:
		return "file"
	case kiln.TypeDirectory:
		return "directory"
	case kiln.TypeSymlink:
		return "symlink"
	case kiln.TypeHardlink:
		return "hardlink"
	case kiln.TypeCharDevice:
		return "character device"
	case kiln.TypeBlockDevice:
		return "block device"
	case kiln.TypeFIFO:
		return "fifo"
	case kiln.TypeSocket:
		return "socket"
	}
	return fmt.Sprintf("type %d", t)
}

// ReadFacts reads facts that were written as JSON, one after the other.
func ReadFacts(r io.Reader) ([]Facts, error) {
	var out []Facts
	dec := json.NewDecoder(r)
	for {
		var f Facts
		err := dec.Decode(&f)
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("facts, entry %d: %w", len(out)+1, err)
		}
		out = append(out, f)
	}
}

// CompareListing reports how a listing made inside a guest differs from what src says:
// nothing, if the guest sees exactly the entries given.
func CompareListing(ctx context.Context, src kiln.EntrySource, listing io.Reader) ([]Difference, error) {
	want, err := Describe(ctx, src)
	if err != nil {
		return nil, err
	}
	got, err := ReadFacts(listing)
	if err != nil {
		return nil, err
	}
	return Compare(want, got), nil
}
