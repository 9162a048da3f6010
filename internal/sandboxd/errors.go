package sandboxd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
)

// errorf returns an error that both kinds of endpoint can answer with: an RPC as it is, a
// REST endpoint with the status of [statusOf].
func errorf(code connect.Code, format string, args ...any) error {
	return connect.NewError(code, fmt.Errorf(format, args...))
}

// fileError gives the error of a file operation the code that tells whose fault it is.
func fileError(err error) error {
	var known *connect.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	}
	return connect.NewError(fileErrorCode(err), err)
}

func fileErrorCode(err error) connect.Code {
	for _, c := range []struct {
		code   connect.Code
		causes []error
	}{
		{connect.CodeNotFound, []error{fs.ErrNotExist}},
		{connect.CodeAlreadyExists, []error{fs.ErrExist, unix.ENOTEMPTY}},
		{connect.CodeResourceExhausted, []error{unix.ENOSPC, unix.EDQUOT, unix.EFBIG}},
		{connect.CodePermissionDenied, []error{fs.ErrPermission, unix.EROFS}},
		{connect.CodeInvalidArgument, []error{unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG,
			unix.EINVAL, unix.ETXTBSY, unix.ENXIO, unix.EOPNOTSUPP}},
	} {
		for _, cause := range c.causes {
			if errors.Is(err, cause) {
				return c.code
			}
		}
	}
	return connect.CodeInternal
}

// statusOf maps the codes in use to what clients expect of the REST endpoints.
func statusOf(code connect.Code) int {
	switch code {
	case connect.CodeInvalidArgument:
		return http.StatusBadRequest
	case connect.CodeUnauthenticated:
		return http.StatusUnauthorized
	case connect.CodePermissionDenied:
		return http.StatusForbidden
	case connect.CodeNotFound:
		return http.StatusNotFound
	case connect.CodeAlreadyExists, connect.CodeFailedPrecondition:
		return http.StatusConflict
	case connect.CodeResourceExhausted:
		return http.StatusInsufficientStorage
	default:
		return http.StatusInternalServerError
	}
}

// errorBody is what a failed REST request is answered with.
type errorBody struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	// Connections are what keeps the machine from being captured.
	Connections []string `json:"connections,omitempty"`
}

// statusError is an error of a REST endpoint that no RPC code stands for.
type statusError struct {
	status  int
	message string
}

func (e *statusError) Error() string { return e.message }

// rest turns a function that may fail into a handler. The function must not have written
// anything when it returns an error.
func rest(f func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := f(w, r); err != nil {
			writeError(w, err)
		}
	}
}

func writeError(w http.ResponseWriter, err error) {
	body := errorBody{Code: http.StatusInternalServerError, Message: err.Error()}
	var rpc *connect.Error
	var status *statusError
	var open *openConnectionsError
	switch {
	case errors.As(err, &open):
		body = errorBody{Code: http.StatusConflict, Message: open.Error(), Connections: open.connections}
	case errors.As(err, &status):
		body.Code = status.status
	case errors.As(err, &rpc):
		body = errorBody{Code: statusOf(rpc.Code()), Message: rpc.Message()}
	}
	writeJSON(w, body.Code, body)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client has gone; nobody is left to tell
}

// message returns err without the code that an RPC would show before its text.
func message(err error) error {
	var rpc *connect.Error
	if errors.As(err, &rpc) {
		return rpc.Unwrap()
	}
	return err
}
