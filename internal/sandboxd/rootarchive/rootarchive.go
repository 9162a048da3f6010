// Package rootarchive writes the file system of a running sandbox as a tar archive (POSIX
// PAX, with nanoseconds and extended attributes), for a template to be made of it.
//
// Left out are other mounts, what lives no longer than the processes that made it (sockets
// anywhere, files below /run), and what makes the sandbox this sandbox: its machine ID, SSH
// host keys, saved random state and host name. Processes go on meanwhile: each file is
// consistent as far as nobody writes it.
package rootarchive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Write archives the tree below root. mounts are the absolute paths of other mounts, which
// are archived as empty directories; [Mounts] lists them.
func Write(ctx context.Context, w io.Writer, root string, mounts []string) error {
	whole := bufio.NewWriterSize(w, writeSize)
	a := &archiver{
		ctx: ctx, root: root, out: tar.NewWriter(whole), mounts: map[string]bool{}, links: map[inode]string{},
		buf: make([]byte, 64<<10), names: make([]byte, maxXattr), value: make([]byte, maxXattr),
	}
	for _, m := range mounts {
		a.mounts[strings.Trim(m, "/")] = true
	}
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: root, Err: err}
	}
	a.mountTime = time.Unix(st.Mtim.Unix())
	if err := a.directory("."); err != nil {
		return err
	}
	return errors.Join(a.out.Close(), whole.Flush())
}

// writeSize gathers what an archive consists of, because every write leaves the virtual
// machine: most files are smaller than a page, and a header is 512 bytes.
const writeSize = 256 << 10

// maxXattr is both XATTR_LIST_MAX and XATTR_SIZE_MAX of Linux.
const maxXattr = 64 << 10

type inode struct{ dev, ino uint64 }

type archiver struct {
	ctx    context.Context
	root   string
	out    *tar.Writer
	mounts map[string]bool
	// mountTime stands for the times of mount points: what can be seen is the other mount's,
	// and sysfs changes its own by itself.
	mountTime time.Time
	links     map[inode]string // first name of files that have several
	buf       []byte           // for contents
	names     []byte           // for lists of attributes
	value     []byte           // for one attribute
}

func (a *archiver) host(name string) string { return filepath.Join(a.root, name) }

// directory archives a directory and, unless it is a mount point, its members.
func (a *archiver) directory(name string) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	if err := a.entry(name); err != nil || a.mounts[name] {
		return err
	}
	list, err := os.ReadDir(a.host(name)) // sorted by name
	if err != nil {
		return ignoreGone(err)
	}
	for _, d := range list {
		member := path.Join(name, d.Name())
		if d.IsDir() {
			err = a.directory(member)
		} else {
			err = a.entry(member)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entry archives one member without what is below it.
func (a *archiver) entry(name string) error {
	var st unix.Stat_t
	if err := unix.Lstat(a.host(name), &st); err != nil {
		return ignoreGone(&fs.PathError{Op: "lstat", Path: name, Err: err})
	}
	hdr := &tar.Header{
		Format: tar.FormatPAX, Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), PAXRecords: map[string]string{},
	}
	if a.mounts[name] {
		hdr.ModTime = a.mountTime
	}
	kind := st.Mode & unix.S_IFMT
	switch volatile := strings.HasPrefix(name, "run/"); {
	case kind == unix.S_IFSOCK, volatile && kind != unix.S_IFDIR, isIdentity(name):
		return nil
	}
	switch kind {
	case unix.S_IFDIR:
		hdr.Typeflag = tar.TypeDir
		hdr.Name += "/"
	case unix.S_IFLNK:
		target, err := os.Readlink(a.host(name))
		if err != nil {
			return ignoreGone(err)
		}
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR, unix.S_IFBLK:
		hdr.Typeflag = tar.TypeChar
		if kind == unix.S_IFBLK {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	case unix.S_IFREG:
		hdr.Typeflag = tar.TypeReg
	default:
		return nil
	}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := a.links[id]; ok {
			hdr.Typeflag, hdr.Linkname = tar.TypeLink, first
			return a.header(hdr)
		}
		a.links[id] = name
	}
	if err := a.attributes(name, hdr); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeReg {
		return a.file(name, hdr)
	}
	return a.header(hdr)
}

func (a *archiver) header(hdr *tar.Header) error {
	if err := a.out.WriteHeader(hdr); err != nil {
		return fmt.Errorf("%s: %w", hdr.Name, err)
	}
	return nil
}

// file archives a regular file with the size that it has when it is opened: what is
// written meanwhile is left out, what vanishes reads as zeros.
func (a *archiver) file(name string, hdr *tar.Header) error {
	if text, ok := a.neutral(name); ok {
		hdr.Size = int64(len(text))
		if err := a.header(hdr); err != nil {
			return err
		}
		_, err := a.out.Write(text)
		return err
	}
	f, err := os.OpenFile(a.host(name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ignoreGone(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	hdr.Size = info.Size()
	if err := a.header(hdr); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{a.out}, struct{ io.Reader }{io.LimitReader(f, hdr.Size)}, a.buf)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{a.out}, io.LimitReader(zeros{}, hdr.Size-n), a.buf)
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// paxXattr is how GNU tar, bsdtar and Go write an extended attribute.
const paxXattr = "SCHILY.xattr."

func (a *archiver) attributes(name string, hdr *tar.Header) error {
	n, _ := unix.Llistxattr(a.host(name), a.names)
	if n <= 0 {
		return nil // gone, or a file system without attributes
	}
	for key := range strings.SplitSeq(strings.TrimRight(string(a.names[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(key, "trusted.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(a.host(name), key, a.value)
		if err != nil {
			continue // gone meanwhile
		}
		hdr.PAXRecords[paxXattr+key] = string(a.value[:n])
	}
	return nil
}

// isIdentity reports whether a member says which sandbox this is and is made anew, or not
// needed, in every clone.
func isIdentity(name string) bool {
	switch name {
	case "etc/hostname", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/urandom/random-seed",
		"var/lib/systemd/credential.secret":
		return true
	}
	key, err := path.Match("etc/ssh/ssh_host_*_key*", name)
	return err == nil && key && name != hostKey
}

// hostKey stays as an empty file: that is how the daemon knows that a clone wants one.
const hostKey = "etc/ssh/ssh_host_ed25519_key"

// neutral returns what stands in the archive for a file that holds something of the
// sandbox's own.
func (a *archiver) neutral(name string) ([]byte, bool) {
	switch name {
	case "etc/machine-id", hostKey:
		return nil, true
	case "etc/hosts":
		hosts, err := os.ReadFile(a.host(name))
		if err != nil {
			return nil, false
		}
		var out bytes.Buffer
		for line := range bytes.Lines(hosts) {
			if f := bytes.Fields(line); len(f) == 0 || string(f[0]) != "127.0.1.1" { // its own name
				out.Write(line)
			}
		}
		return out.Bytes(), true
	}
	return nil, false
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Mounts returns the mount points below root, itself not among them, as paths relative to
// root that begin with "/". It reads /proc/self/mountinfo (proc(5)).
func Mounts(root string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var list []string
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		rel, err := filepath.Rel(root, unescape.Replace(f[4]))
		if err == nil && rel != "." && filepath.IsLocal(rel) {
			list = append(list, "/"+rel)
		}
	}
	return list, nil
}
