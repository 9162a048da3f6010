package sandboxd

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"

	"github.com/kilnvm/kiln/internal/guestapi/filesystem"
)

// filesystemService implements filesystemconnect.FilesystemHandler. Like the file endpoints
// it works with the daemon's rights: the caller's account decides what a relative path
// means and who owns what is made.
type filesystemService struct{ server *Server }

// locate finds the caller and makes path absolute.
func (f *filesystemService) locate(h http.Header, path string) (string, account, error) {
	caller, err := f.server.caller(h)
	if err != nil {
		return "", account{}, fileError(err)
	}
	path, err = f.server.resolve(path, caller)
	return path, caller, err
}

// describe returns the entry at path.
func (f *filesystemService) describe(path string) (*filesystem.EntryInfo, error) {
	n, err := f.server.accounts.names()
	if err != nil {
		return nil, fileError(err)
	}
	entry, err := describe(path, n)
	return entry, fileError(err)
}

// Stat describes a file.
func (f *filesystemService) Stat(_ context.Context, req *connect.Request[filesystem.StatRequest]) (*connect.Response[filesystem.StatResponse], error) {
	path, _, err := f.locate(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	entry, err := f.describe(path)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystem.StatResponse{Entry: entry}), nil
}

// MakeDir makes a directory and its missing parents.
func (f *filesystemService) MakeDir(_ context.Context, req *connect.Request[filesystem.MakeDirRequest]) (*connect.Response[filesystem.MakeDirResponse], error) {
	path, owner, err := f.locate(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		return nil, errorf(connect.CodeAlreadyExists, "directory %s already exists", path)
	case err == nil:
		return nil, errorf(connect.CodeInvalidArgument, "%s exists and is not a directory", path)
	}
	if err := makeDirs(path, owner); err != nil {
		return nil, fileError(err)
	}
	entry, err := f.describe(path)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystem.MakeDirResponse{Entry: entry}), nil
}

// Move renames a file or directory; the parents of the destination are made.
func (f *filesystemService) Move(ctx context.Context, req *connect.Request[filesystem.MoveRequest]) (*connect.Response[filesystem.MoveResponse], error) {
	source, owner, err := f.locate(req.Header(), req.Msg.GetSource())
	if err != nil {
		return nil, err
	}
	destination, err := f.server.resolve(req.Msg.GetDestination(), owner)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(source); err != nil {
		return nil, fileError(err)
	}
	if err := makeDirs(filepath.Dir(destination), owner); err != nil {
		return nil, fileError(err)
	}
	if err := move(ctx, source, destination); err != nil {
		return nil, fileError(err)
	}
	entry, err := f.describe(destination)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystem.MoveResponse{Entry: entry}), nil
}

// Remove removes a file, or a directory with all it holds. Like rm it refuses the root and
// paths that end in "." or ".."; nor does it take "~", or no path at all, for one.
func (f *filesystemService) Remove(_ context.Context, req *connect.Request[filesystem.RemoveRequest]) (*connect.Response[filesystem.RemoveResponse], error) {
	switch given := req.Msg.GetPath(); lastElement(given) {
	case "", ".", "..", "~":
		return nil, errorf(connect.CodeInvalidArgument, "%q names no file or directory that can be removed", given)
	}
	path, _, err := f.locate(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(path); err != nil {
		return nil, fileError(err)
	}
	return connect.NewResponse(&filesystem.RemoveResponse{}), nil
}

// lastElement returns what follows the last slash but those at the end of path.
func lastElement(path string) string {
	path = strings.TrimRight(path, "/")
	return path[strings.LastIndexByte(path, '/')+1:]
}

// ListDir lists a directory to a depth.
func (f *filesystemService) ListDir(ctx context.Context, req *connect.Request[filesystem.ListDirRequest]) (*connect.Response[filesystem.ListDirResponse], error) {
	path, _, err := f.locate(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if err := mustBeDir(path); err != nil {
		return nil, err
	}
	n, err := f.server.accounts.names()
	if err != nil {
		return nil, fileError(err)
	}
	response := &filesystem.ListDirResponse{}
	depth := max(1, req.Msg.GetDepth())
	response.Entries, err = list(ctx, path, depth, n, nil)
	if err != nil {
		return nil, fileError(err)
	}
	return connect.NewResponse(response), nil
}

func mustBeDir(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fileError(err)
	}
	if !info.IsDir() {
		return errorf(connect.CodeInvalidArgument, "%s is not a directory", path)
	}
	return nil
}

// list appends the entries of dir, each followed by those below it. Symlinks are not
// followed further down; what vanishes meanwhile is left out.
func list(ctx context.Context, dir string, depth uint32, n names, entries []*filesystem.EntryInfo) ([]*filesystem.EntryInfo, error) {
	if err := ctx.Err(); err != nil {
		return nil, contextError(ctx)
	}
	children, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		path := filepath.Join(dir, child.Name())
		entry, err := describe(path, n)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
		if !child.IsDir() || depth == 1 {
			continue
		}
		below, err := list(ctx, path, depth-1, n, entries)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil {
			entries = below
		}
	}
	return entries, nil
}
