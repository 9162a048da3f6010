package imagetest

import (
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kilnvm/kiln"
)

// Walk reads the tree below dir: enough to test what was built. Times, holes, devices
// and attributes are the root filesystem stage's.
func Walk(dir *os.File) (kiln.EntrySource, error) { return &tree{dir}, nil }

type tree struct{ dir *os.File }

func (t *tree) Close() error { return t.dir.Close() }

func (t *tree) Entries() iter.Seq2[kiln.Entry, error] {
	return func(yield func(kiln.Entry, error) bool) {
		root := fmt.Sprintf("/proc/self/fd/%d/.", t.dir.Fd())
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			e, err := entry(root, path, d)
			if err != nil {
				return err
			}
			if !yield(e, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(kiln.Entry{}, err)
		}
	}
}

func entry(root, path string, d fs.DirEntry) (kiln.Entry, error) {
	info, err := d.Info()
	if err != nil {
		return kiln.Entry{}, err
	}
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return kiln.Entry{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	e := kiln.Entry{Path: rel, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, ModTime: info.ModTime(), Size: info.Size()}
	switch info.Mode().Type() {
	case 0:
		e.Type = kiln.TypeRegular
		e.Open = func() (io.ReadCloser, error) { return os.Open(path) }
	case fs.ModeDir:
		e.Type = kiln.TypeDirectory
	case fs.ModeSymlink:
		e.Type = kiln.TypeSymlink
		e.Linkname, err = os.Readlink(path)
	default:
		e.Type = kiln.TypeCharDevice
	}
	return e, err
}

// ReadAll returns the content of every regular file and the target of every symlink, by
// path, for files that want accepts.
func ReadAll(src kiln.EntrySource, want func(path string) bool) (map[string]string, error) {
	files := map[string]string{}
	for e, err := range src.Entries() {
		if err != nil {
			return nil, err
		}
		switch {
		case !want(e.Path):
		case e.Type == kiln.TypeSymlink:
			files[e.Path] = e.Linkname
		case e.Type == kiln.TypeRegular && e.Open != nil:
			r, err := e.Open()
			if err != nil {
				return nil, err
			}
			b, err := io.ReadAll(r)
			r.Close()
			if err != nil {
				return nil, err
			}
			files[e.Path] = string(b)
		}
	}
	return files, nil
}
