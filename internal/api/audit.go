package api

import (
	"context"
	"fmt"
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

// use matches requests that use a sandbox, as its owner does all the time: commands, files,
// and letting it live on. They are not changes of what the audit log is about.
var use = regexp.MustCompile(`/sandboxes/[^/]+/(exec|fs|files|pty|run-code|keepalive)(/|$)`)

// notes are what a handler tells about the change that it makes.
type notes struct {
	mu  sync.Mutex
	org string
	// settled says that made tells whether something was changed, whatever was answered.
	settled, made bool
	detail        map[string]string
}

type notesKey struct{}

// note adds a word to the event that will be recorded about the request, if any.
func note(ctx context.Context, key, value string) {
	if n, ok := ctx.Value(notesKey{}).(*notes); ok {
		n.mu.Lock()
		defer n.mu.Unlock()
		if value != "" {
			n.detail[key] = value
		}
	}
}

// changed says whether the request has changed something, where its success does not tell.
func changed(ctx context.Context, made bool) {
	if n, ok := ctx.Value(notesKey{}).(*notes); ok {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.settled, n.made = true, made
	}
}

// noteIf is note for what a request may leave out.
func noteIf[T any](ctx context.Context, key string, value *T) {
	if value != nil {
		note(ctx, key, fmt.Sprint(*value))
	}
}

// join writes a list as a note has it.
func join[T any](list []T) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, ",")
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
	if op.Method == http.MethodGet || op.Method == http.MethodHead || use.MatchString(op.Path) {
		return handler
	}
	return func(ctx context.Context, in *I) (*O, error) {
		n := &notes{detail: map[string]string{}}
		out, err := handler(context.WithValue(ctx, notesKey{}, n), in)
		if s.opts.Access != nil && n.changed(err) {
			s.record(ctx, op.OperationID, n)
		}
		return out, err
	}
}

// changed reports whether a request that was answered with err has changed something.
func (n *notes) changed(err error) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.settled {
		return n.made
	}
	return err == nil
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
