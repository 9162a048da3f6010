package pid1

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount points in the initramfs. Once the root has been entered they cannot be reached by
// any path, so that nothing in the VM sees or changes the layers by themselves.
const (
	baseDir    = "/base"
	scratchDir = "/scratch"
	newRoot    = "/root"
)

// root is the VM's root filesystem.
type root struct {
	scratch *os.File // the mount of the writable layer
}

// mountRoot joins the two disks. The writable one comes empty from the host or holds what
// an earlier boot of this VM left there.
func mountRoot(d disks, log *slog.Logger) (*root, error) {
	for _, dir := range []string{baseDir, scratchDir, newRoot} {
		if err := ensureDir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	base := mount{d.base, baseDir, "ext4", unix.MS_RDONLY | unix.MS_NOATIME, ""}
	if err := base.do(); err != nil {
		return nil, fmt.Errorf("root filesystem: %w", err)
	}
	scratch := mount{d.scratch, scratchDir, "ext4", unix.MS_NOATIME, ""}
	if err := scratch.do(); err != nil {
		return nil, fmt.Errorf("scratch disk: %w", err)
	}
	upper, work := scratchDir+"/upper", scratchDir+"/work"
	for _, dir := range []string{upper, work} {
		if err := ensureDir(dir, 0o755); err != nil {
			return nil, fmt.Errorf("scratch disk: %w", err)
		}
	}
	if err := copyRootAttributes(baseDir, upper); err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	if err := mountOverlay(upper, work, log); err != nil {
		return nil, err
	}
	f, err := os.Open(scratchDir)
	if err != nil {
		return nil, err
	}
	return &root{scratch: f}, nil
}

// mountOverlay mounts the joined root. The features keep what programs expect of one file
// system: directories can be renamed, hard links stay linked when one of them is written,
// inode numbers are unique, chown does not copy the content. They are younger than
// overlayfs itself, so a kernel without them gets the plain kind.
func mountOverlay(upper, work string, log *slog.Logger) error {
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", baseDir, upper, work)
	overlay := mount{"overlay", newRoot, "overlay", unix.MS_NOATIME, layers + ",redirect_dir=on,index=on,metacopy=on,xino=on"}
	err := overlay.do()
	if errors.Is(err, unix.EINVAL) {
		log.Warn("this kernel's overlayfs lacks features", "error", err)
		overlay.data = layers
		err = overlay.do()
	}
	return err
}

// copyRootAttributes makes the top of the writable layer look like the root directory of
// the image: of a merged directory, overlayfs shows the upper one's attributes.
func copyRootAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return err
	}
	if err := unix.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, 0)
}

func copyXattrs(from, to string) error {
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Listxattr(from, names)
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Getxattr(from, name, value)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := unix.Setxattr(to, name, value[:n], 0); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// enter makes the joined root the root of all processes and of the mount namespace, with
// the pseudo file systems moved into it. The initramfs gives its memory back except for
// the running program.
func (r *root) enter() error {
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := ensureDir(newRoot+dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}
