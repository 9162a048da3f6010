package sandboxd

import (
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
)

// resolve makes path absolute: "" is the default working directory, "~" the account's
// home, and a relative path starts at that home.
func (s *Server) resolve(path string, of account) (string, error) {
	switch {
	case strings.ContainsRune(path, 0):
		return "", errorf(connect.CodeInvalidArgument, "path %q contains a NUL byte", path)
	case path == "":
		return s.workdir(of), nil
	case path == "~":
		return of.home, nil
	case strings.HasPrefix(path, "~/"):
		return filepath.Join(of.home, path[2:]), nil
	case filepath.IsAbs(path):
		return filepath.Clean(path), nil
	}
	return filepath.Join(of.home, path), nil
}

// workdir is where a command of that account starts when its request does not say.
func (s *Server) workdir(of account) string {
	dir := s.settings.get().workdir
	switch {
	case dir == "" || dir == "~":
		return of.home
	case filepath.IsAbs(dir):
		return filepath.Clean(dir)
	}
	return filepath.Join(of.home, strings.TrimPrefix(dir, "~/"))
}
