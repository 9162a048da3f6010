package sandboxd

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/kilnvm/kiln/internal/sandboxd/imagefile"
)

// environmentFile holds the environment that a sandbox was given, in the form of
// /proc/PID/environ, for root to read: a service that was started before the snapshot learns
// from it what is told to commands by their own environment. Without variables there is none.
const environmentFile = "run/kiln/environment"

// publishEnvironment writes environmentFile.
func (s *Server) publishEnvironment(env map[string]string) error {
	if len(env) == 0 {
		return nil
	}
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(env)) {
		fmt.Fprintf(&text, "%s=%s\x00", name, env[name])
	}
	if err := imagefile.Write(filepath.Join(s.root, environmentFile), text.Bytes(), 0o600); err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	return nil
}
