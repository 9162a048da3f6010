package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kilnvm/kiln"
)

// Error is the body of every failed request.
type Error struct {
	Message string           `json:"error" doc:"What went wrong, naming the thing at fault"`
	Code    kiln.ErrorCode   `json:"code" doc:"Class of the error" enum:"internal,invalid,not_found,conflict,unauthorized,forbidden,exhausted,limit,unavailable,timeout,canceled,build_failed"`
	Hint    string           `json:"hint,omitempty" doc:"What to do about it"`
	Build   *kiln.BuildError `json:"build_error,omitempty" doc:"Where in the Dockerfile a build failed"`

	status int
}

func (e *Error) Error() string { return e.Message }

// GetStatus returns the HTTP status; it makes *Error a huma.StatusError.
func (e *Error) GetStatus() int { return e.status }

// statusOf is the whole mapping from error codes to HTTP.
func statusOf(code kiln.ErrorCode) int {
	switch code {
	case kiln.CodeInvalid:
		return http.StatusBadRequest
	case kiln.CodeUnauthorized:
		return http.StatusUnauthorized
	case kiln.CodeForbidden:
		return http.StatusForbidden
	case kiln.CodeNotFound:
		return http.StatusNotFound
	case kiln.CodeConflict:
		return http.StatusConflict
	case kiln.CodeBuildFailed:
		return http.StatusUnprocessableEntity
	case kiln.CodeExhausted:
		return http.StatusInsufficientStorage
	case kiln.CodeLimit:
		return http.StatusTooManyRequests
	case kiln.CodeUnavailable:
		return http.StatusServiceUnavailable
	case kiln.CodeTimeout:
		return http.StatusGatewayTimeout
	case kiln.CodeCanceled:
		return statusClientClosedRequest
	}
	return http.StatusInternalServerError
}

// statusClientClosedRequest is nginx's convention for a request that its sender gave up.
const statusClientClosedRequest = 499

// errorFor translates err for the outside. What is our fault is logged in full and
// shown as nothing but that.
func errorFor(ctx context.Context, log *slog.Logger, what string, err error) *Error {
	var shown *Error
	if errors.As(err, &shown) {
		return shown
	}
	var build *kiln.BuildError
	if errors.As(err, &build) {
		return &Error{Message: build.Error(), Code: kiln.CodeBuildFailed, Hint: build.Hint, Build: build, status: statusOf(kiln.CodeBuildFailed)}
	}
	var known *kiln.Error
	if errors.As(err, &known) && known.Code != kiln.CodeInternal {
		if known.Err != nil {
			log.DebugContext(ctx, "request refused", "request", what, "code", known.Code, "err", err, "cause", known.Err)
		}
		return newError(known.Code, known.Message, known.Hint)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return newError(kiln.CodeTimeout, what+": the deadline passed", "")
	case errors.Is(err, context.Canceled):
		return newError(kiln.CodeCanceled, what+": the request was cancelled", "")
	}
	log.ErrorContext(ctx, "request failed", "request", what, "err", err)
	return newError(kiln.CodeInternal, "internal error", "the server's log says more")
}

func newError(code kiln.ErrorCode, message, hint string) *Error {
	return &Error{Message: kiln.CutQuotes(message), Code: code, Hint: hint, status: statusOf(code)}
}

// writeError answers a request that never reached an operation.
func writeError(w http.ResponseWriter, e *Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.status)
	_ = json.NewEncoder(w).Encode(e) // the client has gone when this fails
}

// useOwnErrors makes huma's own errors (a malformed request) look like ours. The hook
// is process-wide, as huma designed it, hence once.
var useOwnErrors = sync.OnceFunc(func() {
	huma.NewError = func(status int, message string, causes ...error) huma.StatusError {
		e := &Error{Message: message, Code: codeOf(status), status: status}
		if status == http.StatusUnprocessableEntity {
			e.status = http.StatusBadRequest
		}
		var details []string
		for _, c := range causes {
			if c != nil {
				details = append(details, detailOf(c))
			}
		}
		if len(details) > 0 {
			e.Message += ": " + strings.Join(details, "; ")
		}
		return e
	}
})

// typeError matches how encoding/json refuses a number that a field cannot hold, behind the
// schema's own check.
var typeError = regexp.MustCompile(`json: cannot unmarshal number (\S+) into Go struct field \w+\.(\S+) of type`)

// maxEcho bounds how much of a wrong value is repeated, in bytes.
const maxEcho = 200

// detailOf says what is wrong with one part of a request.
func detailOf(cause error) string {
	text := cause.Error()
	if m := typeError.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf("expected an integer of 64 bits (body.%s: %s)", m[2], m[1])
	}
	if len(text) > maxEcho {
		text = strings.ToValidUTF8(text[:maxEcho], "") + "…"
	}
	return text
}

func codeOf(status int) kiln.ErrorCode {
	switch {
	case status == http.StatusNotFound:
		return kiln.CodeNotFound
	case status == http.StatusRequestTimeout:
		return kiln.CodeTimeout
	case status == http.StatusRequestEntityTooLarge:
		return kiln.CodeExhausted
	case status >= 400 && status < 500:
		return kiln.CodeInvalid
	}
	return kiln.CodeInternal
}
