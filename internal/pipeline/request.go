package pipeline

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"time"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/source"
	"github.com/kilnvm/kiln/internal/span"
	"github.com/kilnvm/kiln/internal/store"
)

// NewTemplate asks for a template.
type NewTemplate struct {
	Name    string    // "" means the name in the metadata file
	Context io.Reader // a tar archive, plain or gzip; nil with Git
	// Git is where the context is to be fetched from, with GitCredentials if need be.
	Git            *kiln.GitSource
	GitCredentials kiln.GitCredentials
	// Image says that Context is nothing but a FROM line with this image.
	Image string
	// Capture says that Context is the root filesystem of a sandbox.
	Capture  *kiln.CaptureSource
	Options  kiln.BuildOptions
	Metadata kiln.Metadata // what is set here wins over the metadata file
	// Replace makes the next version if the organisation has a template of that name.
	Replace bool
	// Keep makes the next version of a template that has to exist, with the arguments, target
	// and metadata of the last request for it where this one says nothing.
	Keep bool
}

// Result is the answer to a request for a build.
type Result struct {
	Template *kiln.Template
	// Version is the new version, or the promoted one if Unchanged.
	Version *kiln.Version
	// Unchanged tells that a build would change nothing, so that none was started.
	Unchanged bool
	Warnings  []string
}

// resolveTime bounds the look at the base images while a request waits. If it takes
// longer, the build finds out whether anything changed.
const resolveTime = 5 * time.Second

// Create stores the source and queues version 1 of a new template, or with Replace the
// next version of an existing one. Mistakes that can be seen without building are
// reported at once, and then nothing is left behind.
func (s *Service) Create(ctx context.Context, orgID string, req NewTemplate) (*Result, error) {
	return s.create(ctx, orgID, req, false)
}

// create is Create; a deferred version stays off the queue until somebody asks for it.
func (s *Service) create(ctx context.Context, orgID string, req NewTemplate, deferred bool) (_ *Result, err error) {
	if req.Keep {
		if req, err = s.keep(ctx, orgID, req); err != nil {
			return nil, err
		}
	}
	if req.Name != "" {
		if err := kiln.CheckTemplateName(req.Name); err != nil {
			return nil, err
		}
	}
	if err := kiln.CheckPairs("build arguments", req.Options.Args); err != nil {
		return nil, err
	}
	ctx, release := s.opts.Blobs.Hold(ctx)
	defer release()
	s.beginUpload()
	v := &kiln.Version{BuildID: kiln.NewID("build_"), CreatedAt: time.Now().UTC(), Options: source.WithBuildTable(req.Options, req.Metadata.Build)}
	v.Options.Origin = kiln.Origin{
		Image: req.Image, Capture: req.Capture, Args: req.Options.Args, Target: req.Options.Target, Metadata: req.Metadata,
	}
	kept := false
	defer func() { s.endUpload(ctx, v.SourceBlob, kept) }()
	dir, err := s.opts.Blobs.TempDir("request")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	src, err := s.receive(ctx, orgID, req, v, dir)
	if err != nil {
		return nil, err
	}
	if v.Metadata, err = mergeMetadata(src.Metadata, req.Metadata); err != nil {
		return nil, err
	}
	if req.Name == "" {
		req.Name = v.Metadata.Name
	}
	if req.Name == "" {
		return nil, kiln.Errorf(kiln.CodeInvalid, "the template has no name").WithHint("give one, or let kiln-template.toml say name = \"…\"")
	}
	if err := kiln.CheckTemplateName(req.Name); err != nil {
		return nil, err
	}
	v.Metadata.Name = req.Name
	res, err := s.createOrReplace(ctx, orgID, req, v, src, deferred)
	if err != nil {
		return nil, err
	}
	kept = !res.Unchanged
	res.Warnings = append(src.Warnings, res.Warnings...)
	return res, nil
}

func (s *Service) createOrReplace(ctx context.Context, orgID string, req NewTemplate, v *kiln.Version, src kiln.Source, deferred bool) (*Result, error) {
	if req.Replace {
		t, err := s.opts.Store.FindTemplate(ctx, orgID, req.Name)
		if err == nil && t.OrgID == orgID {
			return s.nextVersion(ctx, t, v, src, deferred)
		}
		if err != nil && kiln.CodeOf(err) != kiln.CodeNotFound {
			return nil, err
		}
	}
	now := v.CreatedAt
	m := v.Metadata
	t := &kiln.Template{
		ID: kiln.NewTemplateID(), OrgID: orgID, BuiltIn: orgID == "", Name: req.Name, Description: m.Description, Author: m.Author, Icon: m.Icon, Tags: m.Tags,
		CreatedAt: now, UpdatedAt: now,
	}
	v.TemplateID = t.ID
	err := s.enqueue(ctx, v, deferred, func(b store.Build, also store.TxFunc) error { return s.opts.Store.CreateTemplate(ctx, t, v, b, also) })
	if err != nil {
		return nil, err
	}
	t.Latest = v
	return &Result{Template: t, Version: v, Warnings: s.shadowed(ctx, t)}, nil
}

// shadowed warns when the name of a new template was one of a built-in template.
func (s *Service) shadowed(ctx context.Context, t *kiln.Template) []string {
	hidden, err := s.opts.Store.FindTemplate(ctx, "", t.Name)
	if t.BuiltIn || err != nil {
		return nil
	}
	return []string{fmt.Sprintf("%s shadows the built-in template %s for this organisation", t.Name, hidden.Name)}
}

// nextVersion queues v as the next version of t unless it would equal the promoted one and no
// other is about to take its place.
func (s *Service) nextVersion(ctx context.Context, t *kiln.Template, v *kiln.Version, src kiln.Source, deferred bool) (*Result, error) {
	v.TemplateID, src.OrgID = t.ID, t.OrgID
	keepBase(t, v, &src)
	if current := s.unchanged(ctx, t, v, src); current != nil {
		noCache, pull := current.Options.NoCache, current.Options.Pull // it was built with these
		current.Options = v.Options
		current.Options.NoCache, current.Options.Pull = noCache, pull
		if done, err := s.opts.Store.AskAgain(ctx, current); err != nil || done {
			return &Result{Template: t, Version: current, Unchanged: true}, err
		}
	}
	err := s.enqueue(ctx, v, deferred, func(b store.Build, also store.TxFunc) error { return s.opts.Store.CreateVersion(ctx, v, b, also) })
	if err != nil {
		return nil, err
	}
	t.Latest, t.Recipe = v, v.Number
	return &Result{Template: t, Version: v}, nil
}

// keepBase lets v start from the base that was chosen for the promoted version, unless the
// request asks for newer bases or names others.
func keepBase(t *kiln.Template, v *kiln.Version, src *kiln.Source) {
	v.Options.KeptBase = ""
	if !v.Options.Pull && t.Serving != nil && len(v.Options.Base) > 0 {
		for _, b := range t.Serving.BaseImages {
			if b.Chosen {
				v.Options.KeptBase = b.Name
			}
		}
	}
	src.Options.KeptBase = v.Options.KeptBase
}

// enqueue calls insert with what has to happen in the transaction that stores v.
func (s *Service) enqueue(ctx context.Context, v *kiln.Version, deferred bool, insert func(store.Build, store.TxFunc) error) error {
	if len(v.Options.Secrets) > 0 {
		s.mu.Lock()
		s.secrets[v.BuildID] = maps.Clone(v.Options.Secrets)
		s.mu.Unlock()
	}
	if !deferred {
		s.logs.feed(v.BuildID)
	}
	b := store.Build{
		Node: s.opts.Node, NeedsSecrets: len(v.Options.Secrets) > 0, Deferred: deferred, Traceparent: span.Parent(ctx),
	}
	if err := insert(b, s.queue.insert(v.BuildID, wanted, 0)); err != nil {
		s.forget(v.BuildID)
		return err
	}
	if !deferred {
		s.queue.wake()
	}
	return nil
}

// unchanged returns the promoted version of t if building v would give the same, and nil
// if not or if that cannot be told quickly. It looks only at keys, files at hand and, with
// Pull, the registries.
func (s *Service) unchanged(ctx context.Context, t *kiln.Template, v *kiln.Version, src kiln.Source) *kiln.Version {
	current := t.Serving
	if v.Options.NoCache || current == nil || current.SourceDigest != v.SourceDigest || !reflect.DeepEqual(normal(current.Metadata), normal(v.Metadata)) {
		return nil
	}
	k, _, err := s.inputs(ctx, v, src)
	if err != nil {
		return nil
	}
	var b built
	ok, err := s.opts.Store.CachedStage(ctx, kiln.StageRootfs, k.rootfs, &b)
	if err != nil || !ok || b.Rootfs.Digest != current.Rootfs.Digest || !reflect.DeepEqual(b.Config, current.Config) {
		return nil
	}
	if s.opts.Blobs.Check(ctx, b.Rootfs) != nil {
		return nil
	}
	size, err := s.opts.Sizes.ByName(current.DefaultSize())
	if err != nil {
		return nil
	}
	if _, ok, err = s.bakes.find(ctx, s.opts.Snapshots.Key(t.Quota.Apply(current).VMSpec(size))); err != nil || !ok {
		return nil
	}
	return current
}

// inputs returns the keys of the image and rootfs stages and the bases they stand for, as
// they are now, if that can be told quickly.
func (s *Service) inputs(ctx context.Context, v *kiln.Version, src kiln.Source) (keys, []kiln.BaseImage, error) {
	if c := v.Options.Origin.Capture; c != nil {
		return s.captureKeys(c, v.SourceDigest), nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTime)
	defer cancel()
	bases, err := s.opts.Images.Resolve(ctx, src, kiln.DiscardProgress)
	if err != nil {
		return keys{}, nil, err
	}
	return s.keysOf(src, bases), bases, nil
}

// beginUpload announces that a source blob may get a new user.
func (s *Service) beginUpload() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uploads++
}

// endUpload removes source blobs that no version refers to. It leaves them while other
// requests are under way, since one of those may be about to refer to the same blob; the
// last of them removes what is left.
func (s *Service) endUpload(ctx context.Context, blob kiln.Digest, kept bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uploads--
	if blob != "" && !kept {
		s.orphans[blob] = true
	}
	if s.uploads > 0 {
		return
	}
	for d := range s.orphans {
		if err := s.dropSource(ctx, d); err != nil {
			s.log.Error("cannot remove an unused build context", "blob", d, "error", err)
		}
		delete(s.orphans, d)
	}
}

func (s *Service) dropSource(ctx context.Context, d kiln.Digest) error {
	used, err := s.opts.Store.SourceInUse(ctx, d)
	if err != nil || used {
		return err
	}
	if err := s.opts.Blobs.Remove(d); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	return nil
}
