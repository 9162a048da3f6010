package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// Diffs compares versions of templates as the API needs it.
type Diffs interface {
	// Diff compares the root filesystems of what two references mean to the organisation:
	// pinned versions, else the promoted ones.
	Diff(ctx context.Context, orgID string, a, b kiln.TemplateRef) (*RootfsDiff, error)
}

// RootfsDiff is how the root filesystem of version B differs from that of version A.
type RootfsDiff struct {
	A           RootfsOf           `json:"a"`
	B           RootfsOf           `json:"b"`
	Differences []RootfsDifference `json:"differences" nullable:"false" doc:"In the order of paths"`
}

// RootfsOf names the root filesystem of one version.
type RootfsOf struct {
	Template string      `json:"template" example:"my-ml"`
	Version  int         `json:"version"`
	Digest   kiln.Digest `json:"rootfs_digest"`
}

// RootfsDifference is one thing in which two root filesystems differ.
type RootfsDifference struct {
	Path  string `json:"path" doc:"Quoted as in Go when it is not printable text"`
	Field string `json:"field" doc:"entry, when one side has no such path; type, mode, owner, time, target, hardlink, device, size, data, content or the name of an attribute"`
	A     string `json:"a"`
	B     string `json:"b"`
}

type (
	diffInput struct {
		A string `query:"a" required:"true" doc:"ID or name, optionally pinned: name:tag or name@3" example:"my-ml@1"`
		B string `query:"b" required:"true" doc:"What to compare it with" example:"my-ml@2"`
	}
	diffOutput struct{ Body RootfsDiff }
)

func (s *Server) registerDiff() {
	register(s, route{Operation: huma.Operation{
		OperationID: "diffTemplates", Method: http.MethodGet, Path: "/v1/rootfs/diff", Tags: []string{"templates"},
		Summary: "Compare the root filesystems of two versions, entry by entry",
	}, unbounded: true}, s.diffTemplates)
}

func (s *Server) diffTemplates(ctx context.Context, in *diffInput) (*diffOutput, error) {
	var refs [2]kiln.TemplateRef
	for i, name := range []string{in.A, in.B} {
		var err error
		if refs[i], err = kiln.ParseTemplateRef(name); err != nil {
			return nil, err
		}
	}
	diff, err := s.opts.Diffs.Diff(ctx, orgOf(ctx), refs[0], refs[1])
	if err != nil {
		return nil, err
	}
	return &diffOutput{Body: *diff}, nil
}
