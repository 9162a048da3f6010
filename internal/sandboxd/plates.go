package sandboxd

import (
	"path/filepath"
	"strings"

	"github.com/kilnvm/kiln/internal/sandboxd/imagefile"
)

// plates are the files that carry a machine's names, blank and ready to be written on: a
// clone that had to open, copy and write them would spend a multiple of the time on it.
// The zero value means that nothing is ready, and every name is written the long way.
type plates struct {
	hostname, hosts, machineID *imagefile.Mapping
	noHostKeys, noDBus         bool // there are none to replace
}

// blankName stands where a clone's name will be. It is as long as a sandbox's ID; a name
// of another length is written the long way.
var blankName = strings.Repeat("x", 21)

// preparePlates makes the machine ready to become another one. One that has its identity
// already keeps it.
func (s *Server) preparePlates() error {
	s.initMu.Lock()
	defer s.initMu.Unlock()
	s.plates = plates{}
	if s.identified {
		return nil
	}
	if err := s.becomeMachine(blankName, [16]byte{}, [16]byte{}); err != nil {
		return err
	}
	if err := s.system.Prepare(); err != nil {
		return err
	}
	var p plates
	for _, f := range []struct {
		name string
		to   **imagefile.Mapping
	}{{"etc/hostname", &p.hostname}, {"etc/hosts", &p.hosts}, {machineIDFile, &p.machineID}} {
		var err error
		if *f.to, err = imagefile.Map(filepath.Join(s.root, f.name)); err != nil {
			return err
		}
	}
	keys, err := filepath.Glob(filepath.Join(s.root, hostKeys))
	p.noHostKeys, p.noDBus = err == nil && len(keys) == 0, !isRegular(filepath.Join(s.root, dbusIDFile))
	s.plates = p
	return nil
}
