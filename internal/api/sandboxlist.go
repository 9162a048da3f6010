package api

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// maxSandboxPage bounds one page of a list.
const maxSandboxPage = 1000

type (
	listSandboxesInput struct {
		Status    string   `query:"status" doc:"Comma-separated; default every one that lives"`
		Template  string   `query:"template" doc:"ID or name"`
		Metadata  []string `query:"metadata,explode" doc:"KEY=VALUE; repeat it for several, all of which must be equal"`
		Limit     int      `query:"limit" minimum:"1" maximum:"1000" default:"1000"`
		NextToken string   `query:"next_token" doc:"X-Next-Token of the page before"`
	}
	listSandboxesOutput struct {
		NextToken string `header:"X-Next-Token" doc:"Absent on the last page"`
		Body      []Sandbox
	}
)

func (s *Server) registerSandboxList() {
	register(s, route{Operation: huma.Operation{
		OperationID: "listSandboxes", Method: http.MethodGet, Path: "/v1/sandboxes", Tags: []string{"sandboxes"},
		Summary: "List sandboxes, oldest first",
	}}, s.listSandboxes)
}

func (in *listSandboxesInput) filter() (kiln.SandboxFilter, error) {
	f := kiln.SandboxFilter{Template: in.Template, Limit: in.Limit}
	for name := range strings.SplitSeq(in.Status, ",") {
		if in.Status == "" {
			break
		}
		status, err := kiln.ParseSandboxStatus(strings.TrimSpace(name))
		if err != nil {
			return f, err
		}
		f.Statuses = append(f.Statuses, status)
	}
	for _, pair := range in.Metadata {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return f, kiln.Errorf(kiln.CodeInvalid, "metadata %q is not KEY=VALUE", pair)
		}
		if f.Metadata == nil {
			f.Metadata = map[string]string{}
		}
		f.Metadata[name] = value
	}
	var err error
	f.After, err = kiln.ParseSandboxCursor(in.NextToken)
	return f, err
}

func (s *Server) listSandboxes(ctx context.Context, in *listSandboxesInput) (*listSandboxesOutput, error) {
	f, err := in.filter()
	if err != nil {
		return nil, err
	}
	f.OrgID = orgOf(ctx)
	f.Limit = min(f.Limit, maxSandboxPage) + 1 // one more tells whether there is another page
	list, err := s.opts.Sandboxes.List(ctx, f)
	if err != nil {
		return nil, err
	}
	out := &listSandboxesOutput{Body: make([]Sandbox, 0, len(list))}
	if len(list) == f.Limit {
		list = list[:f.Limit-1]
		out.NextToken = list[len(list)-1].Cursor().String()
	}
	for _, sb := range list {
		out.Body = append(out.Body, sandboxOf(sb))
	}
	return out, nil
}
