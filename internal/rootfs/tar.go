package rootfs

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
	"strings"

	"github.com/kilnvm/kiln"
	"github.com/klauspost/compress/zstd"
)

// Limits bound what an archive may ask for, so that a small hostile one cannot use up
// the host.
type Limits struct {
	Entries int64 // members
	Bytes   int64 // of all members' data together, and of the archive when it is unpacked
}

// DefaultLimits are far above any real root filesystem.
var DefaultLimits = Limits{Entries: 16_000_000, Bytes: 256 << 30}

// FromTar returns the members of a tar archive, plain or compressed with gzip or
// Zstandard: POSIX (PAX), GNU and V7 format, with sparse files and extended attributes.
// A regular file that holds a plain archive is read in place and must stay as it is;
// anything else is first copied to an unlinked temporary file, since content is read
// after the iteration and in another order.
//
// No name in the archive is used as a path of the host. A member that cannot be
// part of a root filesystem ends the iteration with a [kiln.Error] that names it.
func FromTar(r io.Reader) (kiln.EntrySource, error) { return FromTarLimited(r, DefaultLimits) }

// FromTarLimited is [FromTar] with other limits.
func FromTarLimited(r io.Reader, limits Limits) (kiln.EntrySource, error) {
	if f, ok := r.(*os.File); ok {
		st, err := f.Stat()
		if err == nil && st.Mode().IsRegular() && !compressed(f) {
			return &tarSource{r: f, size: st.Size(), limits: limits}, nil
		}
	}
	f, size, err := spool(r, limits.Bytes)
	if err != nil {
		return nil, err
	}
	return &tarSource{r: f, size: size, limits: limits, owned: f}, nil
}

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

func compressed(r io.ReaderAt) bool {
	var b [4]byte
	n, _ := r.ReadAt(b[:], 0)
	return bytes.HasPrefix(b[:n], gzipMagic) || bytes.HasPrefix(b[:n], zstdMagic)
}

// spool copies what r unpacks to into an unlinked temporary file.
func spool(r io.Reader, limit int64) (*os.File, int64, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, _ := br.Peek(4)
	var plain io.Reader = br
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, 0, badArchive("gzip: %v", err)
		}
		plain = z
	case bytes.HasPrefix(head, zstdMagic):
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return nil, 0, badArchive("zstd: %v", err)
		}
		defer z.Close()
		plain = z
	}
	f, err := os.CreateTemp("", "kiln-tar-*")
	if err != nil {
		return nil, 0, fmt.Errorf("archive: %w", err)
	}
	if err = os.Remove(f.Name()); err == nil {
		var n int64
		if n, err = io.Copy(f, io.LimitReader(plain, limit+1)); err == nil && n <= limit {
			return f, n, nil
		}
		if err == nil {
			err = kiln.Errorf(kiln.CodeInvalid, "archive unpacks to more than %d bytes", limit)
		} else if !errors.Is(err, os.ErrPermission) {
			err = badArchive("unpack: %w", err)
		}
	}
	f.Close()
	return nil, 0, err
}

func badArchive(format string, args ...any) error {
	return kiln.Errorf(kiln.CodeInvalid, "archive: "+format, args...)
}

type tarSource struct {
	r      io.ReaderAt
	size   int64
	limits Limits
	owned  io.Closer
}

func (s *tarSource) Close() error {
	if s.owned == nil {
		return nil
	}
	return s.owned.Close()
}

// Entries reads the archive's headers from front to back.
func (s *tarSource) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		t := tarReader{r: s.r, size: s.size, limits: s.limits}
		for {
			e, err := t.next()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(kiln.Entry{}, err)
				return
			}
			if e.Type == kiln.TypeRegular && e.Size > 0 {
				ref := e.Ref
				e.Open = func() (io.ReadCloser, error) { return s.OpenRef(ref) }
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// A content reference is a list of numbers: the size of the file, then for each stretch
// of data its offset in the file, its length and its offset in the archive.
func contentRef(size int64, parts []part) string {
	b := strconv.AppendInt(nil, size, 10)
	for _, p := range parts {
		for _, n := range []int64{p.offset, p.length, p.at} {
			b = strconv.AppendInt(append(b, ' '), n, 10)
		}
	}
	return string(b)
}

// part is a stretch of data of a file and where it stands in the archive.
type part struct{ offset, length, at int64 }

// OpenRef opens the content that a reference names.
func (s *tarSource) OpenRef(ref string) (io.ReadCloser, error) {
	fields := strings.Fields(ref)
	if len(fields)%3 != 1 {
		return nil, fmt.Errorf("archive content %q: not a reference", ref)
	}
	nums := make([]int64, len(fields))
	for i, f := range fields {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("archive content %q: %w", ref, err)
		}
		nums[i] = n
	}
	c := &tarContent{r: s.r, size: nums[0]}
	for i := 1; i < len(nums); i += 3 {
		c.parts = append(c.parts, part{nums[i], nums[i+1], nums[i+2]})
	}
	return c, nil
}

// tarContent reads a member, holes as zeros.
type tarContent struct {
	r     io.ReaderAt
	size  int64
	pos   int64
	parts []part
}

func (c *tarContent) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if c.pos >= c.size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), c.size-c.pos)]
	for len(c.parts) > 0 && c.pos >= c.parts[0].offset+c.parts[0].length {
		c.parts = c.parts[1:]
	}
	if len(c.parts) == 0 || c.pos < c.parts[0].offset {
		if len(c.parts) > 0 {
			p = p[:min(int64(len(p)), c.parts[0].offset-c.pos)]
		}
		clear(p)
		c.pos += int64(len(p))
		return len(p), nil
	}
	d := c.parts[0]
	p = p[:min(int64(len(p)), d.offset+d.length-c.pos)]
	n, err := c.r.ReadAt(p, d.at+c.pos-d.offset)
	c.pos += int64(n)
	if n == len(p) {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Seek moves forward relative to the current position.
func (c *tarContent) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || offset < 0 {
		return 0, errors.New("seek: forward only")
	}
	c.pos += offset
	return c.pos, nil
}

func (c *tarContent) Close() error { return nil }
