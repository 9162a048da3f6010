package sandboxd

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
)

// maxInitBody bounds POST /init in bytes.
const maxInitBody = 4 << 20

// initRequest is the body of POST /init. Absent fields change nothing. The first group is
// E2B's; the second is the host's own.
type initRequest struct {
	// EnvVars replaces the environment of the sandbox.
	EnvVars *map[string]string `json:"envVars"`
	// AccessToken is set by the first request that brings one, and asked of later ones.
	AccessToken string `json:"accessToken"`
	// Timestamp is the host's time. A request older than the last one is ignored.
	Timestamp      *time.Time `json:"timestamp"`
	DefaultUser    *string    `json:"defaultUser"`
	DefaultWorkdir *string    `json:"defaultWorkdir"`

	// ImageEnv replaces the environment of the template, which EnvVars is laid over.
	ImageEnv *map[string]string `json:"imageEnv"`
	// Folders are made, as root's, where they are missing.
	Folders []string `json:"folders"`
	// Entropy, at least 32 bytes, makes the random state this clone's own.
	Entropy []byte `json:"entropy"`
	// Hostname also asks for the rest of a machine's identity: machine ID, boot ID and SSH
	// host keys are made anew.
	Hostname string `json:"hostname"`
}

// minEntropy is what a request must bring in bytes if it brings any: 256 bits.
const minEntropy = 32

// postInit gives the machine its identity and defaults. Random state comes first, because
// everything that is generated after it depends on it.
func (s *Server) postInit(w http.ResponseWriter, r *http.Request) error {
	var request initRequest
	body := http.MaxBytesReader(w, r.Body, maxInitBody)
	if err := json.NewDecoder(body).Decode(&request); err != nil {
		return errorf(connect.CodeInvalidArgument, "init: %w", err)
	}
	s.initMu.Lock()
	defer s.initMu.Unlock()
	current := s.settings.get()
	if !s.hasToken(r) && !sameSecret(request.AccessToken, current.token) {
		return errorf(connect.CodeUnauthenticated, "init: the access token is missing or wrong")
	}
	if request.Timestamp != nil && request.Timestamp.Before(current.lastInit) {
		s.log.Info("init ignored: it is older than the last one", "timestamp", request.Timestamp)
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	next, err := s.applied(current, request)
	if err != nil {
		return err
	}
	for _, dir := range request.Folders {
		if err := makeDirs(filepath.Join(s.root, dir), account{}); err != nil {
			return errorf(connect.CodeInvalidArgument, "init: %w", err)
		}
	}
	if err := s.takeIdentity(request); err != nil {
		return errorf(connect.CodeInternal, "init: %w", err)
	}
	if request.EnvVars != nil {
		if err := s.publishEnvironment(next.env); err != nil {
			return errorf(connect.CodeInternal, "init: %w", err)
		}
	}
	s.identified = s.identified || request.Hostname != ""
	s.settings.set(next)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// applied returns the state that request asks for.
func (s *Server) applied(current state, request initRequest) (state, error) {
	next := current
	if request.EnvVars != nil {
		next.env = *request.EnvVars
	}
	if request.ImageEnv != nil {
		next.imageEnv = *request.ImageEnv
	}
	if request.DefaultUser != nil {
		next.user = *request.DefaultUser
		if _, err := s.accountNamed(next.user); err != nil {
			return state{}, errorf(connect.CodeInvalidArgument, "init: the default %w", message(err))
		}
	}
	if request.DefaultWorkdir != nil {
		next.workdir = *request.DefaultWorkdir
	}
	if request.AccessToken != "" {
		next.token = request.AccessToken
	}
	if request.Timestamp != nil {
		next.lastInit = *request.Timestamp
	}
	if len(request.Entropy) > 0 && len(request.Entropy) < minEntropy {
		return state{}, errorf(connect.CodeInvalidArgument, "init: %d bytes of entropy are too few, want %d",
			len(request.Entropy), minEntropy)
	}
	return next, nil
}

func (s *Server) takeIdentity(request initRequest) error {
	if len(request.Entropy) > 0 {
		if err := s.system.AddEntropy(request.Entropy); err != nil {
			return fmt.Errorf("random state: %w", err)
		}
	}
	if request.Timestamp != nil {
		if err := s.system.SetClock(*request.Timestamp); err != nil {
			return fmt.Errorf("clock: %w", err)
		}
	}
	if request.Hostname == "" {
		return nil
	}
	return s.becomeMachine(request.Hostname, uuid(), uuid())
}
