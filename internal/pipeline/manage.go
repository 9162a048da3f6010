package pipeline

import (
	"context"
	"iter"

	"github.com/kilnvm/kiln"
)

// List returns all templates that an organisation sees, by name, each with its newest
// version.
func (s *Service) List(ctx context.Context, orgID string) ([]*kiln.Template, error) {
	list, _, err := s.ListPage(ctx, orgID, Query{})
	return list, err
}

// Get returns a template with its versions, newest first, or with the one that ref pins,
// whatever became of that.
func (s *Service) Get(ctx context.Context, orgID, ref string) (*kiln.Template, []*kiln.Version, error) {
	r, err := kiln.ParseTemplateRef(ref)
	if err != nil {
		return nil, nil, err
	}
	t, err := s.opts.Store.FindTemplate(ctx, orgID, r.NameOrID)
	if err != nil {
		return nil, nil, err
	}
	if r.Pin() != "" {
		v, err := s.opts.Store.Pinned(ctx, t, r)
		return t, []*kiln.Version{v}, err
	}
	const all = 1 << 30
	versions, err := s.opts.Store.ListVersions(ctx, t.ID, 0, all)
	return t, versions, err
}

// Build returns the version that a build makes, and its template.
func (s *Service) Build(ctx context.Context, orgID, buildID string) (*kiln.Template, *kiln.Version, error) {
	v, err := s.opts.Store.VersionByBuild(ctx, buildID)
	if err != nil {
		return nil, nil, err
	}
	t, err := s.opts.Store.FindTemplate(ctx, orgID, v.TemplateID)
	if kiln.CodeOf(err) == kiln.CodeNotFound {
		return nil, nil, kiln.Errorf(kiln.CodeNotFound, "build %q does not exist", buildID)
	}
	return t, v, err
}

// Cancel stops a queued or running build. It returns at once; Wait tells when the build
// has ended and everything it held is released. A build that has ended is a conflict.
func (s *Service) Cancel(ctx context.Context, orgID, buildID string) error {
	t, v, err := s.Build(ctx, orgID, buildID)
	if err != nil {
		return err
	}
	if v.Status.Terminal() {
		return ended(t, v)
	}
	if t.BuiltIn && orgID != "" {
		return kiln.Errorf(kiln.CodeForbidden, "template %q is built-in: its builds serve everybody, and only the server's operator cancels them", t.Name)
	}
	if err := s.awaited(ctx, t, buildID); err != nil {
		return err // there is nothing to stop
	}
	stopped, err := s.opts.Store.CancelBuild(ctx, buildID, cancelled(kiln.StageSource))
	if err != nil {
		return err
	}
	if stopped {
		s.opts.Meter.BuildCancelled()
		s.forget(buildID)
		return nil
	}
	s.interrupt(buildID)
	return nil
}

// ended says that there is nothing to cancel any more, and why.
func ended(t *kiln.Template, v *kiln.Version) error {
	if v.BuildError != nil {
		return kiln.Errorf(kiln.CodeConflict, "the build of %s version %d has ended: %s", t.Name, v.Number, v.BuildError.Message)
	}
	return kiln.Errorf(kiln.CodeConflict, "the build of %s version %d has ended: it is %s", t.Name, v.Number, v.Status)
}

func (s *Service) interrupt(buildID string) {
	s.mu.Lock()
	cancel := s.running[buildID]
	s.mu.Unlock()
	if cancel != nil {
		cancel(errCancelled)
	}
}

// Delete removes a custom template and stops its builds. Running sandboxes keep what they
// use.
func (s *Service) Delete(ctx context.Context, orgID, ref string) error {
	name, err := kiln.ParseWholeTemplate(ref, "templates delete", "a template is deleted with all its versions")
	if err != nil {
		return err
	}
	builds, err := s.opts.Store.DeleteTemplate(ctx, orgID, name)
	if err != nil {
		return err
	}
	for _, id := range builds {
		s.interrupt(id)
		s.forget(id)
	}
	s.opts.CurrentChanged()
	return nil
}

// Wait returns the version of a build when the build has ended.
func (s *Service) Wait(ctx context.Context, buildID string) (*kiln.Version, error) {
	f, v, err := s.follow(ctx, buildID)
	if err != nil || v.Status.Terminal() {
		return v, err
	}
	select {
	case <-f.ended:
		return s.opts.Store.VersionByBuild(ctx, buildID)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// follow returns the feed of a build and, looked up after it, the version.
func (s *Service) follow(ctx context.Context, buildID string) (*feed, *kiln.Version, error) {
	f := s.logs.feed(buildID)
	v, err := s.opts.Store.VersionByBuild(ctx, buildID)
	if kiln.CodeOf(err) == kiln.CodeNotFound || err == nil && v.Status.Terminal() {
		s.logs.end(buildID)
	}
	return f, v, err
}

// awaited returns an error for a build that nobody has asked for and that no one will start:
// following its log would never end.
func (s *Service) awaited(ctx context.Context, t *kiln.Template, buildID string) error {
	b, err := s.opts.Store.Build(ctx, buildID)
	if err != nil || !b.Deferred {
		return err
	}
	s.mu.Lock()
	inTurn := s.inTurn[buildID]
	s.mu.Unlock()
	if inTurn {
		return nil
	}
	if b, err = s.opts.Store.Build(ctx, buildID); err != nil || !b.Deferred {
		return err // its turn came while we looked
	}
	return kiln.Errorf(kiln.CodeConflict, "template %q is built on its first use, and nobody has used it yet", t.Name).
		WithHint("`kiln templates build --builtin %s` builds it now", t.Name)
}

// Logs yields the lines of a build from an offset that an earlier line gave as Next, 0
// being the first. With follow it waits for more until the build has ended.
func (s *Service) Logs(ctx context.Context, orgID, buildID string, offset int64, follow bool) iter.Seq2[LogLine, error] {
	return func(yield func(LogLine, error) bool) {
		t, v, err := s.Build(ctx, orgID, buildID)
		if err == nil {
			err = s.awaited(ctx, t, buildID)
		}
		if err == nil && v.Status.Terminal() && !v.StartedAt.IsZero() && s.LogSize(buildID) == 0 {
			err = kiln.Errorf(kiln.CodeConflict, "the log of version %d of template %q is no longer kept", v.Number, t.Name).
				WithHint("a log goes with the files of its version; `kiln templates versions %s` shows what is kept", t.Name)
		}
		if err != nil {
			yield(LogLine{}, err)
			return
		}
		var f *feed
		if follow {
			if f, _, err = s.follow(ctx, buildID); err != nil {
				yield(LogLine{}, err)
				return
			}
		}
		s.logs.lines(ctx, buildID, offset, f)(yield)
	}
}
