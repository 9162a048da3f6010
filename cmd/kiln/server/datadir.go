package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kilnvm/kiln"
)

// Names below the data directory.
const (
	lockFile  = "lock"
	tokenFile = "token"
	infoFile  = "server.json"
)

// Info is what a running server writes to DIR/server.json, so that the CLI finds it.
type Info struct {
	URL     string `json:"url"`
	PID     int    `json:"pid"`
	Version string `json:"version"`
}

// ReadInfo returns what the server of a data directory wrote last. A server that was
// killed leaves it behind. Its error is fs.ErrNotExist when no server ever ran there.
func ReadInfo(dataDir string) (Info, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, infoFile))
	if err != nil {
		return Info{}, err
	}
	var info Info
	if err := json.Unmarshal(b, &info); err != nil {
		return Info{}, fmt.Errorf("%s: %w", filepath.Join(dataDir, infoFile), err)
	}
	return info, nil
}

// TokenPath is where the local token of a data directory is kept.
func TokenPath(dataDir string) string { return filepath.Join(dataDir, tokenFile) }

// dataDir is a data directory that this process alone uses.
type dataDir struct {
	path string
	lock *os.File
}

// openDataDir makes the directory if need be, and locks it. The lock is the kernel's, so
// it ends with the process however that ends.
func openDataDir(path string) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, unusable(path, err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, unusable(path, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, unusable(path, err)
		}
		return nil, inUse(path)
	}
	d := &dataDir{path: path, lock: lock}
	if err := d.forgetInfo(); err != nil {
		_ = d.Close()
		return nil, unusable(path, err)
	}
	return d, nil
}

func unusable(path string, err error) error {
	return kiln.Errorf(kiln.CodeUnavailable, "data directory %s cannot be used: %w", path, err).
		WithHint("give a directory that you may write to with --data-dir")
}

func inUse(path string) error {
	e := kiln.Errorf(kiln.CodeConflict, "data directory %s is in use by another server", path)
	if info, err := ReadInfo(path); err == nil {
		e = kiln.Errorf(kiln.CodeConflict, "data directory %s is in use by another server (process %d, %s)", path, info.PID, info.URL)
	}
	return e.WithHint("stop it, or give another directory with --data-dir")
}

// writeInfo tells the CLI where the server listens.
func (d *dataDir) writeInfo(info Info) error {
	b, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return fmt.Errorf("server.json: %w", err)
	}
	return writeFile(filepath.Join(d.path, infoFile), append(b, '\n'), 0o644)
}

func (d *dataDir) forgetInfo() error {
	err := os.Remove(filepath.Join(d.path, infoFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (d *dataDir) join(name string) string { return filepath.Join(d.path, name) }

// Close removes server.json and gives the directory free.
func (d *dataDir) Close() error { return errors.Join(d.forgetInfo(), d.lock.Close()) }

// writeFile replaces path in one step: a reader sees the old content or the new one.
func writeFile(path string, content []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
