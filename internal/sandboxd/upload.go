package sandboxd

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
)

// postFiles answers POST /files. The body is one file as it is, named by the query, or a
// form of which every part "file" is one: the query names a single one, else each part's
// file name is its whole path.
func (s *Server) postFiles(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	if err := s.authorizeFile(r, query, "write"); err != nil {
		return err
	}
	owner, err := s.accountNamed(query.Get("username"))
	if err != nil {
		return err
	}
	body, err := decodedBody(r)
	if err != nil {
		return err
	}
	u := upload{server: s, owner: owner, path: query.Get("path"), metadata: metadataFrom(r.Header)}
	kind, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case err == nil && kind == "application/octet-stream":
		err = u.single(body)
	case err == nil && kind == "multipart/form-data":
		err = u.form(multipart.NewReader(body, parameters["boundary"]))
	default:
		err = errorf(connect.CodeInvalidArgument, "content type %q: want multipart/form-data or application/octet-stream",
			r.Header.Get("Content-Type"))
	}
	if err != nil {
		return fileError(err)
	}
	writeJSON(w, http.StatusOK, u.written)
	return nil
}

func decodedBody(r *http.Request) (io.Reader, error) {
	switch coding := r.Header.Get("Content-Encoding"); coding {
	case "", "identity":
		return r.Body, nil
	case "gzip":
		plain, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, errorf(connect.CodeInvalidArgument, "gzip body: %w", err)
		}
		return plain, nil
	default:
		return nil, errorf(connect.CodeInvalidArgument, "content encoding %q is not supported, only gzip", coding)
	}
}

// upload is one POST /files.
type upload struct {
	server   *Server
	owner    account
	path     string // of the query
	metadata map[string]string
	written  []fileResult
}

func (u *upload) single(body io.Reader) error {
	if u.path == "" {
		return errorf(connect.CodeInvalidArgument, "the query must name the path of the file")
	}
	return u.write(u.path, body)
}

func (u *upload) form(parts *multipart.Reader) error {
	for {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errorf(connect.CodeInvalidArgument, "form: %w", err)
		}
		if part.FormName() != "file" {
			continue
		}
		if err := u.part(part); err != nil {
			return err
		}
	}
	if len(u.written) == 0 {
		return errorf(connect.CodeInvalidArgument, `the form has no part named "file"`)
	}
	return nil
}

func (u *upload) part(part *multipart.Part) error {
	path := u.path
	switch {
	case path == "":
		path = fileName(part)
	case len(u.written) > 0:
		return errorf(connect.CodeInvalidArgument, "the query names one path, but the form holds several files")
	}
	if path == "" {
		return errorf(connect.CodeInvalidArgument, "neither the query nor the part names the path of the file")
	}
	return u.write(path, part)
}

// fileName returns the file name of a part as it was sent; Part.FileName would keep only
// its last element.
func fileName(part *multipart.Part) string {
	_, parameters, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	if err != nil {
		return ""
	}
	return parameters["filename"]
}

func (u *upload) write(path string, content io.Reader) error {
	path, err := u.server.resolve(path, u.owner)
	if err != nil {
		return err
	}
	if err := writeFile(path, u.owner, content, u.metadata); err != nil {
		return err
	}
	u.written = append(u.written, newFileResult(path, u.metadata))
	return nil
}

// bodyError marks what went wrong with the sender rather than with the file.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "request body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// sentBody labels the errors of a request's body.
type sentBody struct{ r io.Reader }

func (b sentBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &bodyError{err}
	}
	return n, err
}

// writeFile makes or overwrites a file, with its missing parents, and gives it to owner. It
// writes in place, so that links, mounts and modes stay. A new file does not survive an
// error.
func writeFile(path string, owner account, content io.Reader, metadata map[string]string) (err error) {
	if err := makeDirs(filepath.Dir(path), owner); err != nil {
		return err
	}
	f, created, err := createRegular(path)
	if err != nil {
		return err
	}
	defer func() {
		if closed := f.Close(); err == nil {
			err = closed
		}
		if err != nil && created {
			_ = os.Remove(path)
		}
	}()
	if _, err := io.Copy(f, sentBody{content}); err != nil {
		var body *bodyError
		if errors.As(err, &body) {
			return errorf(connect.CodeInvalidArgument, "%w", body)
		}
		return err
	}
	if err := f.Chown(int(owner.uid), int(owner.gid)); err != nil {
		return err
	}
	return setMetadata(f, metadata)
}

// createRegular opens a regular file for writing, empty. It does not block on a named pipe,
// and never writes to a device.
func createRegular(path string) (f *os.File, created bool, err error) {
	f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err == nil {
		return f, true, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return nil, false, err
	}
	info, err := os.Stat(path)
	if err == nil {
		if err := mustBeRegular(path, info); err != nil {
			return nil, false, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) { // a dangling symlink makes its target
		return nil, false, err
	}
	f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o644)
	return f, false, err
}

// makeDirs makes path and its missing parents, which belong to owner.
func makeDirs(path string, owner account) error {
	var missing []string
	for dir := path; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		missing = append(missing, dir)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if err := os.Mkdir(missing[i], 0o755); err != nil {
			if errors.Is(err, fs.ErrExist) && isDir(missing[i]) { // another request was faster
				continue
			}
			return err
		}
		if err := os.Chown(missing[i], int(owner.uid), int(owner.gid)); err != nil {
			return err
		}
	}
	return nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// composeRequest is the body of POST /files/compose.
type composeRequest struct {
	SourcePaths []string `json:"source_paths"`
	Destination string   `json:"destination"`
	Username    string   `json:"username"`
}

// composeFile writes the concatenation of files to another one. The sources stay.
func (s *Server) composeFile(w http.ResponseWriter, r *http.Request) error {
	var request composeRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		return errorf(connect.CodeInvalidArgument, "compose: %w", err)
	}
	if len(request.SourcePaths) == 0 || request.Destination == "" {
		return errorf(connect.CodeInvalidArgument, "compose: source_paths and destination are required")
	}
	owner, err := s.accountNamed(request.Username)
	if err != nil {
		return err
	}
	destination, err := s.resolve(request.Destination, owner)
	if err != nil {
		return err
	}
	if err := s.concatenate(request.SourcePaths, destination, owner); err != nil {
		return fileError(err)
	}
	writeJSON(w, http.StatusOK, newFileResult(destination, nil))
	return nil
}

func (s *Server) concatenate(sources []string, destination string, owner account) error {
	target, _ := os.Stat(destination)
	var readers []io.Reader
	for _, source := range sources {
		path, err := s.resolve(source, owner)
		if err != nil {
			return err
		}
		f, info, err := openRegular(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if target != nil && os.SameFile(info, target) {
			return errorf(connect.CodeInvalidArgument, "%s is both source and destination", path)
		}
		readers = append(readers, f)
	}
	return writeFile(destination, owner, io.MultiReader(readers...), nil)
}
