package source

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kilnvm/kiln"
)

// Limits bound what an archive may make the server store. Zero fields mean the values
// of [DefaultLimits].
type Limits struct {
	Entries    int   // members of the archive
	Bytes      int64 // sum of file sizes after decompression, holes counted as data
	PathLength int   // bytes of one path
}

// DefaultLimits returns limits that honest build contexts stay far below.
func DefaultLimits() Limits {
	return Limits{Entries: 500_000, Bytes: 16 << 30, PathLength: 1024}
}

// WithDefaults returns l with the values of [DefaultLimits] for zero fields.
func (l Limits) WithDefaults() Limits {
	d := DefaultLimits()
	if l.Entries == 0 {
		l.Entries = d.Entries
	}
	if l.Bytes == 0 {
		l.Bytes = d.Bytes
	}
	if l.PathLength == 0 {
		l.PathLength = d.PathLength
	}
	return l
}

// Unpack writes the tar archive r, plain or compressed with gzip, into the existing
// empty directory dir. Nothing is ever written outside dir: paths are checked as text,
// an entry below a symlink is refused, and every system call goes through an os.Root.
//
// An archive that is at fault (malformed, over a limit, with an entry that a build
// context cannot hold) gives a *kiln.Error with code invalid that names the entry.
func Unpack(ctx context.Context, r io.Reader, dir string, limits Limits) error {
	return unpack(ctx, r, dir, limits, func(string) bool { return true })
}

// UnpackRecipe writes only what [Recipe] reads: the Dockerfile, ignore files and
// metadata files. It is for archives that [Unpack] has accepted before. If r can seek it is
// fast however large the context is.
func UnpackRecipe(ctx context.Context, r io.Reader, dir string, limits Limits, dockerfile string) error {
	dockerfile = cleanDockerfile(dockerfile)
	wanted := map[string]bool{dockerfile: true, dockerfile + ignoreFile: true, ignoreFile: true}
	for _, f := range kiln.MetadataFiles() {
		wanted[f] = true
		wanted[path.Join(path.Dir(dockerfile), f)] = true // to warn of it
	}
	return unpack(ctx, r, dir, limits, func(name string) bool { return wanted[name] })
}

func unpack(ctx context.Context, r io.Reader, dir string, limits Limits, want func(string) bool) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack build context: %w", err)
	}
	defer root.Close()
	plain, err := decompress(r)
	if err != nil {
		return err
	}
	u := &unpacker{ctx: ctx, root: root, limits: limits.WithDefaults(), want: want, kinds: map[string]byte{".": tar.TypeDir}}
	return u.archive(tar.NewReader(plain))
}

// decompress looks at the first bytes of r. A seekable plain archive is returned as it
// is, so that the reader of the archive can seek over what it skips.
func decompress(r io.Reader) (io.Reader, error) {
	magic := []byte{0x1f, 0x8b}
	head := make([]byte, len(magic))
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read build context: %w", err)
	}
	if s, ok := r.(io.Seeker); ok {
		if _, err := s.Seek(int64(-n), io.SeekCurrent); err != nil {
			return nil, fmt.Errorf("read build context: %w", err)
		}
	} else {
		r = io.MultiReader(bytes.NewReader(head[:n]), r)
	}
	if !bytes.Equal(head[:n], magic) {
		return r, nil
	}
	z, err := gzip.NewReader(bufio.NewReaderSize(r, 64<<10))
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "build context: damaged gzip header: %w", err)
	}
	return z, nil
}

type unpacker struct {
	ctx    context.Context
	root   *os.Root
	limits Limits
	want   func(string) bool
	kinds  map[string]byte // type of every path made so far
	count  int
	bytes  int64
	modes  []dirMode // set at the end: a directory may be read-only
}

type dirMode struct {
	name string
	mode fs.FileMode
}

func (u *unpacker) archive(t *tar.Reader) error {
	for {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		hdr, err := t.Next()
		if errors.Is(err, io.EOF) {
			return u.finish()
		}
		if err != nil {
			return u.readError(err)
		}
		if err := u.entry(hdr, t); err != nil {
			return err
		}
	}
}

// readError sorts a damaged archive (the sender's fault) from a failing reader.
func (u *unpacker) readError(err error) error {
	switch {
	case u.ctx.Err() != nil:
		return u.ctx.Err()
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, tar.ErrFieldTooLong),
		errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
		return kiln.Errorf(kiln.CodeInvalid, "build context: damaged archive after %d entries: %w", u.count, err)
	}
	return kiln.Errorf(kiln.CodeInvalid, "build context: archive cannot be read after %d entries: %w", u.count, err)
}

func refuse(name, format string, args ...any) error {
	return kiln.Errorf(kiln.CodeInvalid, "build context: entry %q: %s", shorten(name), fmt.Sprintf(format, args...))
}

func shorten(s string) string {
	if len(s) > 200 {
		return s[:100] + "…" + s[len(s)-97:]
	}
	return s
}

func (u *unpacker) entry(hdr *tar.Header, content io.Reader) error {
	if u.count++; u.count > u.limits.Entries {
		return kiln.Errorf(kiln.CodeInvalid, "build context: more than %d entries", u.limits.Entries).
			WithHint("leave out what the build does not need with %s", ignoreFile)
	}
	name, err := u.checkName(hdr.Name)
	if err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(name, hdr, content)
	case tar.TypeDir:
		return u.directory(name, hdr)
	case tar.TypeSymlink:
		return u.symlink(name, hdr)
	case tar.TypeLink:
		return u.hardlink(name, hdr)
	case tar.TypeXGlobalHeader: // git archive puts the commit there
		return nil
	}
	return refuse(hdr.Name, "is %s, which a build context cannot hold", typeName(hdr.Typeflag))
}

func typeName(flag byte) string {
	switch flag {
	case tar.TypeChar:
		return "a character device"
	case tar.TypeBlock:
		return "a block device"
	case tar.TypeFifo:
		return "a named pipe"
	}
	return fmt.Sprintf("of unknown type %q", flag)
}

// checkName returns the clean relative form of a path, or says why it is refused.
func (u *unpacker) checkName(raw string) (string, error) {
	switch {
	case len(raw) > u.limits.PathLength:
		return "", refuse(raw, "path is longer than %d bytes", u.limits.PathLength)
	case strings.ContainsRune(raw, 0):
		return "", refuse(raw, "path contains a NUL byte")
	case strings.HasPrefix(raw, "/"):
		return "", refuse(raw, "path is absolute")
	}
	for elem := range strings.SplitSeq(raw, "/") {
		if elem == ".." {
			return "", refuse(raw, "path leads upwards (..)")
		}
		if len(elem) > 255 {
			return "", refuse(raw, "file name is longer than 255 bytes")
		}
	}
	return path.Clean(raw), nil
}

// parents makes the directories above name and refuses to go through anything else.
func (u *unpacker) parents(name, raw string) error {
	dir := path.Dir(name)
	switch kind, known := u.kinds[dir]; {
	case known && kind == tar.TypeDir:
		return nil
	case known && kind == tar.TypeSymlink:
		return refuse(raw, "lies below the symlink %q", dir)
	case known:
		return refuse(raw, "lies below %q, which is not a directory", dir)
	}
	if err := u.parents(dir, raw); err != nil {
		return err
	}
	return u.mkdir(dir, 0o755)
}

func (u *unpacker) mkdir(name string, mode fs.FileMode) error {
	if err := u.root.Mkdir(name, 0o700); err != nil {
		return u.writeError(name, err)
	}
	u.kinds[name] = tar.TypeDir
	u.modes = append(u.modes, dirMode{name, mode})
	return nil
}

// replace makes room for name: of two entries with one path the later counts.
func (u *unpacker) replace(name, raw string) error {
	if name == "." {
		return refuse(raw, "names the context itself but is not a directory")
	}
	if err := u.parents(name, raw); err != nil {
		return err
	}
	kind, known := u.kinds[name]
	if !known {
		return nil
	}
	if kind == tar.TypeDir {
		return refuse(raw, "replaces a directory")
	}
	if err := u.root.Remove(name); err != nil {
		return u.writeError(name, err)
	}
	delete(u.kinds, name)
	return nil
}

func (u *unpacker) directory(name string, hdr *tar.Header) error {
	if !u.want(name) {
		return nil
	}
	mode := hdr.FileInfo().Mode() & tarMode
	if kind, known := u.kinds[name]; known && kind == tar.TypeDir {
		u.modes = append(u.modes, dirMode{name, mode})
		return nil
	}
	if err := u.replace(name, hdr.Name); err != nil {
		return err
	}
	return u.mkdir(name, mode)
}

func (u *unpacker) file(name string, hdr *tar.Header, content io.Reader) error {
	if hdr.Size < 0 || hdr.Size > u.limits.Bytes-u.bytes {
		return kiln.Errorf(kiln.CodeInvalid, "build context: entry %q: files are larger than %d bytes together", shorten(hdr.Name), u.limits.Bytes).
			WithHint("leave out what the build does not need with %s", ignoreFile)
	}
	u.bytes += hdr.Size
	if !u.want(name) {
		return nil
	}
	if err := u.replace(name, hdr.Name); err != nil {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return u.writeError(name, err)
	}
	u.kinds[name] = tar.TypeReg
	err = u.copy(f, contextReader{u.ctx, content}, hdr)
	if err == nil {
		err = f.Chmod(hdr.FileInfo().Mode() & tarMode)
	}
	if cerr := f.Close(); err == nil && cerr != nil {
		err = u.writeError(name, cerr)
	}
	return err
}

func (u *unpacker) copy(f *os.File, content io.Reader, hdr *tar.Header) error {
	n, err := io.Copy(struct{ io.Writer }{f}, content)
	var pathErr *fs.PathError
	switch {
	case errors.As(err, &pathErr):
		return u.writeError(hdr.Name, err)
	case err != nil:
		return u.readError(err)
	case n != hdr.Size:
		return refuse(hdr.Name, "holds %d bytes but announces %d", n, hdr.Size)
	}
	return nil
}

func (u *unpacker) symlink(name string, hdr *tar.Header) error {
	switch {
	case hdr.Linkname == "":
		return refuse(hdr.Name, "is a symlink without a target")
	case len(hdr.Linkname) > 4095:
		return refuse(hdr.Name, "has a symlink target longer than 4095 bytes")
	case strings.ContainsRune(hdr.Linkname, 0):
		return refuse(hdr.Name, "has a symlink target with a NUL byte")
	case !u.want(name):
		return nil
	}
	if err := u.replace(name, hdr.Name); err != nil {
		return err
	}
	if err := u.root.Symlink(hdr.Linkname, name); err != nil {
		return u.writeError(name, err)
	}
	u.kinds[name] = tar.TypeSymlink
	return nil
}

func (u *unpacker) hardlink(name string, hdr *tar.Header) error {
	target, err := u.checkName(hdr.Linkname)
	if err != nil {
		return refuse(hdr.Name, "hard link target: %v", err)
	}
	if !u.want(name) {
		return nil
	}
	if kind, known := u.kinds[target]; !known || kind != tar.TypeReg {
		return refuse(hdr.Name, "is a hard link to %q, which is no earlier file of the archive", shorten(target))
	}
	if target == name {
		return nil
	}
	if err := u.replace(name, hdr.Name); err != nil {
		return err
	}
	if err := u.root.Link(target, name); err != nil {
		return u.writeError(name, err)
	}
	u.kinds[name] = tar.TypeReg
	return nil
}

// finish gives directories their modes, members before their parents.
func (u *unpacker) finish() error {
	for i := len(u.modes) - 1; i >= 0; i-- {
		m := u.modes[i]
		if m.name == "." {
			continue
		}
		// Owner access stays: the builder must be able to read and remove the tree.
		if err := u.root.Chmod(m.name, m.mode|0o700); err != nil {
			return u.writeError(m.name, err)
		}
	}
	return nil
}

// writeError reports a failure of our own disk.
func (u *unpacker) writeError(name string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return kiln.Errorf(kiln.CodeExhausted, "disk full while unpacking %q of the build context: %w", shorten(name), err).
			WithHint("free space in the data directory")
	}
	return fmt.Errorf("unpack %q: %w", shorten(filepath.ToSlash(name)), err)
}
