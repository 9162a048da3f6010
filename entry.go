package kiln

import (
	"io"
	"iter"
	"time"
)

// EntryType is the kind of a file-system entry.
type EntryType uint8

const (
	TypeRegular EntryType = iota + 1
	TypeDirectory
	TypeSymlink
	TypeHardlink // another name for the entry at Entry.Linkname, which is not a directory
	TypeCharDevice
	TypeBlockDevice
	TypeFIFO
	TypeSocket
)

// Extent is a range of bytes of a file that holds data; what lies between extents is a
// hole and reads as zeros.
type Extent struct{ Offset, Length int64 }

// Entry is one member of a root filesystem, as it will be seen inside the VM.
type Entry struct {
	// Path is relative to the root and slash-separated, without a leading slash, "."
	// or ".." elements; the root directory is ".". Any bytes but NUL are allowed:
	// a path need not be UTF-8.
	Path string
	Type EntryType
	// Mode holds the permission bits and setuid, setgid and sticky, as in st_mode & 07777.
	Mode     uint32
	UID, GID uint32
	// ModTime has nanoseconds. A zero AccessTime or ChangeTime means "as ModTime".
	ModTime, AccessTime, ChangeTime time.Time
	// Linkname is the target of a symlink, byte for byte, or the Path of the entry
	// that a hardlink names.
	Linkname     string
	Major, Minor uint32 // of a device
	// Xattrs maps full names ("security.capability") to raw values as the kernel's
	// getxattr returns them (POSIX ACLs in the kernel's user-space encoding).
	Xattrs map[string]string
	// Size is the apparent size of a regular file in bytes.
	Size int64
	// Extents lists the data of a sparse file in ascending order without overlap.
	// nil means that all of it is data.
	Extents []Extent
	// Open returns the content of a regular file: exactly Size bytes, holes as zeros.
	// It may be called any number of times, in any order, until the source is closed.
	// It is nil for other types and may be nil when Size is 0.
	Open func() (io.ReadCloser, error)
	// Ref, when not empty and the source is a [RefOpener], names the content, so that a
	// consumer need not keep Open. Equal names in one source mean equal content.
	Ref string
}

// RefOpener is an [EntrySource] that opens content by [Entry.Ref]. A consumer of a
// million entries keeps their short names on disk instead of a million functions.
type RefOpener interface {
	EntrySource
	OpenRef(ref string) (io.ReadCloser, error)
}

// EntrySource is a root filesystem to be read. Entries arrive in any order; of two with
// one path the later wins; parents may come after their children or be missing (they
// are then made root-owned, mode 0755). Content is opened only after the iteration, so
// that a consumer can lay a filesystem out before it reads a byte.
type EntrySource interface {
	Entries() iter.Seq2[Entry, error]
	// Close releases what Open needs. No content may be read afterwards.
	Close() error
}
