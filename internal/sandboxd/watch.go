package sandboxd

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/kilnvm/kiln/internal/guestapi/filesystem"
)

// watchRequest is what WatchDir and CreateWatcher have in common.
type watchRequest interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

// dirWatch reports changes below one directory.
type dirWatch struct {
	notify      *fsnotify.Watcher
	root        string
	recursive   bool
	withEntries bool
	accounts    accounts
}

// openWatch starts watching; what changes after it has returned is reported. In a
// recursive watch, a file made in a new directory may be reported twice.
func openWatch(path string, req watchRequest, a accounts) (*dirWatch, error) {
	if err := mustBeDir(path); err != nil {
		return nil, err
	}
	root, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fileError(err)
	}
	if remote, err := onNetwork(root); err != nil {
		return nil, fileError(err)
	} else if remote && !req.GetAllowNetworkMounts() {
		return nil, errorf(connect.CodeInvalidArgument,
			"%s is on a network mount, where changes made elsewhere go unseen; allow network mounts to watch it all the same", path)
	}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, errorf(connect.CodeResourceExhausted, "watch %s: %w", path, err)
	}
	w := &dirWatch{notify, root, req.GetRecursive(), req.GetIncludeEntry(), a}
	if w.recursive {
		_, err = w.addTree(root)
	} else {
		err = notify.Add(root)
	}
	if err != nil {
		w.close()
		return nil, fileError(err)
	}
	return w, nil
}

func (w *dirWatch) close() { _ = w.notify.Close() }

// onNetwork tells whether path lies on a file system that other machines change too
// (f_type values of statfs(2)).
func onNetwork(path string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return false, err
	}
	const cephMagic, cifsMagic = 0x00c36400, 0xff534d42
	return slices.Contains([]int64{
		unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.V9FS_MAGIC,
		unix.FUSE_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, cephMagic, cifsMagic,
	}, fs.Type), nil
}

// addTree watches dir and every directory below it, and returns what is in them.
func (w *dirWatch) addTree(dir string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone again
			return nil
		case err != nil:
			return err
		}
		if path != dir {
			found = append(found, path)
		}
		if !entry.IsDir() {
			return nil
		}
		if err := w.notify.Add(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	return found, err
}

// run calls emit for every change until ctx ends or emit fails. tick, if not zero, is
// called in that rhythm of silence.
func (w *dirWatch) run(ctx context.Context, emit func(*filesystem.FilesystemEvent) error, every time.Duration, tick func() error) error {
	silence := time.NewTicker(every)
	defer silence.Stop()
	for {
		select {
		case event := <-w.notify.Events:
			silence.Reset(every)
			if err := w.report(event, emit); err != nil {
				return err
			}
		case err := <-w.notify.Errors:
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				return errorf(connect.CodeResourceExhausted, "watch %s: changes came faster than they were read; some are lost", w.root)
			}
			return errorf(connect.CodeInternal, "watch %s: %w", w.root, err)
		case <-silence.C:
			if err := tick(); err != nil {
				return err
			}
		case <-ctx.Done():
			return contextError(ctx)
		}
	}
}

func (w *dirWatch) report(event fsnotify.Event, emit func(*filesystem.FilesystemEvent) error) error {
	for _, kind := range eventTypes(event.Op) {
		if err := emit(w.event(event.Name, kind)); err != nil {
			return err
		}
	}
	if !w.recursive || !event.Has(fsnotify.Create) || !isRealDir(event.Name) {
		return nil
	}
	// Files may have been made in the new directory before it was watched.
	found, err := w.addTree(event.Name)
	if err != nil {
		return errorf(connect.CodeResourceExhausted, "watch %s: %w", event.Name, err)
	}
	for _, path := range found {
		if err := emit(w.event(path, filesystem.EventType_EVENT_TYPE_CREATE)); err != nil {
			return err
		}
	}
	return nil
}

func isRealDir(path string) bool {
	var stat unix.Stat_t
	return unix.Lstat(path, &stat) == nil && stat.Mode&unix.S_IFMT == unix.S_IFDIR
}

func eventTypes(op fsnotify.Op) []filesystem.EventType {
	var types []filesystem.EventType
	for _, pair := range []struct {
		op   fsnotify.Op
		kind filesystem.EventType
	}{
		{fsnotify.Create, filesystem.EventType_EVENT_TYPE_CREATE},
		{fsnotify.Write, filesystem.EventType_EVENT_TYPE_WRITE},
		{fsnotify.Remove, filesystem.EventType_EVENT_TYPE_REMOVE},
		{fsnotify.Rename, filesystem.EventType_EVENT_TYPE_RENAME},
		{fsnotify.Chmod, filesystem.EventType_EVENT_TYPE_CHMOD},
	} {
		if op.Has(pair.op) {
			types = append(types, pair.kind)
		}
	}
	return types
}

func (w *dirWatch) event(path string, kind filesystem.EventType) *filesystem.FilesystemEvent {
	name, err := filepath.Rel(w.root, path)
	if err != nil {
		name = path
	}
	event := &filesystem.FilesystemEvent{Name: validText(name), Type: kind}
	if !w.withEntries {
		return event
	}
	if n, err := w.accounts.names(); err == nil {
		event.Entry, _ = describe(path, n) // nil when it is gone
	}
	return event
}
