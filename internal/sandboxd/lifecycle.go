package sandboxd

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"connectrpc.com/connect"
)

// endGrace is how long commands have to end by themselves at a shutdown.
const endGrace = 5 * time.Second

// quiesceRequest is the optional body of POST /quiesce.
type quiesceRequest struct {
	// DropCaches also frees the page cache: the snapshot becomes smaller, and what a clone
	// reads first becomes slower.
	DropCaches bool `json:"dropCaches"`
}

// postQuiesce makes the machine fit for a capture: data is on the disks, no connection to
// the outside is open. Otherwise it answers 409 with the list of connections.
func (s *Server) postQuiesce(w http.ResponseWriter, r *http.Request) error {
	var request quiesceRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil && !errors.Is(err, io.EOF) {
		return errorf(connect.CodeInvalidArgument, "quiesce: %w", err)
	}
	open, err := s.system.Connections()
	if err != nil {
		return errorf(connect.CodeInternal, "quiesce: connections: %w", err)
	}
	if len(open) > 0 {
		return &openConnectionsError{open}
	}
	s.system.Sync()
	if err := s.preparePlates(); err != nil {
		return errorf(connect.CodeInternal, "quiesce: %w", err)
	}
	if request.DropCaches {
		if err := s.system.DropCaches(); err != nil {
			return errorf(connect.CodeInternal, "quiesce: drop caches: %w", err)
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// postShutdown ends the commands, writes the disks and answers; then the machine goes off,
// which is when processes that nobody started through the daemon end.
func (s *Server) postShutdown(w http.ResponseWriter, r *http.Request) error {
	// Once begun it is carried through, whether or not the host still listens.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), endGrace)
	defer cancel()
	s.processes.endAll(ctx)
	s.system.Sync()
	w.Header().Set("Connection", "close")
	w.WriteHeader(http.StatusNoContent)
	_ = http.NewResponseController(w).Flush()
	if s.powerOff != nil {
		s.shutdown.Do(func() { go s.powerOff() })
	}
	return nil
}
