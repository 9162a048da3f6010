package guest

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/kilnvm/kiln"
)

// ErrGone is wrapped by every error that means: nothing answers any more where the daemon
// was. The VM has ended, or the host is shutting down.
var ErrGone = errors.New("the sandbox is gone")

// codes translates what the daemon answers.
var codes = map[connect.Code]kiln.ErrorCode{
	connect.CodeInvalidArgument:    kiln.CodeInvalid,
	connect.CodeNotFound:           kiln.CodeNotFound,
	connect.CodeAlreadyExists:      kiln.CodeConflict,
	connect.CodeFailedPrecondition: kiln.CodeConflict,
	connect.CodeUnauthenticated:    kiln.CodeUnauthorized,
	connect.CodePermissionDenied:   kiln.CodeForbidden,
	connect.CodeResourceExhausted:  kiln.CodeExhausted,
	connect.CodeDeadlineExceeded:   kiln.CodeTimeout,
	connect.CodeUnimplemented:      kiln.CodeInvalid,
}

// translate turns the error of a call into one for people. Whether the caller gave up is
// asked first: a cancelled call fails in many ways.
func translate(ctx context.Context, err error) error {
	var known *kiln.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return kiln.Errorf(kiln.CodeTimeout, "the sandbox did not answer in time: %w", ctx.Err())
	case ctx.Err() != nil:
		return kiln.Errorf(kiln.CodeCanceled, "the request to the sandbox was cancelled: %w", ctx.Err())
	}
	var answer *connect.Error
	if !connect.IsWireError(err) || !errors.As(err, &answer) {
		return gone(err)
	}
	switch answer.Code() {
	case connect.CodeCanceled, connect.CodeUnavailable: // the daemon is on its way out
		return gone(err)
	}
	code, ok := codes[answer.Code()]
	if !ok {
		code = kiln.CodeInternal
	}
	return &kiln.Error{Code: code, Message: answer.Message(), Err: err}
}

func gone(cause error) error {
	return &kiln.Error{
		Code: kiln.CodeUnavailable, Message: "the sandbox is gone: its daemon no longer answers",
		Hint: "create a new sandbox", Err: errors.Join(ErrGone, cause),
	}
}

// asUser blames the request for a user that does not exist: the access token, the other
// reason for this code, is the host's own.
func asUser(user string, err error) error {
	var e *kiln.Error
	if user == "" || !errors.As(err, &e) || e.Code != kiln.CodeUnauthorized {
		return err
	}
	return &kiln.Error{Code: kiln.CodeInvalid, Message: e.Message, Err: e.Err}
}

// StartError says that a command did not start for a reason that a shell reports by an
// exit code. It is the cause of the *kiln.Error of [Client.Start].
type StartError struct {
	// Code is 127 when there is no such command and 126 when it cannot be executed.
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// translateStart is translate for a command that has not started.
func translateStart(ctx context.Context, user string, err error) error {
	var e *kiln.Error
	translated := asUser(user, translate(ctx, err))
	if !errors.As(translated, &e) || errors.Is(translated, ErrGone) {
		return translated
	}
	switch connect.CodeOf(err) {
	case connect.CodeNotFound:
		return &kiln.Error{Code: kiln.CodeNotFound, Message: e.Message, Err: &StartError{127, err}}
	case connect.CodePermissionDenied, connect.CodeFailedPrecondition:
		return &kiln.Error{Code: kiln.CodeInvalid, Message: e.Message, Err: &StartError{126, err}}
	}
	return translated
}
