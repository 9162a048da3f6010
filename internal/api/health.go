package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// Health is the answer of a server that runs.
type Health struct {
	Status  string `json:"status" doc:"Always ok"`
	Version string `json:"version"`
}

type healthOutput struct{ Body Health }

func (s *Server) registerHealth() {
	answer := &healthOutput{Body: Health{Status: "ok", Version: s.opts.Version}}
	open := []map[string][]string{}
	register(s, route{Operation: huma.Operation{
		OperationID: "healthz", Method: http.MethodGet, Path: "/healthz", Tags: []string{"server"}, Security: open,
		Summary: "Whether the server runs",
	}}, func(context.Context, *struct{}) (*healthOutput, error) { return answer, nil })
	register(s, route{Operation: huma.Operation{
		OperationID: "readyz", Method: http.MethodGet, Path: "/readyz", Tags: []string{"server"}, Security: open,
		Summary: "Whether the server can build templates and start sandboxes; 503 says why not",
	}}, func(context.Context, *struct{}) (*healthOutput, error) {
		if s.opts.Ready != nil {
			if err := s.opts.Ready(); err != nil {
				if kiln.CodeOf(err) == kiln.CodeInternal {
					return nil, kiln.Errorf(kiln.CodeUnavailable, "not ready: %w", err)
				}
				return nil, err
			}
		}
		return answer, nil
	})
}
