package api

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// Versions is the list of templates and what can be done with their versions, as the API
// needs it. Every method sees only what the organisation may see.
type Versions interface {
	// ListPage returns templates by name; next is "" at the end.
	ListPage(ctx context.Context, orgID string, q TemplateQuery) (list []*kiln.Template, next string, err error)
	// Versions returns versions, newest first, older than the number before unless that is 0.
	Versions(ctx context.Context, orgID, ref string, before, limit int) (*kiln.Template, []*kiln.Version, error)
	Tags(ctx context.Context, orgID, ref string) ([]kiln.Tag, error)
	// SetTag names a version; number 0 means the one that ref pins, else the current one.
	SetTag(ctx context.Context, orgID, ref string, number int, tag string) (int, error)
	RemoveTag(ctx context.Context, orgID, ref, tag string) error
	// Rollback makes another ready version the current one: to, or if that is 0 the newest
	// one before the current. It returns which one was current before.
	Rollback(ctx context.Context, orgID, ref string, to int) (t *kiln.Template, from int, err error)
}

// TemplateQuery says which templates are listed, and from where. Zero fields do not matter.
type TemplateQuery struct {
	Status  kiln.VersionStatus
	BuiltIn *bool
	Prefix  string
	Tag     string
	After   string
	Limit   int
}

// MaxPage is the most that a page of a list holds.
const MaxPage = 500

// HeaderNextToken carries the place of the next page, if there is one. E2B's clients know it.
const HeaderNextToken = "X-Next-Token"

// TemplateVersion is a version with what else is known of it.
type TemplateVersion struct {
	*kiln.Version
	Current bool     `json:"current" doc:"Sandboxes start from it unless they pin another one"`
	Tags    []string `json:"tags" nullable:"false"`
}

// TagPath are the path parameters of one tag. It is exported so that huma looks into it.
type TagPath struct {
	TemplateName
	Tag string `path:"tag" example:"v1"`
}

type (
	listTemplatesInput struct {
		Status  string `query:"status" enum:"pending,building,ready,failed"`
		BuiltIn string `query:"built_in" enum:"true,false" doc:"Only built-in ones, or only own ones"`
		Prefix  string `query:"prefix" doc:"Of the name"`
		Tag     string `query:"tag" doc:"One of the tags in the metadata"`
		Limit   int    `query:"limit" minimum:"1" maximum:"500" doc:"Of the page; without it all are returned"`
		After   string `query:"next_token" doc:"What an earlier page gave in the header X-Next-Token"`
	}
	templatesOutput struct {
		NextToken string `header:"X-Next-Token" doc:"Where the next page begins; absent at the end"`
		Body      []Template
	}
	versionsInput struct {
		TemplateName
		Before int `query:"before" minimum:"0" doc:"Only versions older than this"`
		Limit  int `query:"limit" minimum:"1" maximum:"500" default:"100"`
	}
	versionsOutput struct{ Body []TemplateVersion }
	tagsOutput     struct{ Body []kiln.Tag }
	setTagInput    struct {
		TagPath
		Body *SetTagRequest
	}
	tagOutput     struct{ Body kiln.Tag }
	rollbackInput struct {
		TemplateName
		Body *RollbackRequest
	}
	rollbackOutput struct{ Body RollbackResult }
)

// SetTagRequest is the optional body of a request for a tag.
type SetTagRequest struct {
	Version int `json:"version,omitempty" minimum:"0" doc:"Default: the one that the name pins, else the current one"`
}

// RollbackRequest is the optional body of a rollback.
type RollbackRequest struct {
	To int `json:"to,omitempty" minimum:"0" doc:"Version; default the newest ready one before the current"`
}

// RollbackResult says what a rollback did.
type RollbackResult struct {
	Name string `json:"name"`
	From int    `json:"from" doc:"Version that was current before"`
	To   int    `json:"to" doc:"Version that is current now"`
}

func (s *Server) registerVersions() {
	tags := []string{"templates"}
	register(s, route{Operation: huma.Operation{
		OperationID: "listTemplates", Method: http.MethodGet, Path: "/v1/templates", Tags: tags,
		Summary: "List built-in and own templates by name",
	}}, s.listTemplates)
	register(s, route{Operation: huma.Operation{
		OperationID: "listVersions", Method: http.MethodGet, Path: "/v1/versions/{name}", Tags: tags,
		Summary: "List the versions of a template, newest first",
	}}, s.listVersions)
	register(s, route{Operation: huma.Operation{
		OperationID: "rollbackTemplate", Method: http.MethodPost, Path: "/v1/templates/{name}/rollback", Tags: tags,
		Summary: "Start sandboxes from another ready version; running ones keep theirs",
	}}, s.rollback)
	register(s, route{Operation: huma.Operation{
		OperationID: "listTags", Method: http.MethodGet, Path: "/v1/tags/{name}", Tags: tags,
		Summary: "List the tags of a template",
	}}, s.listTags)
	register(s, route{Operation: huma.Operation{
		OperationID: "setTag", Method: http.MethodPut, Path: "/v1/tags/{name}/{tag}", Tags: tags,
		Summary: "Give a version a tag, or move it there",
	}}, s.setTag)
	register(s, route{Operation: huma.Operation{
		OperationID: "removeTag", Method: http.MethodDelete, Path: "/v1/tags/{name}/{tag}", Tags: tags,
		Summary: "Remove a tag; the version is collected when nothing else refers to it", DefaultStatus: http.StatusNoContent,
	}}, s.removeTag)
}

func (s *Server) listTemplates(ctx context.Context, in *listTemplatesInput) (*templatesOutput, error) {
	q := TemplateQuery{Status: kiln.VersionStatus(in.Status), Prefix: in.Prefix, Tag: in.Tag, After: in.After, Limit: in.Limit}
	if in.BuiltIn != "" {
		builtIn := in.BuiltIn == "true"
		q.BuiltIn = &builtIn
	}
	list, next, err := s.opts.Versions.ListPage(ctx, orgOf(ctx), q)
	if err != nil {
		return nil, err
	}
	out := &templatesOutput{NextToken: next, Body: make([]Template, 0, len(list))}
	for _, t := range list {
		out.Body = append(out.Body, templateOf(s.opts.Sizes, t))
	}
	return out, nil
}

func (s *Server) listVersions(ctx context.Context, in *versionsInput) (*versionsOutput, error) {
	t, versions, err := s.opts.Versions.Versions(ctx, orgOf(ctx), in.Name, in.Before, in.Limit)
	if err != nil {
		return nil, err
	}
	tags, err := s.opts.Versions.Tags(ctx, orgOf(ctx), t.ID)
	if err != nil {
		return nil, err
	}
	names := map[int][]string{}
	for _, tag := range tags {
		names[tag.Version] = append(names[tag.Version], tag.Name)
	}
	out := &versionsOutput{Body: make([]TemplateVersion, 0, len(versions))}
	for _, v := range versions {
		out.Body = append(out.Body, TemplateVersion{Version: v, Current: v.Number == t.Current, Tags: append([]string{}, names[v.Number]...)})
	}
	return out, nil
}

func (s *Server) listTags(ctx context.Context, in *TemplateName) (*tagsOutput, error) {
	tags, err := s.opts.Versions.Tags(ctx, orgOf(ctx), in.Name)
	if err != nil {
		return nil, err
	}
	return &tagsOutput{Body: append([]kiln.Tag{}, tags...)}, nil
}

func (s *Server) setTag(ctx context.Context, in *setTagInput) (*tagOutput, error) {
	number := 0
	if in.Body != nil {
		number = in.Body.Version
	}
	number, err := s.opts.Versions.SetTag(ctx, orgOf(ctx), in.Name, number, in.Tag)
	if err != nil {
		return nil, err
	}
	note(ctx, "version", strconv.Itoa(number))
	return &tagOutput{Body: kiln.Tag{Name: in.Tag, Version: number, CreatedAt: time.Now().UTC()}}, nil
}

func (s *Server) removeTag(ctx context.Context, in *TagPath) (*struct{}, error) {
	return nil, s.opts.Versions.RemoveTag(ctx, orgOf(ctx), in.Name, in.Tag)
}

func (s *Server) rollback(ctx context.Context, in *rollbackInput) (*rollbackOutput, error) {
	to := 0
	if in.Body != nil {
		to = in.Body.To
	}
	t, from, err := s.opts.Versions.Rollback(ctx, orgOf(ctx), in.Name, to)
	if err != nil {
		return nil, err
	}
	note(ctx, "from", strconv.Itoa(from))
	note(ctx, "to", strconv.Itoa(t.Current))
	return &rollbackOutput{Body: RollbackResult{Name: t.Name, From: from, To: t.Current}}, nil
}
