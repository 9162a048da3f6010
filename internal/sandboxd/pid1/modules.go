package pid1

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// moduleDir holds the kernel modules of the initramfs. The order of their names is the
// order in which they load.
const moduleDir = "/modules"

// loadModules loads every module in dir and removes the files, whose memory the VM would
// otherwise never get back. A module that does not load is logged: what really needs it
// will say so itself.
func loadModules(dir string, log *slog.Logger) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("kernel modules", "error", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if err := loadModule(path); err != nil {
			log.Warn("kernel module", "error", err)
		}
		os.Remove(path)
	}
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", filepath.Base(path), err)
	}
	return nil
}
