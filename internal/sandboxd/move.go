package sandboxd

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
)

// move renames source, or copies it and removes it where the two lie on different file
// systems. An overlay answers so, too, for a directory of the image.
func move(ctx context.Context, source, destination string) error {
	if strings.HasPrefix(destination+"/", source+"/") && source != destination {
		return errorf(connect.CodeInvalidArgument, "%s cannot be moved into itself", source)
	}
	err := os.Rename(source, destination)
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	if _, err := os.Lstat(destination); err == nil {
		if err := os.Remove(destination); err != nil { // as rename: a file or an empty directory
			return err
		}
	}
	if err := copyTree(ctx, source, destination); err != nil {
		_ = os.RemoveAll(destination)
		return err
	}
	return os.RemoveAll(source)
}

// copyTree copies with owner, mode and times.
func copyTree(ctx context.Context, source, destination string) error {
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	info, err := os.Lstat(source)
	if err != nil {
		return err
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		err = copyContent(source, destination)
	case mode.IsDir():
		err = copyEntries(ctx, source, destination)
	case mode&fs.ModeSymlink != 0:
		var target string
		if target, err = os.Readlink(source); err == nil {
			err = os.Symlink(target, destination)
		}
	default:
		err = unix.Mknod(destination, info.Sys().(*syscall.Stat_t).Mode, int(info.Sys().(*syscall.Stat_t).Rdev))
	}
	if err != nil {
		return err
	}
	return copyAttributes(info, destination)
}

func copyEntries(ctx context.Context, source, destination string) error {
	if err := os.Mkdir(destination, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(source)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := copyTree(ctx, filepath.Join(source, e.Name()), filepath.Join(destination, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copyContent(source, destination string) (err error) {
	from, err := os.Open(source)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(destination, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closed := to.Close(); err == nil {
			err = closed
		}
	}()
	if _, err := io.Copy(to, from); err != nil {
		return err
	}
	return setMetadata(to, metadataOf(source))
}

// copyAttributes sets the owner first: changing it clears the setuid bit.
func copyAttributes(info fs.FileInfo, destination string) error {
	stat := info.Sys().(*syscall.Stat_t)
	if err := os.Lchown(destination, int(stat.Uid), int(stat.Gid)); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink == 0 {
		if err := unix.Chmod(destination, permissionBits(info.Mode())); err != nil {
			return err
		}
	}
	times := []unix.Timespec{unix.Timespec(stat.Atim), unix.Timespec(stat.Mtim)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, destination, times, unix.AT_SYMLINK_NOFOLLOW)
}
