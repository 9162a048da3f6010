package api

import (
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// LocalDomain is the parent of sandbox host names on a server that has no domain of its
// own: names below it mean this machine everywhere (RFC 6761), without any DNS.
const LocalDomain = "localhost"

// Port says how a service in a sandbox is reached, through the server's own address.
type Port struct {
	Port int `json:"port"`
	// Host is the name under which the proxy knows it, to be used with the server's scheme
	// and port.
	Host string `json:"host"`
	// Headers do the same for clients that cannot choose the host.
	Headers map[string]string `json:"headers"`
	// Path does the same for clients that can choose neither; what is below it is the
	// service's. There the owner's token is needed.
	Path string `json:"path"`
}

type (
	portInput struct {
		SandboxID
		Port int `path:"port" minimum:"1" maximum:"65535"`
	}
	portOutput struct{ Body Port }
)

func (s *Server) registerPorts() {
	register(s, route{Operation: huma.Operation{
		OperationID: "getPort", Method: http.MethodGet, Path: "/v1/sandboxes/{id}/ports/{port}", Tags: []string{"network"},
		Summary: "Show how a service on a port of a running sandbox is reached",
	}}, s.getPort)
}

func (s *Server) getPort(ctx context.Context, in *portInput) (*portOutput, error) {
	if _, err := s.opts.Sandboxes.Guest(ctx, orgOf(ctx), in.ID); err != nil {
		return nil, err
	}
	domain := s.opts.Domain
	if domain == "" {
		domain = LocalDomain
	}
	return &portOutput{Body: Port{
		Port: in.Port, Host: fmt.Sprintf("%d-%s.%s", in.Port, in.ID, domain),
		Headers: map[string]string{"E2b-Sandbox-Id": in.ID, "E2b-Sandbox-Port": fmt.Sprint(in.Port)},
		Path:    fmt.Sprintf("/v1/sandboxes/%s/ports/%d/", in.ID, in.Port),
	}}, nil
}
