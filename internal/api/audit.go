package api

import (
	"context"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// auditTimeout bounds the writing of one event after the change has been made.
const auditTimeout = 10 * time.Second

// inside matches requests that change what is inside a sandbox, as its owner does all the
// time: commands and files. They are not changes of what the audit log is about.
var inside = regexp.MustCompile(`/sandboxes/[^/]+/(exec|fs|files|pty|run-code)(/|$)`)

// notes are what a handler tells about the change that it makes.
type notes struct {
	mu     sync.Mutex
	org    string
	detail map[string]string
}

type notesKey struct{}

// note adds a word to the event that will be recorded about the request, if any.
func note(ctx context.Context, key, value string) {
	if n, ok := ctx.Value(notesKey{}).(*notes); ok {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.detail[key] = value
	}
}

// concerns says that a change is one of another organisation's things.
func concerns(ctx context.Context, orgID string) {
	if n, ok := ctx.Value(notesKey{}).(*notes); ok {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.org = orgID
	}
}

// audited runs a handler and records what it changed.
func audited[I, O any](s *Server, op huma.Operation, handler func(context.Context, *I) (*O, error)) func(context.Context, *I) (*O, error) {
	if op.Method == http.MethodGet || op.Method == http.MethodHead || inside.MatchString(op.Path) {
		return handler
	}
	return func(ctx context.Context, in *I) (*O, error) {
		n := &notes{detail: map[string]string{}}
		out, err := handler(context.WithValue(ctx, notesKey{}, n), in)
		if err == nil && s.opts.Access != nil {
			s.record(ctx, op.OperationID, n)
		}
		return out, err
	}
}

// record stores an event. The change has been made, so its failure is the log's alone.
func (s *Server) record(ctx context.Context, action string, n *notes) {
	n.mu.Lock()
	defer n.mu.Unlock()
	who := callerOf(ctx)
	e := kiln.AuditEvent{
		ID: kiln.NewID(kiln.AuditIDPrefix), OrgID: n.org, Time: time.Now().UTC(), TokenID: who.TokenID, TokenName: who.TokenName,
		Address: who.address, Action: action, Target: strings.TrimPrefix(who.path, "/v1"), Detail: n.detail,
	}
	if e.OrgID == "" {
		e.OrgID = who.OrgID
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	if err := s.opts.Access.RecordAudit(ctx, e); err != nil {
		s.log.ErrorContext(ctx, "audit log", "event", e, "err", err)
	}
}
