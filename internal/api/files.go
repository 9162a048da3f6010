package api

import (
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// maxFile bounds one uploaded file. (PandaStack's bound is 32 MiB.)
const maxFile = 4 << 30

// FileEntry is a file or a folder in a sandbox.
type FileEntry struct {
	Name  string `json:"name"`
	Path  string `json:"path"`
	IsDir bool   `json:"is_dir"`
	Size  int64  `json:"size"`
	Mode  string `json:"mode" doc:"Octal, such as 0644"`
	MTime int64  `json:"mtime" doc:"Unix seconds"`
	Link  string `json:"link,omitempty" doc:"Target of a symlink"`
}

func fileEntryOf(f guest.FileInfo) FileEntry {
	return FileEntry{
		Name: f.Name, Path: f.Path, IsDir: f.IsDir(), Size: f.Size, Link: f.Symlink,
		Mode: fmt.Sprintf("%04o", f.Mode), MTime: f.ModTime.Unix(),
	}
}

// SandboxPath is the parameters of everything about one path in a sandbox.
type SandboxPath struct {
	SandboxID
	Path string `query:"path" required:"true" doc:"Absolute, or relative to the user's home"`
}

type (
	putFileInput struct {
		SandboxPath
		request *http.Request
		rc      *http.ResponseController
	}
	putFileOutput struct {
		Body struct {
			Path  string `json:"path"`
			Bytes int64  `json:"bytes"`
		}
	}
	dirOutput struct {
		Body struct {
			Path    string      `json:"path"`
			Entries []FileEntry `json:"entries"`
		}
	}
	statOutput struct{ Body FileEntry }
)

// Resolve keeps the request, so that the body is read as a stream.
func (in *putFileInput) Resolve(ctx huma.Context) []error {
	r, w := humago.Unwrap(ctx)
	in.request, in.rc = r, http.NewResponseController(w)
	return nil
}

var _ huma.Resolver = (*putFileInput)(nil)

func (s *Server) registerFiles() {
	tags := []string{"files"}
	register(s, route{Operation: huma.Operation{
		OperationID: "readFile", Method: http.MethodGet, Path: "/v1/sandboxes/{id}/fs", Tags: tags,
		Summary:   "Read a file",
		Responses: map[string]*huma.Response{"200": {Description: "The content", Content: binaryContent("application/octet-stream")}},
	}, unbounded: true}, s.readFile)
	register(s, route{Operation: huma.Operation{
		OperationID: "writeFile", Method: http.MethodPut, Path: "/v1/sandboxes/{id}/fs", Tags: tags,
		Summary: "Create or replace a file, and the folders above it",
	}, unbounded: true, body: &huma.RequestBody{Required: true, Content: binaryContent("application/octet-stream")}}, s.writeFile)
	register(s, route{Operation: huma.Operation{
		OperationID: "deleteFile", Method: http.MethodDelete, Path: "/v1/sandboxes/{id}/fs", Tags: tags,
		Summary: "Remove a file, or a folder with all that is in it; not /, ~ and paths that end in . or ..", DefaultStatus: http.StatusNoContent,
	}}, s.deleteFile)
	register(s, route{Operation: huma.Operation{
		OperationID: "listDir", Method: http.MethodGet, Path: "/v1/sandboxes/{id}/fs/dir", Tags: tags,
		Summary: "List a folder",
	}}, s.listDir)
	register(s, route{Operation: huma.Operation{
		OperationID: "statFile", Method: http.MethodGet, Path: "/v1/sandboxes/{id}/fs/stat", Tags: tags,
		Summary: "Describe a file or a folder",
	}}, s.statFile)
}

func (s *Server) guest(ctx context.Context, in *SandboxPath) (Guest, error) {
	if in.Path == "" {
		return nil, kiln.Errorf(kiln.CodeInvalid, "no path given")
	}
	return s.opts.Sandboxes.Guest(ctx, orgOf(ctx), in.ID)
}

func (s *Server) readFile(ctx context.Context, in *SandboxPath) (*huma.StreamResponse, error) {
	g, err := s.guest(ctx, in)
	if err != nil {
		return nil, err
	}
	info, err := g.Stat(ctx, in.Path)
	if err != nil {
		return nil, fileError(err)
	}
	if info.IsDir() {
		return nil, kiln.Errorf(kiln.CodeInvalid, "%s is a folder", in.Path).WithHint("fs/dir lists it")
	}
	content, err := g.ReadFile(ctx, in.Path)
	if err != nil {
		return nil, fileError(err)
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		defer content.Close()
		_, w := humago.Unwrap(hctx)
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": path.Base(in.Path)}))
		if _, err := io.Copy(w, content); err != nil {
			panic(http.ErrAbortHandler) // a cut connection, not a short file that looks whole
		}
	}}, nil
}

func (s *Server) writeFile(ctx context.Context, in *putFileInput) (*putFileOutput, error) {
	g, err := s.guest(ctx, &in.SandboxPath)
	if err != nil {
		return nil, err
	}
	body := http.MaxBytesReader(nil, &stallReader{r: in.request.Body, rc: in.rc}, maxFile)
	defer body.Close()
	counted := &countingReader{r: body}
	if err := g.WriteFile(ctx, in.Path, counted); err != nil {
		return nil, fileError(err)
	}
	out := &putFileOutput{}
	out.Body.Path, out.Body.Bytes = in.Path, counted.n
	return out, nil
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (s *Server) deleteFile(ctx context.Context, in *SandboxPath) (*struct{}, error) {
	g, err := s.guest(ctx, in)
	if err != nil {
		return nil, err
	}
	return nil, fileError(g.Remove(ctx, in.Path))
}

func (s *Server) listDir(ctx context.Context, in *SandboxPath) (*dirOutput, error) {
	g, err := s.guest(ctx, in)
	if err != nil {
		return nil, err
	}
	entries, err := g.List(ctx, in.Path)
	if err != nil {
		return nil, fileError(err)
	}
	out := &dirOutput{}
	out.Body.Path, out.Body.Entries = in.Path, make([]FileEntry, 0, len(entries))
	for _, e := range entries {
		out.Body.Entries = append(out.Body.Entries, fileEntryOf(e))
	}
	return out, nil
}

func (s *Server) statFile(ctx context.Context, in *SandboxPath) (*statOutput, error) {
	g, err := s.guest(ctx, in)
	if err != nil {
		return nil, err
	}
	info, err := g.Stat(ctx, in.Path)
	if err != nil {
		return nil, fileError(err)
	}
	return &statOutput{Body: fileEntryOf(info)}, nil
}
