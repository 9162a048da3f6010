package pipeline

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnvm/kiln"
)

// Rebuild asks for the next version of a template from the source that was asked for last.
type Rebuild struct {
	Template string // ID or name
	NoCache  bool
	Pull     bool
	// Secrets are needed again, because those of earlier builds were not kept.
	Secrets        map[string][]byte
	GitCredentials kiln.GitCredentials // needed again, too
}

// Rebuild queues the next version of a template, unless that would change nothing.
func (s *Service) Rebuild(ctx context.Context, orgID string, req Rebuild) (*Result, error) {
	t, err := s.findOwn(ctx, orgID, req.Template)
	if err != nil {
		return nil, err
	}
	old, err := s.asked(ctx, t)
	if err != nil {
		return nil, err
	}
	// Another request may be the last one before this one has read it.
	ctx, release := s.opts.Blobs.Hold(ctx)
	defer release()
	s.opts.Blobs.Touch(ctx, old.SourceBlob)
	if g := old.Options.Origin.Git; g != nil {
		return s.rebuildGit(ctx, t, old.Options, req)
	}
	v := &kiln.Version{
		TemplateID: t.ID, BuildID: kiln.NewID("build_"), CreatedAt: time.Now().UTC(),
		SourceBlob: old.SourceBlob, SourceDigest: old.SourceDigest, Options: old.Options, Metadata: old.Metadata,
	}
	v.Options.NoCache, v.Options.Pull, v.Options.Secrets = req.NoCache, req.Pull, req.Secrets
	dir, err := s.opts.Blobs.TempDir("request")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	src, err := s.readSource(ctx, filepath.Join(dir, "recipe"), v)
	if err != nil {
		return nil, err
	}
	res, err := s.nextVersion(ctx, t, v, src, false)
	if o := old.Options.Origin; err == nil && !t.BuiltIn && o.Image == "" && o.Capture == nil {
		res.Warnings = append(res.Warnings, fmt.Sprintf(
			"the build context is as it was uploaded; files that have changed since count with: kiln templates rebuild %s DIR", t.Name))
	}
	return res, err
}

// keep completes req by what the last request for the template said.
func (s *Service) keep(ctx context.Context, orgID string, req NewTemplate) (NewTemplate, error) {
	t, err := s.findOwn(ctx, orgID, req.Name)
	if err != nil {
		return req, err
	}
	last, err := s.asked(ctx, t)
	if err != nil {
		return req, err
	}
	o := last.Options.Origin
	if o.Capture != nil {
		return req, kiln.Errorf(kiln.CodeConflict, "template %q is the file system of a sandbox: its metadata are not those of a build context", t.Name).
			WithHint("`kiln templates build %s DIR` makes its next version of a folder", t.Name)
	}
	req.Name, req.Replace = t.Name, true
	if req.Options.Target == "" {
		req.Options.Target = o.Target
	}
	req.Options.Args = overlay(o.Args, req.Options.Args)
	req.Metadata = overMetadata(o.Metadata, req.Metadata)
	return req, nil
}

// findOwn returns a template that the organisation may rebuild.
func (s *Service) findOwn(ctx context.Context, orgID, ref string) (*kiln.Template, error) {
	name, err := kiln.ParseWholeTemplate(ref, "templates rebuild", "the next version follows the newest one")
	if err != nil {
		return nil, err
	}
	t, err := s.opts.Store.FindTemplate(ctx, orgID, name)
	if err != nil {
		return nil, err
	}
	if t.BuiltIn && orgID != "" {
		return nil, kiln.Errorf(kiln.CodeForbidden, "template %q is built-in and rebuilt by the server only", t.Name).
			WithHint("its operator can: kiln templates build --builtin %s --pull", t.Name)
	}
	return t, nil
}

// asked returns the version of t that was asked for last.
func (s *Service) asked(ctx context.Context, t *kiln.Template) (*kiln.Version, error) {
	if t.Recipe == t.Latest.Number {
		return t.Latest, nil
	}
	return s.opts.Store.Version(ctx, t.ID, t.Recipe)
}
