package api

import (
	"context"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// Pool is the warm pool as the API needs it.
type Pool interface {
	// Warm returns the slots of an organisation's templates, and for the operator those of
	// built-in ones, whose demand is everybody's.
	Warm(ctx context.Context, who kiln.Principal) ([]kiln.WarmShelf, error)
	// SetWarm has slots kept of a template's promoted version; an empty size is the
	// template's default. Only the operator has them kept of built-in templates.
	SetWarm(ctx context.Context, who kiln.Principal, template, size string, slots int) (kiln.WarmTarget, error)
}

// MaxWarmSlots is the most slots that may be asked for of one template at one size.
const MaxWarmSlots = 1000

// WarmTargetChange says how many slots to keep.
type WarmTargetChange struct {
	Size  string `json:"size,omitempty" doc:"VM size; default the template's"`
	Slots int    `json:"slots" minimum:"0" maximum:"1000" doc:"Slots that are kept whatever the demand; they take effect in the background"`
}

type (
	poolOutput  struct{ Body []kiln.WarmShelf }
	targetInput struct {
		Name string `path:"name" doc:"Name or ID of a template" example:"my-ml"`
		Body WarmTargetChange
	}
	targetOutput struct{ Body kiln.WarmTarget }
)

func (s *Server) registerPool() {
	tags := []string{"pool"}
	register(s, route{Operation: huma.Operation{
		OperationID: "listWarmSlots", Method: http.MethodGet, Path: "/v1/pool", Tags: tags,
		Summary: "List the warm slots of own templates, and for the operator of built-in ones: paused clones that wait to be claimed",
	}}, func(ctx context.Context, _ *struct{}) (*poolOutput, error) {
		list, err := s.opts.Pool.Warm(ctx, callerOf(ctx).Principal)
		return &poolOutput{Body: append([]kiln.WarmShelf{}, list...)}, err
	})
	register(s, route{Operation: huma.Operation{
		OperationID: "setWarmSlots", Method: http.MethodPut, Path: "/v1/pool/{name}", Tags: tags,
		Summary: "Say how many warm slots are kept of an own template at a size, or as the operator of a built-in one",
	}}, func(ctx context.Context, in *targetInput) (*targetOutput, error) {
		t, err := s.opts.Pool.SetWarm(ctx, callerOf(ctx).Principal, in.Name, in.Body.Size, in.Body.Slots)
		note(ctx, "size", t.Size)
		note(ctx, "slots", strconv.Itoa(t.Slots))
		return &targetOutput{Body: t}, err
	})
}
