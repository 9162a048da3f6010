package sandboxd

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnvm/kiln/internal/guestapi/filesystem"
)

// describe returns what is at path. A symlink is described by what it leads to; one that
// leads nowhere, by itself.
func describe(path string, n names) (*filesystem.EntryInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	var target *string
	if info.Mode()&os.ModeSymlink != 0 {
		link, err := os.Readlink(path)
		if err != nil {
			return nil, err
		}
		if followed, err := os.Stat(path); err == nil {
			info = followed
			if real, err := filepath.EvalSymlinks(path); err == nil {
				link = real
			}
		}
		target = &link
	}
	entry := &filesystem.EntryInfo{
		Name:          validText(filepath.Base(path)),
		Type:          typeOf(info.Mode()),
		Path:          validText(path),
		Size:          info.Size(),
		Mode:          permissionBits(info.Mode()),
		Permissions:   info.Mode().String(),
		ModifiedTime:  timestamppb.New(info.ModTime()),
		SymlinkTarget: target,
		Metadata:      metadataOf(path),
	}
	if target != nil {
		*target = validText(*target)
	}
	for key, value := range entry.Metadata {
		entry.Metadata[key] = validText(value)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		entry.Owner, entry.Group = nameOf(n.users, stat.Uid), nameOf(n.groups, stat.Gid)
	}
	return entry, nil
}

// validText replaces what the protocol's strings cannot hold: a file name may be any bytes.
func validText(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func typeOf(mode os.FileMode) filesystem.FileType {
	switch {
	case mode.IsRegular():
		return filesystem.FileType_FILE_TYPE_FILE
	case mode.IsDir():
		return filesystem.FileType_FILE_TYPE_DIRECTORY
	case mode&os.ModeSymlink != 0:
		return filesystem.FileType_FILE_TYPE_SYMLINK
	}
	return filesystem.FileType_FILE_TYPE_UNSPECIFIED
}

// permissionBits returns st_mode & 07777.
func permissionBits(mode os.FileMode) uint32 {
	bits := uint32(mode.Perm())
	for flag, bit := range map[os.FileMode]uint32{os.ModeSetuid: 0o4000, os.ModeSetgid: 0o2000, os.ModeSticky: 0o1000} {
		if mode&flag != 0 {
			bits |= bit
		}
	}
	return bits
}
