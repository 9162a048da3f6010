package api

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/kilnvm/kiln"
	"github.com/kilnvm/kiln/internal/guest"
)

// Guest is a sandbox's daemon as the API uses it. *guest.Client is one.
type Guest interface {
	Run(ctx context.Context, cmd guest.Command) (guest.Exit, error)
	ReadFile(ctx context.Context, path string) (io.ReadCloser, error)
	WriteFile(ctx context.Context, path string, content io.Reader) error
	Stat(ctx context.Context, path string) (guest.FileInfo, error)
	List(ctx context.Context, path string) ([]guest.FileInfo, error)
	Remove(ctx context.Context, path string) error
}

var _ Guest = (*guest.Client)(nil)

// validEnv reports whether a process can have this variable.
func validEnv(name, value string) bool {
	return name != "" && !strings.ContainsAny(name, "=\x00") && !strings.Contains(value, "\x00")
}

// fileError tells what the guest's file system forbids from what the API forbids: the
// former is about the path, not about the caller.
func fileError(err error) error {
	var e *kiln.Error
	if errors.As(err, &e) && (e.Code == kiln.CodeForbidden || e.Code == kiln.CodeUnauthorized) {
		return &kiln.Error{Code: kiln.CodeInvalid, Message: e.Message, Hint: e.Hint, Err: e}
	}
	return err
}
