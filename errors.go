package kiln

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// ErrorCode classifies an error for whoever has to react to it: the API maps it to an
// HTTP status, the CLI to an exit code. There are few on purpose.
type ErrorCode string

const (
	CodeInternal     ErrorCode = "internal"     // our fault; details are logged, not shown
	CodeInvalid      ErrorCode = "invalid"      // the request is wrong
	CodeNotFound     ErrorCode = "not_found"    // no such thing, or not yours
	CodeConflict     ErrorCode = "conflict"     // taken, or in a state that forbids it
	CodeUnauthorized ErrorCode = "unauthorized" // no or wrong token
	CodeForbidden    ErrorCode = "forbidden"    // known caller, not allowed
	CodeExhausted    ErrorCode = "exhausted"    // disk or memory is used up
	CodeLimit        ErrorCode = "limit"        // a configured limit on how many is reached
	CodeUnavailable  ErrorCode = "unavailable"  // the host lacks something, or try later
	CodeTimeout      ErrorCode = "timeout"      // a deadline passed
	CodeCanceled     ErrorCode = "canceled"     // somebody asked to stop
	CodeBuildFailed  ErrorCode = "build_failed" // the user's Dockerfile or commands failed
)

// Error is an error meant to be read by the person who caused it: Message names the
// thing at fault, Hint (optional) says what to do about it.
type Error struct {
	Code    ErrorCode
	Message string
	Hint    string
	Err     error // cause, logged but not shown; may be nil
}

func (e *Error) Error() string {
	s := e.Message
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf returns an [Error] with a formatted message. A %w verb sets the cause.
func Errorf(code ErrorCode, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// quoted matches what a message quotes, and long one that is of more than 80 characters.
var (
	quoted = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	long   = regexp.MustCompile(`^("(?:[^"\\]|\\.){80})(?:[^"\\]|\\.)+"$`)
)

// CutQuotes shortens what a message quotes: a wrong value may be a whole file.
func CutQuotes(message string) string {
	return quoted.ReplaceAllStringFunc(message, func(q string) string { return long.ReplaceAllString(q, `$1…"`) })
}

// DiskFull says that err is due to a full disk of the server's.
func DiskFull(err error) *Error {
	return Errorf(CodeExhausted, "disk full: %w", err).WithHint("free space in the data directory")
}

// WithHint returns a copy of e that tells what to do.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// CodeOf returns the code of the first [Error] or [BuildError] in err's chain, or
// [CodeInternal]. It returns "" for nil.
func CodeOf(err error) ErrorCode {
	if err == nil {
		return ""
	}
	var b *BuildError
	if errors.As(err, &b) {
		return CodeBuildFailed
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// BuildError says why a build failed through no fault of Kiln's: the user's
// Dockerfile, start command or ready command. It is stored as the template's
// build_error and shown as it is. It is never retried.
type BuildError struct {
	Stage    Stage    `json:"stage"`
	Message  string   `json:"message"`
	File     string   `json:"file,omitempty"`      // the Dockerfile, as the user named it
	Line     int      `json:"line,omitempty"`      // 1-based; 0 when unknown
	Source   string   `json:"source,omitempty"`    // the text of that line
	ExitCode int      `json:"exit_code,omitempty"` // of the failed command; 0 when none
	Output   []string `json:"output,omitempty"`    // last lines the command printed
	Hint     string   `json:"hint,omitempty"`
	Err      error    `json:"-"`
}

func (e *BuildError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: ", e.Stage)
	if e.File != "" && e.Line > 0 {
		fmt.Fprintf(&b, "%s:%d: ", e.File, e.Line)
	} else if e.File != "" {
		fmt.Fprintf(&b, "%s: ", e.File)
	}
	b.WriteString(e.Message)
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	return b.String()
}

func (e *BuildError) Unwrap() error { return e.Err }
