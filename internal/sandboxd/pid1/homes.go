package pid1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/sandboxd/imagefile"
)

// agentSkeleton is what the home of an agent starts with: the rootfs stage puts the
// image's /home/agent there.
const agentSkeleton = "/etc/skel/agent-skel"

// Numbers of regular users, as Debian's login.defs has them.
const firstRegularUID, lastRegularUID = 1000, 60000

type user struct {
	name     string
	uid, gid int
	home     string
}

// seedHomes fills the home of every regular user that has none, or an empty one, from the
// agent skeleton.
func seedHomes(log *slog.Logger) {
	passwd, err := imagefile.Read("/etc/passwd")
	if err != nil {
		log.Info("no users to provide with a home", "error", err)
		return
	}
	for _, u := range regularUsers(passwd) {
		if err := seedHome("/", agentSkeleton, u); err != nil {
			log.Warn("home of a user", "user", u.name, "error", err)
		}
	}
}

// regularUsers reads the passwd(5) format and leaves out lines that are malformed.
func regularUsers(passwd []byte) []user {
	var users []user
	for lines := bufio.NewScanner(bytes.NewReader(passwd)); lines.Scan(); {
		f := strings.Split(lines.Text(), ":")
		if len(f) != 7 {
			continue
		}
		uid, errU := strconv.Atoi(f[2])
		gid, errG := strconv.Atoi(f[3])
		home := filepath.Clean(f[5])
		if errU != nil || errG != nil || !filepath.IsAbs(home) || home == "/" {
			continue
		}
		if uid >= firstRegularUID && uid <= lastRegularUID {
			users = append(users, user{f[0], uid, gid, home})
		}
	}
	return users
}

// seedHome gives u a home if it has none and fills it if it is empty. Paths are below root.
func seedHome(root, skeleton string, u user) error {
	home := filepath.Join(root, u.home)
	entries, err := os.ReadDir(home)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(home, 0o755); err != nil {
			return err
		}
	case err != nil || len(entries) > 0:
		return err
	}
	if err := os.Lchown(home, u.uid, u.gid); err != nil {
		return err
	}
	from := filepath.Join(root, skeleton)
	err = filepath.WalkDir(from, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == from {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return copyEntry(path, filepath.Join(home, rel), u)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // an image without a skeleton
	}
	return err
}

// copyEntry copies one file, directory or symbolic link and gives it to u. Anything else
// has no business in a home.
func copyEntry(from, to string, u user) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		err = os.Mkdir(to, 0o700)
	case fs.ModeSymlink:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	case 0:
		err = copyFile(from, to)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(to, u.uid, u.gid); err != nil || info.Mode()&fs.ModeSymlink != 0 {
		return err
	}
	return os.Chmod(to, info.Mode().Perm())
}

func copyFile(from, to string) error {
	src, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := dst.ReadFrom(src); err != nil {
		dst.Close()
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return dst.Close()
}
