package rootfs

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
	"golang.org/x/sys/unix"
)

// FromDir returns the tree below an open directory. The walk goes by descriptor and
// follows no symlink, so nothing outside the tree is ever reached. The directory must not
// change until the source is closed. Closing the source closes dir.
//
// Access and change times are left out: they say when a builder touched a file, and would
// make two builds of the same content differ.
func FromDir(dir *os.File) (kiln.EntrySource, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, fmt.Errorf("root filesystem: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fmt.Errorf("root filesystem: %s is not a directory", dir.Name())
	}
	return &dirSource{root: dir}, nil
}

type dirSource struct{ root *os.File }

func (s *dirSource) Close() error { return s.root.Close() }

// Entries walks the tree.
func (s *dirSource) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		w := walk{src: s, yield: yield, names: map[inodeID]string{}, buf: make([]byte, 64<<10)}
		fd, err := unix.Openat(int(s.root.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			yield(kiln.Entry{}, fmt.Errorf("root filesystem: %w", err))
			return
		}
		if err := w.root(fd); err != nil && !errors.Is(err, errStopped) {
			yield(kiln.Entry{}, err)
		}
	}
}

// inodeID tells files apart; equal IDs mean hardlinks.
type inodeID struct{ dev, ino uint64 }

// walk is one iteration over a dirSource.
type walk struct {
	src   *dirSource
	yield func(kiln.Entry, error) bool
	names map[inodeID]string // first name of files that have several
	buf   []byte             // for attribute values
}

var errStopped = errors.New("walk stopped by its consumer")

// root yields the root directory and all below it. It closes fd.
func (w *walk) root(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return fmt.Errorf("read %q: %w", ".", err)
	}
	e := entryOf(".", &st)
	var err error
	if e.Xattrs, err = w.xattrs(procPath(fd, "."), "."); err != nil {
		unix.Close(fd)
		return err
	}
	if !w.yield(e, nil) {
		unix.Close(fd)
		return errStopped
	}
	return w.directory(fd, "")
}

// directory yields what is in the directory fd, whose path with a slash behind it is
// prefix. It closes fd.
func (w *walk) directory(fd int, prefix string) error {
	dir := os.NewFile(uintptr(fd), prefix)
	defer dir.Close()
	for {
		// Names come in batches: a directory may have a million of them.
		batch, err := dir.Readdirnames(4096)
		for _, name := range batch {
			if err := w.entry(fd, name, prefix+name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list %q: %w", prefix, err)
		}
	}
}

// entry yields one entry and, if it is a directory, all below it.
func (w *walk) entry(fd int, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("read %q: %w", path, err)
	}
	e := entryOf(path, &st)
	if e.Type == 0 {
		return fmt.Errorf("read %q: unknown file type %#o", path, st.Mode&unix.S_IFMT)
	}
	if st.Nlink > 1 && e.Type != kiln.TypeDirectory {
		id := inodeID{st.Dev, st.Ino}
		if first, ok := w.names[id]; ok {
			e = kiln.Entry{Path: path, Type: kiln.TypeHardlink, Linkname: first}
			return w.emit(e)
		}
		w.names[id] = path
	}
	var err error
	if e.Xattrs, err = w.xattrs(procPath(fd, name), path); err != nil {
		return err
	}
	switch e.Type {
	case kiln.TypeSymlink:
		if e.Linkname, err = readlink(fd, name); err != nil {
			return fmt.Errorf("read link %q: %w", path, err)
		}
	case kiln.TypeRegular:
		e.Ref = path
		e.Open = func() (io.ReadCloser, error) { return w.src.OpenRef(path) }
		if st.Blocks*512 < st.Size {
			if e.Extents, err = dataExtents(fd, name, st.Size); err != nil {
				return fmt.Errorf("read %q: %w", path, err)
			}
		}
	}
	if err := w.emit(e); err != nil {
		return err
	}
	if e.Type != kiln.TypeDirectory {
		return nil
	}
	sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", path, err)
	}
	return w.directory(sub, path+"/")
}

func (w *walk) emit(e kiln.Entry) error {
	if !w.yield(e, nil) {
		return errStopped
	}
	return nil
}

// procPath names an entry of an open directory for system calls that want a path. The
// last element is never followed by the calls it is used for.
func procPath(fd int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
}

// entryOf converts what stat says. Type is 0 for something unknown.
func entryOf(path string, st *unix.Stat_t) kiln.Entry {
	e := kiln.Entry{
		Path: path, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		ModTime: time.Unix(st.Mtim.Unix()).UTC(),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = kiln.TypeRegular, st.Size
	case unix.S_IFDIR:
		e.Type = kiln.TypeDirectory
	case unix.S_IFLNK:
		e.Type = kiln.TypeSymlink
	case unix.S_IFCHR:
		e.Type = kiln.TypeCharDevice
	case unix.S_IFBLK:
		e.Type = kiln.TypeBlockDevice
	case unix.S_IFIFO:
		e.Type = kiln.TypeFIFO
	case unix.S_IFSOCK:
		e.Type = kiln.TypeSocket
	}
	if e.Type == kiln.TypeCharDevice || e.Type == kiln.TypeBlockDevice {
		e.Major, e.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	return e
}

func readlink(fd int, name string) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(fd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// xattrs reads the attributes of the file that proc names.
func (w *walk) xattrs(proc, path string) (map[string]string, error) {
	n, err := retryERANGE(&w.buf, func(b []byte) (int, error) { return unix.Llistxattr(proc, b) })
	if n == 0 || err == unix.ENOTSUP {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes of %q: %w", path, err)
	}
	attrs := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(w.buf[:n]), "\x00"), "\x00") {
		n, err := retryERANGE(&w.buf, func(b []byte) (int, error) { return unix.Lgetxattr(proc, name, b) })
		if err == unix.ENODATA { // some file systems list what they do not have
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read attribute %q of %q: %w", name, path, err)
		}
		attrs[name] = string(w.buf[:n])
	}
	return attrs, nil
}

// retryERANGE calls f with a larger buffer until its result fits.
func retryERANGE(buf *[]byte, f func([]byte) (int, error)) (int, error) {
	for {
		n, err := f(*buf)
		if err != unix.ERANGE || len(*buf) >= 1<<20 {
			return n, err
		}
		*buf = make([]byte, 2*len(*buf))
	}
}

// dataExtents asks the file system where a file has data. nil means everywhere.
func dataExtents(dir int, name string, size int64) ([]kiln.Extent, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	extents := []kiln.Extent{}
	for pos := int64(0); pos < size; {
		from, err := unix.Seek(fd, pos, unix.SEEK_DATA)
		if err == unix.ENXIO { // only a hole is left
			break
		}
		if err != nil {
			if pos == 0 { // a file system without the call: all is data
				return nil, nil
			}
			return nil, err
		}
		to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		to = min(to, size)
		if from < to {
			extents = append(extents, kiln.Extent{Offset: from, Length: to - from})
		}
		pos = max(to, pos+1)
	}
	return extents, nil
}

// OpenRef opens the regular file at path. No symlink on the way is followed.
func (s *dirSource) OpenRef(path string) (io.ReadCloser, error) {
	dir := int(s.root.Fd())
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	// A path longer than one call takes is opened piece by piece.
	const longest = 4000
	for len(path) > longest {
		cut := strings.LastIndexByte(path[:longest], '/')
		step := how
		step.Flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		next, err := unix.Openat2(dir, path[:cut], &step)
		if dir != int(s.root.Fd()) {
			unix.Close(dir)
		}
		if err != nil {
			return nil, err
		}
		dir, path = next, path[cut+1:]
	}
	fd, err := unix.Openat2(dir, path, &how)
	if dir != int(s.root.Fd()) {
		unix.Close(dir)
	}
	if err != nil {
		return nil, err
	}
	return fileReader(fd), nil
}

// fileReader reads a descriptor without registering it with the poller, which for a
// hundred thousand small files would cost more than reading them.
type fileReader int

func (f fileReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, err := unix.Read(int(f), p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (f fileReader) Seek(offset int64, whence int) (int64, error) {
	return unix.Seek(int(f), offset, whence)
}

func (f fileReader) Close() error { return unix.Close(int(f)) }
