package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/artifact"
	"github.com/kilnvm/kiln/internal/source/git"
)

// receive stores the source of a new version as a blob and reads it. It fills in what v
// says about it. dir is a private folder to work in.
func (s *Service) receive(ctx context.Context, orgID string, req NewTemplate, v *kiln.Version, dir string) (kiln.Source, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.opts.Timeouts.Source, errDeadline)
	defer cancel()
	switch {
	case req.Git != nil:
		return s.receiveGit(ctx, orgID, req, v, dir)
	case req.Capture != nil:
		blob, err := s.ingest(ctx, req.Context, s.opts.MaxCaptureBytes, "the file system of the sandbox", "remove what the template does not need")
		v.SourceBlob, v.SourceDigest = blob.Digest, blob.Digest
		return kiln.Source{Digest: blob.Digest, Options: v.Options}, err
	}
	blob, err := s.ingest(ctx, req.Context, s.opts.MaxContextBytes, "the build context", "leave out what the build does not need with .dockerignore")
	if err != nil {
		return kiln.Source{}, err
	}
	v.SourceBlob = blob.Digest
	src, err := s.openWhole(ctx, filepath.Join(dir, "context"), v)
	v.SourceDigest, v.Options = src.Digest, src.Options
	return src, err
}

func (s *Service) ingest(ctx context.Context, r io.Reader, limit int64, what, hint string) (kiln.Blob, error) {
	blob, err := s.opts.Blobs.IngestReader(ctx, r, kiln.RoleSource, limit)
	if errors.Is(err, artifact.ErrTooLarge) {
		return kiln.Blob{}, kiln.Errorf(kiln.CodeInvalid, "%s is larger than %d MiB", what, limit>>20).WithHint("%s", hint)
	}
	return blob, err
}

// receiveGit pins the commit. It is fetched unless the version that was asked for last has
// it already.
func (s *Service) receiveGit(ctx context.Context, orgID string, req NewTemplate, v *kiln.Version, dir string) (kiln.Source, error) {
	work := filepath.Join(dir, "git")
	if err := os.Mkdir(work, 0o700); err != nil {
		return kiln.Source{}, fmt.Errorf("git: %w", err)
	}
	remote, err := git.Open(*req.Git, req.GitCredentials, work, s.opts.Git)
	if err != nil {
		return kiln.Source{}, err
	}
	defer remote.Close()
	pinned := remote.Source()
	if pinned.Commit, err = remote.Resolve(ctx); err != nil {
		return kiln.Source{}, err
	}
	v.Options.Origin.Git, v.SourceDigest = &pinned, pinned.Digest()
	var warnings []string
	if v.SourceBlob = s.fetched(ctx, orgID, req.Name, v.SourceDigest); v.SourceBlob == "" {
		if v.SourceBlob, warnings, err = s.fetch(ctx, remote, pinned.Commit); err != nil {
			return kiln.Source{}, err
		}
		if err := os.RemoveAll(work); err != nil {
			return kiln.Source{}, fmt.Errorf("git: %w", err)
		}
	}
	src, err := s.openRecipe(ctx, filepath.Join(dir, "recipe"), v)
	if err != nil {
		return kiln.Source{}, err
	}
	v.Options = src.Options
	src.Warnings = append(warnings, src.Warnings...)
	return src, nil
}

// fetched returns the blob of a context with that digest if the version that was asked for
// last has it, and "" if it has to be fetched.
func (s *Service) fetched(ctx context.Context, orgID, name string, digest kiln.Digest) kiln.Digest {
	if name == "" {
		return ""
	}
	t, err := s.opts.Store.FindTemplate(ctx, orgID, name)
	if err != nil {
		return ""
	}
	v, err := s.asked(ctx, t)
	if err != nil || v.SourceDigest != digest {
		return ""
	}
	s.opts.Blobs.Touch(ctx, v.SourceBlob) // another request may be the last one before this one is stored
	if _, err := os.Stat(s.opts.Blobs.Path(v.SourceBlob)); err != nil {
		return ""
	}
	return v.SourceBlob
}

func (s *Service) fetch(ctx context.Context, remote *git.Remote, commit string) (kiln.Digest, []string, error) {
	if err := remote.Fetch(ctx, commit); err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reader, writer := io.Pipe()
	type result struct {
		warnings []string
		err      error
	}
	done := make(chan result, 1)
	go func() {
		warnings, err := remote.Archive(ctx, commit, writer)
		writer.CloseWithError(err)
		done <- result{warnings, err}
	}()
	blob, err := s.ingest(ctx, reader, s.opts.MaxContextBytes, "the build context", "build a folder of the repository with --dir")
	reader.CloseWithError(errors.New("not wanted any more"))
	archived := <-done
	var said *kiln.Error
	if errors.As(archived.err, &said) || err == nil {
		err = archived.err
	}
	return blob.Digest, archived.warnings, err
}

// rebuildGit asks for the next version from what the ref of the last request means now, with
// that request's flags.
func (s *Service) rebuildGit(ctx context.Context, t *kiln.Template, o kiln.BuildOptions, req Rebuild) (*Result, error) {
	from := *o.Origin.Git
	from.Commit = ""
	return s.Create(ctx, t.OrgID, NewTemplate{
		Name: t.Name, Git: &from, GitCredentials: req.GitCredentials, Metadata: o.Origin.Metadata, Replace: true,
		Options: kiln.BuildOptions{
			Dockerfile: o.Dockerfile, Target: o.Origin.Target, Args: o.Origin.Args,
			NoCache: req.NoCache, Pull: req.Pull, Secrets: req.Secrets,
		},
	})
}

// digestOf returns the digest under which a version's context is known: a commit names its
// content, anything else is named by its content.
func digestOf(v *kiln.Version, content kiln.Digest) kiln.Digest {
	if g := v.Options.Origin.Git; g != nil {
		return g.Digest()
	}
	return content
}

// describe lets messages about a source name it as the user did.
func describe(src kiln.Source, v *kiln.Version) kiln.Source {
	if image := v.Options.Origin.Image; image != "" {
		src.DisplayName = "--image " + image
	}
	return src
}

// captureKeys are those of a captured file system, which stands for an image.
func (s *Service) captureKeys(c *kiln.CaptureSource, archive kiln.Digest) keys {
	image := kiln.NewKey(kiln.StageImage, 1).
		Add("capture", string(archive)).
		AddList("env", c.Config.Env).Add("user", c.Config.User).Add("working-dir", c.Config.WorkingDir).
		AddList("entrypoint", c.Config.Entrypoint).AddList("cmd", c.Config.Cmd).
		AddList("ports", c.Config.ExposedPorts).AddMap("labels", c.Config.Labels).
		AddList("volumes", c.Config.Volumes).
		Key()
	return s.rootfsKey(image)
}

// openCapture reads a captured file system, which is as untrusted as any archive.
func (j *job) openCapture(c *kiln.CaptureSource) (*kiln.Image, error) {
	f, err := j.opts.Blobs.Open(j.v.SourceBlob)
	if errors.Is(err, os.ErrNotExist) {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "the captured file system of this version is no longer stored: %w", err).
			WithHint("capture a sandbox again")
	}
	if err != nil {
		return nil, err
	}
	root, err := j.opts.OpenRoot(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &kiln.Image{Config: c.Config, Root: owned(root, f)}, nil
}

// owned returns root so that closing it closes the archive that it reads, too.
func owned(root kiln.EntrySource, file *os.File) kiln.EntrySource {
	o := &ownedRoot{EntrySource: root, file: file}
	if refs, ok := root.(kiln.RefOpener); ok {
		return &ownedRefs{ownedRoot: o, refs: refs}
	}
	return o
}

type ownedRoot struct {
	kiln.EntrySource
	file *os.File
}

func (r *ownedRoot) Close() error { return errors.Join(r.EntrySource.Close(), r.file.Close()) }

type ownedRefs struct {
	*ownedRoot
	refs kiln.RefOpener
}

// OpenRef implements kiln.RefOpener.
func (r *ownedRefs) OpenRef(ref string) (io.ReadCloser, error) { return r.refs.OpenRef(ref) }
