package pipeline

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/kilnvm/kiln"
)

// BuiltIn is a template that comes with the program.
type BuiltIn struct {
	Name    string
	Aliases []string
	Context []byte // tar archive; the same template always has the same bytes
}

// RegisterBuiltIns makes sure that every built-in template exists in the version that the
// program has, and returns. In the background, in the order of list and one at a time, it
// then builds those that are named in eager and those that have been built before and have
// changed since. The others are built when somebody asks for them.
func (s *Service) RegisterBuiltIns(ctx context.Context, list []BuiltIn, eager []string) error {
	var due []string
	for _, b := range list {
		t, err := s.register(ctx, b, slices.Contains(eager, b.Name))
		if err != nil {
			return err
		}
		if t.Latest.Status.Terminal() {
			continue
		}
		if slices.Contains(eager, b.Name) || t.Current > 0 {
			due = append(due, t.Latest.BuildID)
		}
	}
	s.mu.Lock()
	for _, id := range due {
		s.inTurn[id] = true
	}
	s.mu.Unlock()
	s.background.Go(func() { s.buildInTurn(due) })
	return nil
}

// register makes sure that b is there, under all its names.
func (s *Service) register(ctx context.Context, b BuiltIn, eager bool) (*kiln.Template, error) {
	t, err := s.registerRecipe(ctx, b, eager)
	if err != nil {
		return nil, err
	}
	return t, s.opts.Store.SetAliases(ctx, t.ID, b.Aliases)
}

// registerRecipe makes a deferred version of b unless its newest one is made from the same
// files. One that failed is made again if it is eager or in use: what was missing may be
// there now.
func (s *Service) registerRecipe(ctx context.Context, b BuiltIn, eager bool) (*kiln.Template, error) {
	t, err := s.opts.Store.FindTemplate(ctx, "", b.Name)
	known := err == nil && t.Name == b.Name // and not an alias
	if err != nil && kiln.CodeOf(err) != kiln.CodeNotFound {
		return nil, err
	}
	if known && t.Latest.SourceBlob == kiln.DigestOf(b.Context) && (t.Latest.Status != kiln.VersionFailed || !eager && t.Current == 0) {
		return t, nil
	}
	if known && t.Latest.Status == kiln.VersionPending {
		if err := s.replacePending(ctx, t.Latest.BuildID, "a newer recipe took its place"); err != nil {
			return nil, err
		}
	}
	res, err := s.create(ctx, "", NewTemplate{Name: b.Name, Context: bytes.NewReader(b.Context), Replace: known}, true)
	if kiln.CodeOf(err) == kiln.CodeConflict && !known {
		return s.opts.Store.FindTemplate(ctx, "", b.Name) // another server was faster
	}
	if err != nil {
		return nil, err
	}
	s.log.InfoContext(ctx, "built-in template", "name", b.Name, "version", res.Version.Number)
	return res.Template, nil
}

// replacePending ends a build that has not begun, because another one follows.
func (s *Service) replacePending(ctx context.Context, buildID, why string) error {
	_, err := s.opts.Store.CancelBuild(ctx, buildID, &kiln.BuildError{Stage: kiln.StageSource, Message: why})
	if kiln.CodeOf(err) == kiln.CodeConflict {
		return nil // it has ended
	}
	s.forget(buildID)
	return err
}

// buildInTurn builds deferred versions one after the other, so that a user's build never
// waits for more than the one that runs.
func (s *Service) buildInTurn(builds []string) {
	for _, id := range builds {
		err := s.startDeferred(s.ctx, id, unhurried)
		s.mu.Lock()
		delete(s.inTurn, id)
		s.mu.Unlock()
		if err != nil && s.ctx.Err() == nil {
			s.log.Error("cannot start the build of a built-in template", "build", id, "error", err)
			continue
		}
		if _, err := s.Wait(s.ctx, id); err != nil {
			return // the server is stopping
		}
	}
}

// startDeferred puts a deferred build on the queue. One that is there already stays.
func (s *Service) startDeferred(ctx context.Context, buildID string, priority int) error {
	s.logs.feed(buildID)
	started, err := s.opts.Store.StartBuild(ctx, buildID, s.opts.Node, s.queue.insert(buildID, priority, 0))
	if err != nil {
		return err
	}
	if started {
		s.queue.wake()
	}
	return nil
}

// retryFailed is how long after its failure a built-in template is not built again for a
// sandbox, so that a flood of requests does not become a flood of builds.
const retryFailed = time.Minute

// BuildOnUse is asked when a sandbox could not start from ref. If that means a built-in
// template that has never been built, its build is started, or goes on, and its newest
// version is returned; else nil.
func (s *Service) BuildOnUse(ctx context.Context, orgID, ref string) (*kiln.Template, error) {
	r, err := kiln.ParseTemplateRef(ref)
	if err != nil {
		return nil, err
	}
	t, err := s.opts.Store.FindTemplate(ctx, orgID, r.NameOrID)
	if err != nil || !t.BuiltIn || t.Current > 0 || r.Pin() != "" {
		return nil, err
	}
	if t.Latest.Status == kiln.VersionFailed && time.Since(t.Latest.EndedAt) < retryFailed {
		return nil, nil
	}
	res, err := s.BuildBuiltIn(ctx, Rebuild{Template: t.Name})
	if err != nil {
		return nil, err
	}
	return res.Template, nil
}

// BuildBuiltIn builds a built-in template now, unless its newest version is ready or being
// built. With NoCache or Pull, which are for the server's operator, its next version is
// built in any case. Aliases count as names.
func (s *Service) BuildBuiltIn(ctx context.Context, req Rebuild) (*Result, error) {
	name, err := kiln.ParseWholeTemplate(req.Template, "templates build --builtin", "its newest version is what is built")
	if err != nil {
		return nil, err
	}
	t, err := s.opts.Store.FindTemplate(ctx, "", name)
	if err != nil {
		return nil, err
	}
	req.Template = t.ID
	if req.NoCache || req.Pull {
		return s.refresh(ctx, t, req)
	}
	switch t.Latest.Status {
	case kiln.VersionReady:
		return &Result{Template: t, Version: t.Latest, Unchanged: true}, nil
	case kiln.VersionFailed:
		return s.Rebuild(ctx, "", req)
	case kiln.VersionPending, kiln.VersionBuilding:
	}
	return &Result{Template: t, Version: t.Latest}, s.startDeferred(ctx, t.Latest.BuildID, wanted)
}

// refresh builds the next version of a built-in template from the same recipe.
func (s *Service) refresh(ctx context.Context, t *kiln.Template, req Rebuild) (*Result, error) {
	old, err := s.opts.Store.Build(ctx, t.Latest.BuildID)
	if err != nil {
		return nil, err
	}
	res, err := s.Rebuild(ctx, "", req)
	if err != nil || !old.Deferred {
		return res, err
	}
	return res, s.replacePending(ctx, old.ID, "a newer build took its place")
}
