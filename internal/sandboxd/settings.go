package sandboxd

import (
	"maps"
	"net/http"
	"sync"
	"time"
)

// state is what POST /init has set. Its maps are never changed, only replaced.
type state struct {
	imageEnv map[string]string // of the template
	env      map[string]string // of the sandbox; wins over imageEnv
	user     string            // notation of an image's USER; never empty
	workdir  string            // "" means the user's home
	token    string            // "" means that none is asked for
	lastInit time.Time         // the latest timestamp that init has brought
}

// globalEnv is the environment that every command gets.
func (s state) globalEnv() map[string]string {
	env := maps.Clone(s.imageEnv)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, s.env)
	return env
}

// settings hold the current state.
type settings struct {
	mu sync.RWMutex
	s  state
}

func (s *settings) get() state {
	s.mu.RLock()
	defer s.mu.RUnlock()
	current := s.s
	if current.user == "" {
		current.user = "root"
	}
	return current
}

func (s *settings) set(next state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.s = next
}

func (s *Server) getEnv(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, s.settings.get().globalEnv())
	return nil
}
