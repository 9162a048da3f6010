package source

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/kilnvm/kiln"
)

// outsideDir is where a Dockerfile from outside its context travels. An ignore file
// beside it keeps the folder out of the context that the Dockerfile sees.
const outsideDir = ".kiln-dockerfile"

// OutsideContext tells whether the Dockerfile of a version, as [Packed] named it, lay outside
// its context.
func OutsideContext(dockerfile string) bool { return strings.HasPrefix(dockerfile, outsideDir+"/") }

// Input is what a user points at.
type Input struct {
	// Dir is the context directory. Empty means that there is none: the Dockerfile
	// is built alone and can copy nothing from its context.
	Dir string
	// Dockerfile is a path on this machine; it may lie outside Dir. Empty means Dir's
	// "Dockerfile".
	Dockerfile string
	// Content is a Dockerfile that is no file here; Dockerfile is then empty.
	Content []byte
}

// Packed says what the server has to know about a packed context.
type Packed struct {
	Dockerfile string   // its path inside the archive, for kiln.BuildOptions
	Warnings   []string // files that were left out because an archive cannot hold them
}

// packTime is the time of every packed file: one time for all makes equal contexts equal
// archives. It is after 1980 because zip archives (Python wheels) can hold no earlier one.
func packTime() time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }

// Pack writes the build context that in names to w as a tar archive. The same files give
// the same bytes. A missing directory or Dockerfile is a *kiln.Error with code invalid.
func Pack(ctx context.Context, in Input, w io.Writer) (Packed, error) {
	p := &packer{ctx: ctx, tar: tar.NewWriter(w)}
	var err error
	switch {
	case in.Dir == "" && in.Dockerfile == "" && in.Content == nil:
		return Packed{}, kiln.Errorf(kiln.CodeInvalid, "neither a Dockerfile nor a context directory given")
	case in.Dir == "":
		err = p.dockerfileAlone(in)
	default:
		err = p.directory(in)
	}
	if err != nil {
		return Packed{}, err
	}
	if err := p.tar.Close(); err != nil {
		return Packed{}, fmt.Errorf("write build context: %w", err)
	}
	return p.packed, nil
}

type packer struct {
	ctx    context.Context
	tar    *tar.Writer
	packed Packed
}

func (p *packer) dockerfileAlone(in Input) error {
	content, err := in.read()
	if err != nil {
		return err
	}
	p.packed.Dockerfile = in.name()
	return p.addBytes(p.packed.Dockerfile, content)
}

func (p *packer) directory(in Input) error {
	info, err := os.Stat(in.Dir)
	if err != nil || !info.IsDir() {
		return &kiln.Error{Code: kiln.CodeInvalid, Message: fmt.Sprintf("build context %s is not a directory", in.Dir), Err: err}
	}
	root, err := os.OpenRoot(in.Dir)
	if err != nil {
		return &kiln.Error{Code: kiln.CodeInvalid, Message: fmt.Sprintf("build context %s cannot be opened: %v", in.Dir, err), Err: err}
	}
	defer root.Close()

	if in.Dockerfile == "" && in.Content == nil {
		in.Dockerfile = filepath.Join(in.Dir, defaultDockerfile)
	}
	content, err := in.read()
	if err != nil {
		return err
	}
	ok := false
	if in.Content == nil {
		if p.packed.Dockerfile, ok, err = pathInside(in.Dir, in.Dockerfile); err != nil {
			return err
		}
	}
	if !ok {
		if err := p.outsideDockerfile(root, in, content); err != nil {
			return err
		}
	}
	rules, err := loadIgnore(root, p.packed.Dockerfile)
	if err != nil {
		return err
	}
	return walk(p.ctx, root, rules, func(e entry) error {
		if !ok && (e.path == outsideDir || strings.HasPrefix(e.path, outsideDir+"/")) {
			return kiln.Errorf(kiln.CodeInvalid, "%s: the name %s is reserved", filepath.Join(in.Dir, e.path), outsideDir)
		}
		return p.addEntry(root, e)
	})
}

// outsideDockerfile packs a Dockerfile that lies outside the context, with an ignore
// file of its own: the one beside it if there is one, else the context's.
func (p *packer) outsideDockerfile(root *os.Root, in Input, content []byte) error {
	var ignore []byte
	err := fs.ErrNotExist
	if in.Dockerfile != "" {
		ignore, err = os.ReadFile(in.Dockerfile + ignoreFile)
	}
	if errors.Is(err, fs.ErrNotExist) {
		ignore, err = root.ReadFile(ignoreFile)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("ignore file: %w", err)
	}
	if len(ignore) > 0 && !bytes.HasSuffix(ignore, []byte("\n")) {
		ignore = append(ignore, '\n')
	}
	ignore = append(ignore, outsideDir+"\n"...)
	if in.Dockerfile != "" {
		for _, name := range kiln.MetadataFiles() {
			name = filepath.Join(filepath.Dir(in.Dockerfile), name)
			if _, err := os.Lstat(name); err == nil {
				p.packed.Warnings = append(p.packed.Warnings, elsewhere(name))
			}
		}
	}
	p.packed.Dockerfile = path.Join(outsideDir, in.name())
	if err := p.addHeader(&tar.Header{Typeflag: tar.TypeDir, Name: outsideDir + "/", Mode: 0o755}); err != nil {
		return err
	}
	if err := p.addBytes(p.packed.Dockerfile, content); err != nil {
		return err
	}
	return p.addBytes(p.packed.Dockerfile+ignoreFile, ignore)
}

func (p *packer) addEntry(root *os.Root, e entry) error {
	hdr := &tar.Header{Name: e.path, Mode: unixMode(e.info.Mode())}
	switch e.info.Mode().Type() {
	case fs.ModeDir:
		hdr.Typeflag, hdr.Name = tar.TypeDir, e.path+"/"
		return p.addHeader(hdr)
	case fs.ModeSymlink:
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, e.target
		return p.addHeader(hdr)
	case 0:
		hdr.Typeflag, hdr.Size = tar.TypeReg, e.info.Size()
		return p.addFile(root, hdr, e)
	}
	p.packed.Warnings = append(p.packed.Warnings, fmt.Sprintf("%s: left out, neither file, directory nor symlink", e.path))
	return nil
}

func (p *packer) addFile(root *os.Root, hdr *tar.Header, e entry) error {
	f, err := root.Open(e.path)
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	defer f.Close()
	if err := p.addHeader(hdr); err != nil {
		return err
	}
	n, err := io.Copy(p.tar, io.LimitReader(contextReader{p.ctx, f}, hdr.Size))
	if err != nil {
		return fmt.Errorf("build context: %s: %w", e.path, err)
	}
	if n != hdr.Size {
		return fmt.Errorf("build context: %s changed while it was read", e.path)
	}
	return nil
}

func (p *packer) addBytes(name string, content []byte) error {
	if err := p.addHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		return err
	}
	if _, err := p.tar.Write(content); err != nil {
		return fmt.Errorf("write build context: %w", err)
	}
	return nil
}

func (p *packer) addHeader(hdr *tar.Header) error {
	hdr.ModTime = packTime()
	if err := p.tar.WriteHeader(hdr); err != nil {
		return fmt.Errorf("write build context: %s: %w", hdr.Name, err)
	}
	return nil
}

// name is what the Dockerfile is called in an archive.
func (in Input) name() string {
	if in.Dockerfile == "" {
		return defaultDockerfile
	}
	return filepath.Base(in.Dockerfile)
}

// read returns the Dockerfile.
func (in Input) read() ([]byte, error) {
	if in.Content != nil {
		return in.Content, nil
	}
	file := in.Dockerfile
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, kiln.Errorf(kiln.CodeInvalid, "no such Dockerfile: %s", file)
	}
	if err == nil && !info.Mode().IsRegular() {
		return nil, kiln.Errorf(kiln.CodeInvalid, "Dockerfile %s is not a regular file", file).WithHint("--dockerfile - reads one from standard input")
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "Dockerfile cannot be read: %w", err)
	}
	return content, nil
}

// pathInside returns file relative to dir with slashes, and whether it is inside dir
// after symlinks have been followed.
func pathInside(dir, file string) (string, bool, error) {
	realDir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", false, fmt.Errorf("build context: %w", err)
	}
	realFile, err := filepath.EvalSymlinks(file)
	if err != nil {
		return "", false, fmt.Errorf("Dockerfile: %w", err)
	}
	for _, p := range []*string{&realDir, &realFile} {
		if *p, err = filepath.Abs(*p); err != nil {
			return "", false, fmt.Errorf("Dockerfile: %w", err)
		}
	}
	rel, err := filepath.Rel(realDir, realFile)
	inside := err == nil && filepath.IsLocal(rel)
	if !inside {
		return "", false, nil
	}
	return filepath.ToSlash(rel), true, nil
}

// unixMode returns the twelve mode bits as tar and stat write them.
func unixMode(m fs.FileMode) int64 {
	bits := int64(m.Perm())
	for flag, bit := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&flag != 0 {
			bits |= bit
		}
	}
	return bits
}
