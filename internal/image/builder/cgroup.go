package builder

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

const cgroupRoot = "/sys/fs/cgroup"

// removeCgroups removes the empty control groups that RUN steps of this state folder
// were in, in the unified hierarchy and in those of version 1. Groups with processes
// stay, as the kernel refuses to remove them; it reports whether there are any.
func removeCgroups(cfg Config) (left bool) {
	roots, _ := filepath.Glob(filepath.Join(cgroupRoot, "*", cfg.cgroup()))
	for _, root := range append(roots, filepath.Join(cgroupRoot, cfg.cgroup())) {
		var dirs []string
		filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				left = true
			}
		}
	}
	return left
}
