package sandboxd

import (
	"net/http"

	"connectrpc.com/connect"

	"github.com/kilnvm/kiln/internal/sandboxd/rootarchive"
)

// getRoot answers with the whole file system as a tar archive, for a template. An archive
// that breaks off has no proper end of the answer.
func (s *Server) getRoot(w http.ResponseWriter, r *http.Request) error {
	mounts, err := rootarchive.Mounts(s.root)
	if err != nil {
		return errorf(connect.CodeInternal, "capture: %w", err)
	}
	s.system.Sync()
	w.Header().Set("Content-Type", "application/x-tar")
	if err := rootarchive.Write(r.Context(), w, s.root, mounts); err != nil {
		s.log.Warn("capture broke off", "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}
