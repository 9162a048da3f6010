package sandboxd

import (
	"errors"

	"github.com/kilnvm/kiln/internal/guestapi/identity"
)

// Identify does what POST /init does for a restored clone, as package identity describes.
// Nothing but the host's own channel may lead to it. It is written for the least code to
// be executed: no HTTP, JSON or reflection.
func (s *Server) Identify(request []byte) (reply []byte) {
	if err := s.identify(request); err != nil {
		return []byte(err.Error())
	}
	return nil
}

func (s *Server) identify(request []byte) error {
	r, err := identity.Unmarshal(request)
	if err != nil {
		return err
	}
	if len(r.Entropy) == 0 && len(r.Hostname) == 0 && len(r.AccessToken) == 0 {
		return s.system.SetClock(r.Time)
	}
	s.initMu.Lock()
	defer s.initMu.Unlock()
	next := s.settings.get()
	if !sameSecret(string(r.AccessToken), next.token) && next.token != "" {
		return errors.New("the access token is wrong")
	}
	if len(r.Entropy) < minEntropy {
		return errors.New("too few bytes of entropy")
	}
	if next.env, err = r.Pairs(); err != nil {
		return err
	}
	if len(r.AccessToken) > 0 {
		next.token = string(r.AccessToken)
	}
	if err := s.system.AddEntropy(r.Entropy); err != nil {
		return err
	}
	if !r.Time.IsZero() {
		next.lastInit = r.Time
		if err := s.system.SetClock(r.Time); err != nil {
			return err
		}
	}
	if err := s.becomeMachine(string(r.Hostname), asUUID(r.MachineID), asUUID(r.BootID)); err != nil {
		return err
	}
	if err := s.publishEnvironment(next.env); err != nil {
		return err
	}
	s.identified = true
	s.settings.set(next)
	return nil
}
