package api

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime/multipart"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/kilnvm/kiln"
)

// uploadStall is how long an upload may bring nothing before it is given up.
const uploadStall = time.Minute

// maxField bounds every form field that is not a file.
const maxField = 1 << 20

// maxFiles bounds how many context files a form may have.
const maxFiles = 20_000

// BuildOptions is the JSON of the form field "options".
type BuildOptions struct {
	Dockerfile string            `json:"dockerfile,omitempty" doc:"Path inside the context; default Dockerfile"`
	Target     string            `json:"target,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
	NoCache    bool              `json:"no_cache,omitempty"`
	Pull       bool              `json:"pull,omitempty"`
	Secrets    map[string][]byte `json:"secrets,omitempty" doc:"Values of RUN --mount=type=secret by id; never stored"`
}

type buildInput struct {
	Replace bool `query:"replace" doc:"Build the next version if the name exists"`
	Keep    bool `query:"keep" doc:"Build the next version of a template that exists, with the args, target and metadata of the last request for it where this one says nothing"`
	request *http.Request
	rc      *http.ResponseController
}

// Resolve keeps the request, so that the form is read as a stream.
func (in *buildInput) Resolve(ctx huma.Context) []error {
	r, w := humago.Unwrap(ctx)
	in.request, in.rc = r, http.NewResponseController(w)
	return nil
}

var _ huma.Resolver = (*buildInput)(nil)

func buildRequestBody() *huma.RequestBody {
	text := func(doc string) *huma.Schema { return &huma.Schema{Type: huma.TypeString, Description: doc} }
	file := func(doc string) *huma.Schema {
		return &huma.Schema{Type: huma.TypeString, Format: "binary", Description: doc}
	}
	return &huma.RequestBody{
		Required: true,
		Content: map[string]*huma.MediaType{"multipart/form-data": {Schema: &huma.Schema{
			Type: huma.TypeObject,
			Properties: map[string]*huma.Schema{
				"name":            text("The template's name; default the one in the context's metadata file"),
				"dockerfile":      text("Text of the Dockerfile"),
				"context":         file("The build context as a tar archive (application/x-tar), plain or gzip"),
				"options":         text("JSON: dockerfile, target, args, no_cache, pull, secrets"),
				"metadata":        text("JSON: what a kiln-template.toml holds; wins over that file"),
				"image_ref":       text("Instead of a Dockerfile: an image in a registry"),
				"git":             text("Instead of a Dockerfile: JSON url, ref, dir of a git repository that the server fetches"),
				"git_credentials": text("JSON: token, or ssh_key and known_hosts, for a private repository; never stored"),
				"rootfs":          file("Instead of a Dockerfile: a root filesystem as a tar archive"),
				"size_mb":         {Type: huma.TypeInteger, Description: "Scratch disk of its sandboxes in MiB"},
				"cpu":             {Type: huma.TypeInteger, Description: "vCPUs its sandboxes need"},
				"memory_mb":       {Type: huma.TypeInteger, Description: "Memory its sandboxes need in MiB"},
			},
			AdditionalProperties: file("Any other file is a file of the context; the field's name is its path"),
		}}},
	}
}

func (s *Server) buildTemplate(ctx context.Context, in *buildInput) (*buildOutput, error) {
	dir, err := os.MkdirTemp(s.opts.SpoolDir, "upload-")
	if err != nil {
		return nil, fmt.Errorf("upload: %w", err)
	}
	defer os.RemoveAll(dir)
	form, err := s.readForm(in, dir)
	if err != nil {
		return nil, err
	}
	req, archive, err := form.request(in.Keep)
	if err != nil {
		return nil, err
	}
	if archive != nil {
		defer archive.Close()
		req.Context = archive
	}
	req.Replace = in.Replace
	req.Keep = in.Keep
	queued, err := s.opts.Templates.Create(ctx, orgOf(ctx), req)
	if err != nil {
		return nil, err
	}
	return queued.output(ctx, s.opts.Sizes), nil
}

// buildForm is an upload that has arrived: its fields, and its files below dir.
type buildForm struct {
	sizes  kiln.SizeTable
	dir    string
	fields map[string]string
	files  []spooledFile
	tar    string // path of the "context" part; "" when there is none
}

// spooledFile is a context file waiting on disk.
type spooledFile struct{ name, path string }

func (s *Server) readForm(in *buildInput, dir string) (*buildForm, error) {
	limit := s.opts.MaxContextBytes
	in.request.Body = http.MaxBytesReader(nil, &stallReader{r: in.request.Body, rc: in.rc}, limit)
	parts, err := in.request.MultipartReader()
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "the request is not a multipart/form-data form")
	}
	form := &buildForm{dir: dir, sizes: s.opts.Sizes, fields: map[string]string{}}
	for {
		part, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			return form, nil
		}
		if err == nil {
			err = form.add(part)
		}
		if err != nil {
			return nil, uploadError(err, limit)
		}
	}
}

func uploadError(err error, limit int64) error {
	var known *kiln.Error
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &tooBig):
		e := newError(kiln.CodeInvalid, fmt.Sprintf("the build context is larger than %d MiB", limit>>20),
			"leave files out with .dockerignore, or raise build.max_context_mb of the server")
		e.status = http.StatusRequestEntityTooLarge
		return e
	case errors.Is(err, os.ErrDeadlineExceeded):
		return kiln.Errorf(kiln.CodeTimeout, "the upload brought nothing for %v", uploadStall)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return kiln.Errorf(kiln.CodeInvalid, "the upload ended early")
	}
	return spoolError(err)
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// spoolError separates a full disk from everything else that can go wrong while writing.
func spoolError(err error) error {
	if isNoSpace(err) {
		return kiln.Errorf(kiln.CodeExhausted, "no space left on the server's disk for the upload: %w", err).
			WithHint("free space below the data directory")
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		return fmt.Errorf("upload: %w", err)
	}
	return kiln.Errorf(kiln.CodeInvalid, "the upload is malformed: %v", err)
}

func (f *buildForm) add(part *multipart.Part) error {
	name := part.FormName()
	switch {
	case name == "":
		return kiln.Errorf(kiln.CodeInvalid, "the form has a part without a name")
	case name == "context" && isTar(part.Header.Get("Content-Type")):
		f.tar = path.Join(f.dir, "context.tar")
		return spool(f.tar, part)
	case part.FileName() == "":
		return f.addField(name, part)
	}
	if len(f.files) == maxFiles {
		return kiln.Errorf(kiln.CodeInvalid, "the form has more than %d files", maxFiles).
			WithHint("send the context as one tar archive, in a part named context")
	}
	if !fs.ValidPath(name) || name == "." {
		return kiln.Errorf(kiln.CodeInvalid, "context file %q: want a relative path without '..'", name)
	}
	file := spooledFile{name: name, path: path.Join(f.dir, "file-"+strconv.Itoa(len(f.files)))}
	f.files = append(f.files, file)
	return spool(file.path, part)
}

func (f *buildForm) addField(name string, part io.Reader) error {
	value, err := io.ReadAll(io.LimitReader(part, maxField+1))
	if err != nil {
		return err
	}
	if len(value) > maxField {
		return kiln.Errorf(kiln.CodeInvalid, "form field %q is larger than %d MiB", name, maxField>>20)
	}
	f.fields[name] = string(value)
	return nil
}

func isTar(contentType string) bool {
	switch strings.TrimSpace(strings.Split(contentType, ";")[0]) {
	case "application/x-tar", "application/tar", "application/gzip", "application/x-gzip", "application/x-tar+gzip":
		return true
	}
	return false
}

func spool(name string, r io.Reader) (err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return kiln.Errorf(kiln.CodeInvalid, "the form has more than one context")
		}
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	_, err = io.Copy(f, r)
	return err
}

// request turns the form into what the pipeline asks for. The archive must be closed.
func (f *buildForm) request(exists bool) (NewTemplate, *os.File, error) {
	req := NewTemplate{Name: f.fields["name"]}
	if !exists {
		if err := checkNewName(req.Name); err != nil {
			return req, nil, err
		}
	}
	if f.fields["kernel"] != "" {
		return req, nil, kiln.Errorf(kiln.CodeInvalid, "a template cannot choose its kernel").WithHint("the server's configuration does: vm.kernel")
	}
	if err := f.options(&req); err != nil {
		return req, nil, err
	}
	if err := f.metadata(&req); err != nil {
		return req, nil, err
	}
	if f.fields["git"] != "" {
		return req, nil, f.git(&req)
	}
	if f.fields["git_credentials"] != "" {
		return req, nil, kiln.Errorf(kiln.CodeInvalid, "the form has git_credentials but no git repository")
	}
	if _, text := f.fields["dockerfile"]; text && req.Options.Dockerfile != "" {
		return req, nil, kiln.Errorf(kiln.CodeInvalid, "the form has a dockerfile, and options name another").WithHint("send the text or the name of a file of the context")
	}
	req.Image = f.fields["image_ref"]
	if o := req.Options; req.Image != "" && (o.Dockerfile != "" || o.Target != "" || len(o.Args) > 0 || len(o.Secrets) > 0) {
		return req, nil, kiln.Errorf(kiln.CodeInvalid, "options dockerfile, target, args and secrets are for a Dockerfile; an image_ref has none")
	}
	archive, err := f.archive()
	return req, archive, err
}

func checkNewName(name string) error {
	if name == "" {
		return nil // the metadata file may have one
	}
	return kiln.CheckTemplateName(name)
}

func (f *buildForm) options(req *NewTemplate) error {
	text := f.fields["options"]
	if text == "" {
		return nil
	}
	var o BuildOptions
	if err := decodeStrict(text, &o); err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "form field options: %v", err)
	}
	req.Options = kiln.BuildOptions{Dockerfile: o.Dockerfile, Target: o.Target, Args: o.Args, NoCache: o.NoCache, Pull: o.Pull, Secrets: o.Secrets}
	return nil
}

func (f *buildForm) metadata(req *NewTemplate) error {
	if text := f.fields["metadata"]; text != "" {
		if err := decodeStrict(text, &req.Metadata); err != nil {
			return kiln.Errorf(kiln.CodeInvalid, "form field metadata: %v", err)
		}
	}
	cpu, err := f.number("cpu", 1, 64)
	if err != nil {
		return err
	}
	memory, err := f.number("memory_mb", 128, 65536)
	if err != nil {
		return err
	}
	disk, err := f.number("size_mb", 1, kiln.MaxDiskMB)
	if err != nil {
		return err
	}
	if disk > 0 {
		req.Metadata.DiskMB = disk
	}
	if cpu > 0 || memory > 0 {
		if req.Metadata.DefaultSize, err = smallestSize(f.sizes, cpu, memory); err != nil {
			return err
		}
	}
	return nil
}

func (f *buildForm) number(name string, low, high int) (int, error) {
	text := f.fields[name]
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < low || n > high {
		return 0, kiln.Errorf(kiln.CodeInvalid, "form field %s: %q is not a number from %d to %d", name, text, low, high)
	}
	return n, nil
}

// smallestSize returns the first preset with at least so many vCPUs and MiB of memory.
func smallestSize(sizes kiln.SizeTable, cpu, memory int) (string, error) {
	for _, size := range sizes.All() {
		if size.VCPUs >= cpu && size.MemoryMiB >= memory {
			return size.Name, nil
		}
	}
	return "", kiln.Errorf(kiln.CodeInvalid, "no size has %d vCPUs and %d MiB of memory", cpu, memory)
}

// archive returns the build context as one open archive.
func (f *buildForm) archive() (*os.File, error) {
	dockerfile, hasDockerfile := f.fields["dockerfile"]
	image := f.fields["image_ref"]
	if f.tar != "" {
		if hasDockerfile || image != "" || len(f.files) > 0 {
			return nil, kiln.Errorf(kiln.CodeInvalid, "the form has a context archive and other sources").
				WithHint("put everything into the archive")
		}
		return os.Open(f.tar)
	}
	switch rootfs := f.file("rootfs"); {
	case hasDockerfile && image != "":
		return nil, kiln.Errorf(kiln.CodeInvalid, "the form has a dockerfile and an image_ref")
	case hasDockerfile:
	case image != "" && len(f.files) > 0:
		return nil, kiln.Errorf(kiln.CodeInvalid, "the form has an image_ref and files, which nothing would copy").
			WithHint("send a dockerfile that begins with FROM and the image")
	case image != "":
		if strings.ContainsAny(image, " \t\r\n$\\") {
			return nil, kiln.Errorf(kiln.CodeInvalid, "image_ref %q is not an image reference", image)
		}
		dockerfile = "FROM " + image + "\n"
	case rootfs != nil:
		rootfs.name = "rootfs.tar"
		dockerfile = "FROM scratch\nADD rootfs.tar /\n"
	default:
		return nil, kiln.Errorf(kiln.CodeInvalid, "the form has no source: send a dockerfile, a context archive, an image_ref or a rootfs")
	}
	return f.pack(dockerfile)
}

func (f *buildForm) file(name string) *spooledFile {
	for i := range f.files {
		if f.files[i].name == name {
			return &f.files[i]
		}
	}
	return nil
}

// pack writes the Dockerfile and the files as a tar archive. Times are fixed, so that
// equal forms are equal bytes.
func (f *buildForm) pack(dockerfile string) (_ *os.File, err error) {
	out, err := os.OpenFile(path.Join(f.dir, "packed.tar"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("upload: %w", err)
	}
	defer func() {
		if err != nil {
			_ = out.Close()
		}
	}()
	tw := tar.NewWriter(out)
	if err := addToTar(tw, "Dockerfile", int64(len(dockerfile)), strings.NewReader(dockerfile)); err != nil {
		return nil, err
	}
	for _, file := range f.files {
		if file.name == "Dockerfile" {
			continue // the form's text is the one that counts
		}
		if err := addFileToTar(tw, file); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, spoolError(err)
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("upload: %w", err)
	}
	return out, nil
}

func addFileToTar(tw *tar.Writer, file spooledFile) error {
	in, err := os.Open(file.path)
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	return addToTar(tw, file.name, info.Size(), in)
}

func addToTar(tw *tar.Writer, name string, size int64, r io.Reader) error {
	hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)}
	if err := tw.WriteHeader(hdr); err != nil {
		return spoolError(err)
	}
	if _, err := io.Copy(tw, r); err != nil {
		return spoolError(err)
	}
	return nil
}

func decodeStrict(text string, v any) error {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more than one JSON value")
	}
	return nil
}

// stallReader gives up on a sender that brings nothing for uploadStall.
type stallReader struct {
	r  io.ReadCloser
	rc *http.ResponseController
}

func (s *stallReader) Read(p []byte) (int, error) {
	_ = s.rc.SetReadDeadline(time.Now().Add(uploadStall)) // not every test's writer has one
	return s.r.Read(p)
}

func (s *stallReader) Close() error {
	_ = s.rc.SetReadDeadline(time.Time{})
	return s.r.Close()
}
