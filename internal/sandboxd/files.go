package sandboxd

import (
	"bytes"
	"compress/gzip"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
)

// maxUnsized bounds what is read of a file that does not know its own size, as those in
// /proc, in bytes.
const maxUnsized = 16 << 20

// getFile answers GET /files with the content of a file; ranges and conditions of RFC 9110
// are honoured.
func (s *Server) getFile(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	if err := s.authorizeFile(r, query, "read"); err != nil {
		return err
	}
	reader, err := s.accountNamed(query.Get("username"))
	if err != nil {
		return err
	}
	path, err := s.resolve(query.Get("path"), reader)
	if err != nil {
		return err
	}
	f, info, err := openRegular(path)
	if err != nil {
		return fileError(err)
	}
	defer f.Close()
	compressed, err := negotiate(r.Header.Get("Accept-Encoding"))
	if err != nil {
		return err
	}
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": info.Name()}))
	header.Set("Vary", "Accept-Encoding")
	if compressed {
		return sendCompressed(w, f)
	}
	var content io.ReadSeeker = f
	if info.Size() == 0 {
		text, err := io.ReadAll(io.LimitReader(f, maxUnsized))
		if err != nil {
			return fileError(err)
		}
		content = bytes.NewReader(text)
	}
	http.ServeContent(w, r, "", info.ModTime(), content)
	return nil
}

// openRegular opens a regular file for reading. It does not block on a named pipe.
func openRegular(path string) (*os.File, os.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = mustBeRegular(path, info)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

func mustBeRegular(path string, info os.FileInfo) error {
	switch {
	case info.IsDir():
		return errorf(connect.CodeInvalidArgument, "%s is a directory", path)
	case !info.Mode().IsRegular():
		return errorf(connect.CodeInvalidArgument, "%s is not a regular file", path)
	}
	return nil
}

// negotiate chooses between plain and gzip. Plain wins whenever it is acceptable: the way
// to the host is short and the guest's CPU may be emulated.
func negotiate(accept string) (compressed bool, err error) {
	if accept == "" {
		return false, nil
	}
	refused := map[string]bool{}
	offered := map[string]bool{}
	for part := range strings.SplitSeq(accept, ",") {
		coding, parameters, _ := strings.Cut(part, ";")
		coding = strings.ToLower(strings.TrimSpace(coding))
		quality, found := strings.CutPrefix(strings.ReplaceAll(parameters, " ", ""), "q=")
		q, err := strconv.ParseFloat(quality, 64)
		if found && err == nil && q == 0 {
			refused[coding] = true
		} else {
			offered[coding] = true
		}
	}
	switch {
	case offered["identity"], !refused["identity"] && !refused["*"]:
		return false, nil
	case offered["gzip"], offered["*"] && !refused["gzip"]:
		return true, nil
	}
	return false, &statusError{http.StatusNotAcceptable, "no acceptable encoding: files are sent plain or with gzip"}
}

func sendCompressed(w http.ResponseWriter, f *os.File) error {
	w.Header().Set("Content-Encoding", "gzip")
	compressor := gzip.NewWriter(w)
	if _, err := io.Copy(compressor, f); err != nil {
		panic(http.ErrAbortHandler) // the client must not take it for the whole file
	}
	return compressor.Close()
}

// fileResult describes a file that POST /files or /files/compose has written.
type fileResult struct {
	Path     string            `json:"path"`
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

func newFileResult(path string, metadata map[string]string) fileResult {
	return fileResult{Path: path, Name: filepath.Base(path), Type: "file", Metadata: metadata}
}
