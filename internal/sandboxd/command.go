package sandboxd

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
)

// fallbackPath is where commands are looked for when the daemon itself has no PATH, which
// is so for PID 1.
const fallbackPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is what a command of that account sees: the account's own variables, then
// the template's and the sandbox's, then the request's. Later ones win.
func (s *Server) environment(of account, request map[string]string) map[string]string {
	env := map[string]string{"PATH": fallbackPath, "HOME": of.home, "USER": of.name, "LOGNAME": of.name}
	if path := os.Getenv("PATH"); path != "" {
		env["PATH"] = path
	}
	for _, layer := range []map[string]string{s.settings.get().globalEnv(), request} {
		for name, value := range layer {
			env[name] = value
		}
	}
	return env
}

// environList returns env as a process gets it.
func environList(env map[string]string) ([]string, error) {
	list := make([]string, 0, len(env))
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return nil, errorf(connect.CodeInvalidArgument, "environment variable %q is not allowed", name)
		}
		list = append(list, name+"="+value)
	}
	return list, nil
}

// startDir checks the directory that a command is to start in. The home of an account may
// be missing from an image; a directory that was asked for may not.
func (s *Server) startDir(requested string, of account) (string, error) {
	dir, err := s.resolve(requested, of)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return dir, nil
	case err == nil:
		return "", errorf(connect.CodeInvalidArgument, "working directory %q is not a directory", dir)
	case errors.Is(err, fs.ErrNotExist) && requested == "" && dir == of.home:
		return "/", nil
	}
	return "", errorf(connect.CodeInvalidArgument, "working directory %q: %w", dir, errors.Unwrap(err))
}

// findCommand returns the path of the program to run: name itself if it has a slash, else
// the first match in path, a list of directories like PATH.
func findCommand(name, dir, path string) (string, error) {
	if name == "" {
		return "", errorf(connect.CodeInvalidArgument, "no command given")
	}
	if strings.Contains(name, "/") {
		candidate := name
		if !filepath.IsAbs(candidate) {
			candidate = filepath.Join(dir, candidate)
		}
		if err := executable(candidate); err != nil {
			return "", startError(name, err)
		}
		return candidate, nil
	}
	err := error(unix.ENOENT)
	for _, folder := range filepath.SplitList(path) {
		if !filepath.IsAbs(folder) { // "" means the current directory
			folder = filepath.Join(dir, folder)
		}
		candidate := filepath.Join(folder, name)
		switch found := executable(candidate); {
		case found == nil:
			return candidate, nil
		case errors.Is(found, unix.EACCES):
			err = found
		}
	}
	return "", startError(name, err)
}

// executable tells whether path is a program to anybody. Whether the account may run it is
// for the kernel to say.
func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case info.IsDir() || info.Mode().Perm()&0o111 == 0:
		return unix.EACCES
	}
	return nil
}

// startError says why the command did not start. A shell would exit with 127 where the
// code is not_found, and with 126 where it is permission_denied or failed_precondition.
func startError(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
		return errorf(connect.CodeNotFound, "command %q was not found in the sandbox", name)
	case errors.Is(err, fs.ErrPermission):
		return errorf(connect.CodePermissionDenied, "command %q cannot be executed: permission denied", name)
	case errors.Is(err, unix.ENOEXEC):
		return errorf(connect.CodeFailedPrecondition,
			"command %q cannot be executed: it is neither a program for this machine nor a script with a #! line", name)
	case errors.Is(err, unix.E2BIG):
		return errorf(connect.CodeInvalidArgument, "command %q: arguments and environment are too long", name)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		return errorf(connect.CodeResourceExhausted, "command %q: no process can be started: %w", name, err)
	}
	return errorf(connect.CodeInternal, "command %q: %w", name, err)
}
