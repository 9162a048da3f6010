package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/kilnvm/kiln/internal/guestapi/filesystem"
)

// FileInfo describes a file in a sandbox. A symlink that leads somewhere is described by
// what it leads to, with Symlink set.
type FileInfo struct {
	Name    string
	Path    string // absolute
	Type    FileType
	Size    int64
	Mode    uint32 // st_mode & 07777
	Owner   string
	Group   string
	ModTime time.Time
	Symlink string // where a symlink leads; "" for anything else
}

// FileType is the kind of a file.
type FileType string

// Kinds of files. Devices, pipes and sockets are all TypeOther.
const (
	TypeFile      FileType = "file"
	TypeDirectory FileType = "directory"
	TypeSymlink   FileType = "symlink" // one that leads nowhere
	TypeOther     FileType = "other"
)

// IsDir reports whether it is a directory.
func (f FileInfo) IsDir() bool { return f.Type == TypeDirectory }

// ReadFile opens a regular file. Relative paths start at the template's user's home. Close
// the content.
func (c *Client) ReadFile(ctx context.Context, path string) (io.ReadCloser, error) {
	r, err := c.fileRequest(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	body, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	return &content{ctx: ctx, body: body}, nil
}

// content translates the errors of a body.
type content struct {
	ctx  context.Context
	body io.ReadCloser
}

func (c *content) Read(p []byte) (int, error) {
	n, err := c.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = translate(c.ctx, err)
	}
	return n, err
}

func (c *content) Close() error { return c.body.Close() }

// WriteFile makes or overwrites a file with its missing parents. What is new belongs to the
// template's user.
func (c *Client) WriteFile(ctx context.Context, path string, from io.Reader) error {
	source := &source{r: from}
	r, err := c.fileRequest(ctx, http.MethodPost, path, source)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/octet-stream")
	body, err := c.do(ctx, r)
	if cause := source.failure(); cause != nil {
		if err == nil {
			_ = body.Close()
		}
		return fmt.Errorf("content of %s: %w", path, cause)
	}
	if err != nil {
		return err
	}
	return body.Close()
}

// source remembers why it could not be read, which is not the sandbox's fault. The
// transport may still be reading when the answer is there.
type source struct {
	r   io.Reader
	mu  sync.Mutex
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return n, err
}

func (s *source) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (c *Client) fileRequest(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.base+"/files?"+url.Values{"path": {path}}.Encode(), body)
	if err != nil {
		return nil, fmt.Errorf("guest file %s: %w", path, err)
	}
	return r, nil
}

// Stat describes a file.
func (c *Client) Stat(ctx context.Context, path string) (FileInfo, error) {
	answer, err := c.filesystem.Stat(ctx, connect.NewRequest(&filesystem.StatRequest{Path: path}))
	if err != nil {
		return FileInfo{}, translate(ctx, err)
	}
	return fileInfo(answer.Msg.GetEntry()), nil
}

// List describes what is in a directory.
func (c *Client) List(ctx context.Context, path string) ([]FileInfo, error) {
	answer, err := c.filesystem.ListDir(ctx, connect.NewRequest(&filesystem.ListDirRequest{Path: path, Depth: 1}))
	if err != nil {
		return nil, translate(ctx, err)
	}
	list := make([]FileInfo, len(answer.Msg.GetEntries()))
	for i, entry := range answer.Msg.GetEntries() {
		list[i] = fileInfo(entry)
	}
	return list, nil
}

func fileInfo(e *filesystem.EntryInfo) FileInfo {
	info := FileInfo{
		Name: e.GetName(), Path: e.GetPath(), Type: TypeOther, Size: e.GetSize(), Mode: e.GetMode(),
		Owner: e.GetOwner(), Group: e.GetGroup(), ModTime: e.GetModifiedTime().AsTime(), Symlink: e.GetSymlinkTarget(),
	}
	switch e.GetType() {
	case filesystem.FileType_FILE_TYPE_FILE:
		info.Type = TypeFile
	case filesystem.FileType_FILE_TYPE_DIRECTORY:
		info.Type = TypeDirectory
	case filesystem.FileType_FILE_TYPE_SYMLINK:
		info.Type = TypeSymlink
	}
	return info
}

// Remove removes a file, or a directory with all it holds. A missing path is no error.
func (c *Client) Remove(ctx context.Context, path string) error {
	_, err := c.filesystem.Remove(ctx, connect.NewRequest(&filesystem.RemoveRequest{Path: path}))
	return translate(ctx, err)
}

// MkdirAll makes a directory and its missing parents. That it exists is no error.
func (c *Client) MkdirAll(ctx context.Context, path string) error {
	_, err := c.filesystem.MakeDir(ctx, connect.NewRequest(&filesystem.MakeDirRequest{Path: path}))
	if connect.CodeOf(err) == connect.CodeAlreadyExists {
		return nil
	}
	return translate(ctx, err)
}

// Move renames a file or directory, and makes the parents of the destination.
func (c *Client) Move(ctx context.Context, from, to string) error {
	_, err := c.filesystem.Move(ctx, connect.NewRequest(&filesystem.MoveRequest{Source: from, Destination: to}))
	return translate(ctx, err)
}
