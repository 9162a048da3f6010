package api

import (
	"context"
	"io"
	"strings"
	"time"
)

// Guest is the daemon inside one sandbox as the API uses it. Paths are the guest's;
// relative ones start at the user's home. What does not exist is a *kiln.Error with
// code not_found, what the guest refuses one with code invalid.
type Guest interface {
	// Run runs a command to its end. When ctx ends first the command is killed and the
	// error is ctx's. A command that cannot be started is an Exit with code 127 (not
	// found) or 126, as with a shell, and the reason on Stderr.
	Run(ctx context.Context, cmd Command) (Exit, error)
	// ReadFile opens a regular file.
	ReadFile(ctx context.Context, path string) (io.ReadCloser, error)
	// WriteFile creates or replaces a file, and the folders above it.
	WriteFile(ctx context.Context, path string, content io.Reader) error
	Stat(ctx context.Context, path string) (FileInfo, error)
	List(ctx context.Context, path string) ([]FileInfo, error)
	// Remove removes a file or a folder with all that is in it. A missing path is fine.
	Remove(ctx context.Context, path string) error
}

// Command is a command for a guest.
type Command struct {
	Args   []string
	Env    map[string]string
	Dir    string // "" means the template's
	User   string // "" means the template's
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// Exit is how a command ended.
type Exit struct {
	// Code is the exit code, 128 plus the signal's number for a command that a signal
	// ended.
	Code int
	// Signal names that signal, such as "SIGKILL".
	Signal string
}

// FileInfo describes an entry of the guest's file system.
type FileInfo struct {
	Name    string
	Path    string
	Dir     bool
	Size    int64
	Mode    uint32 // permission bits with setuid, setgid and sticky
	ModTime time.Time
	Symlink string // target
}

// validEnv reports whether a process can have this variable.
func validEnv(name, value string) bool {
	return name != "" && !strings.ContainsAny(name, "=\x00") && !strings.Contains(value, "\x00")
}
