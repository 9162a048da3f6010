package pipeline

import (
	"context"
	"encoding/base64"
	"encoding/json"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/store"
)

// Query says which templates are listed, and from where. Zero fields do not matter.
type Query struct {
	Status  kiln.VersionStatus
	BuiltIn *bool
	Prefix  string // of the name
	Tag     string // one of the words that the metadata calls tags
	After   string // what an earlier page gave as next
	Limit   int    // 0: all of them
}

// ListPage returns the templates that an organisation sees and that match, by name, each
// with its newest version. next is "" at the end.
func (s *Service) ListPage(ctx context.Context, orgID string, q Query) (list []*kiln.Template, next string, err error) {
	place, err := parsePlace(q.After)
	if err != nil {
		return nil, "", err
	}
	filter := store.Filter{Status: q.Status, BuiltIn: q.BuiltIn, Prefix: q.Prefix, Tag: q.Tag}
	const most = 500
	for {
		limit := most
		if q.Limit > 0 {
			limit = min(most, q.Limit-len(list))
		}
		page, after, err := s.opts.Store.ListTemplates(ctx, orgID, filter, place, limit)
		if err != nil {
			return nil, "", err
		}
		list = append(list, page...)
		if place = after; after == nil || q.Limit > 0 && len(list) >= q.Limit {
			return list, placeToken(place), nil
		}
	}
}

func placeToken(c *store.Cursor) string {
	if c == nil {
		return ""
	}
	text, _ := json.Marshal([]string{c.Name, c.ID}) // strings always marshal
	return base64.RawURLEncoding.EncodeToString(text)
}

func parsePlace(token string) (*store.Cursor, error) {
	if token == "" {
		return nil, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	var place []string
	if err != nil || json.Unmarshal(text, &place) != nil || len(place) != 2 {
		return nil, kiln.Errorf(kiln.CodeInvalid, "next_token is not one that an earlier page gave")
	}
	return &store.Cursor{Name: place[0], ID: place[1]}, nil
}

// Versions returns up to limit versions of a template, newest first, that are older than
// the given number; before 0 means from the newest.
func (s *Service) Versions(ctx context.Context, orgID, ref string, before, limit int) (*kiln.Template, []*kiln.Version, error) {
	t, err := s.find(ctx, orgID, ref, "templates versions")
	if err != nil {
		return nil, nil, err
	}
	versions, err := s.opts.Store.ListVersions(ctx, t.ID, before, limit)
	return t, versions, err
}

// Tags returns the tags of a template by name.
func (s *Service) Tags(ctx context.Context, orgID, ref string) ([]kiln.Tag, error) {
	t, err := s.find(ctx, orgID, ref, "templates tags")
	if err != nil {
		return nil, err
	}
	return s.opts.Store.Tags(ctx, t.ID)
}

// SetTag names a version of a custom template, which ref pins or number says; 0 and no pin
// mean the current one. It returns the version's number.
func (s *Service) SetTag(ctx context.Context, orgID, ref string, number int, tag string) (int, error) {
	if err := kiln.CheckTag(tag); err != nil {
		return 0, err
	}
	r, err := kiln.ParseTemplateRef(ref)
	if err != nil {
		return 0, err
	}
	if number, err = s.numberOf(ctx, orgID, r, number); err != nil {
		return 0, err
	}
	return s.opts.Store.SetTag(ctx, orgID, r.NameOrID, number, tag)
}

// numberOf returns the version that ref pins or number says; 0 if neither does.
func (s *Service) numberOf(ctx context.Context, orgID string, ref kiln.TemplateRef, number int) (int, error) {
	if ref.Tag != "" {
		_, v, err := s.opts.Store.ResolveTemplate(ctx, orgID, ref)
		if err != nil {
			return 0, err
		}
		ref.Version = v.Number
	}
	if number > 0 && ref.Version > 0 && number != ref.Version {
		return 0, kiln.Errorf(kiln.CodeInvalid, "version %d and the pin of %s name two versions", number, ref).WithHint("give one of them")
	}
	return max(number, ref.Version), nil
}

// RemoveTag removes a tag of a custom template; the version stays as long as anything
// else refers to it.
func (s *Service) RemoveTag(ctx context.Context, orgID, ref, tag string) error {
	if err := kiln.CheckTag(tag); err != nil {
		return err
	}
	name, err := kiln.ParseWholeTemplate(ref, "templates untag", "a tag is one of the whole template")
	if err != nil {
		return err
	}
	return s.opts.Store.RemoveTag(ctx, orgID, name, tag)
}

// Rollback makes another ready version of a custom template the one that sandboxes start
// from: to, or the version that ref pins, or the newest one before the current. It returns
// the template as it then is and the number that was current before.
func (s *Service) Rollback(ctx context.Context, orgID, ref string, to int) (*kiln.Template, int, error) {
	r, err := kiln.ParseTemplateRef(ref)
	if err != nil {
		return nil, 0, err
	}
	if to, err = s.numberOf(ctx, orgID, r, to); err != nil {
		return nil, 0, err
	}
	t, was, err := s.opts.Store.Rollback(ctx, orgID, r.NameOrID, to)
	if err == nil {
		s.opts.CurrentChanged()
	}
	return t, was, err
}

// find returns the template that a command lists.
func (s *Service) find(ctx context.Context, orgID, ref, command string) (*kiln.Template, error) {
	name, err := kiln.ParseWholeTemplate(ref, command, "the list is of the whole template")
	if err != nil {
		return nil, err
	}
	return s.opts.Store.FindTemplate(ctx, orgID, name)
}
