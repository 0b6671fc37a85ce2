package api

import (
	"errors"
	"net/http"
)

// Error is a failure as it crosses the control socket and as the operator reads it: what broke, what is serving now, what
// to type next.
type Error struct {
	Code    string   `json:"code"`
	Message string   `json:"message"`
	State   string   `json:"state,omitempty"`   // what is serving now
	Hint    string   `json:"hint,omitempty"`    // what to type next
	Output  []string `json:"output,omitempty"`  // the app's last lines
	Journal string   `json:"journal,omitempty"` // where those lines are instead: a journal identifier
}

func (e *Error) Error() string { return e.Message }

// Is makes errors.Is(err, ErrBusy) true for what came over the socket.
func (e *Error) Is(target error) bool {
	var t *Error
	return errors.As(target, &t) && t.Message == "" && t.Code == e.Code
}

func code(c string) *Error { return &Error{Code: c} }

// What a caller may branch on. Compare with errors.Is; make one with [Error.With].
var (
	ErrBusy        = code("busy")           // an upgrade is in flight
	ErrBadRequest  = code("bad-request")    // malformed or beyond a limit
	ErrNotFound    = code("not-found")      // no such release, upgrade, generation
	ErrConflict    = code("conflict")       // the version exists with other content; the generation is not draining
	ErrManifest    = code("bad-manifest")   // it breaks a rule of package release
	ErrPlatform    = code("wrong-platform") // built for another machine
	ErrEnvironment = code("missing-env")    // a required variable or interpreter is not there
	ErrDiskSpace   = code("no-space")       // no room on the host's disk
	ErrMemory      = code("no-memory")      // no room for a second generation
	ErrReadOnly    = code("read-only")      // the host's disk
	ErrLimit       = code("at-limit")       // no descriptors or processes left to the daemon
	ErrDigest      = code("wrong-digest")   // a file is not what the manifest says
	ErrIncomplete  = code("incomplete")     // parts are still missing
	ErrBundle      = code("bad-bundle")     // the release could not be made of it: send it without a base
	ErrListen      = code("cannot-listen")  // in use, or not permitted
	ErrStart       = code("cannot-start")   // missing, not executable, exited
	ErrNotReady    = code("not-ready")      // in time
	ErrUnhealthy   = code("unhealthy")      // in the soak
	ErrExited      = code("exited")         // in the soak
	ErrCancelled   = code("cancelled")      // by an operator, before the commit
	ErrStopping    = code("stopping")       // the daemon is going down
	ErrForbidden   = code("forbidden")      // the peer may not
	ErrInternal    = code("internal")
)

// With returns an error of e's code that says what happened.
func (e *Error) With(message string) *Error { return &Error{Code: e.Code, Message: message} }

// HTTPStatus is the status that carries e over the control socket; the code is what counts.
func (e *Error) HTTPStatus() int {
	switch e.Code {
	case ErrBusy.Code, ErrConflict.Code, ErrIncomplete.Code:
		return http.StatusConflict
	case ErrNotFound.Code:
		return http.StatusNotFound
	case ErrForbidden.Code:
		return http.StatusForbidden
	case ErrInternal.Code:
		return http.StatusInternalServerError
	case ErrStopping.Code:
		return http.StatusServiceUnavailable
	case ErrDiskSpace.Code, ErrMemory.Code, ErrReadOnly.Code, ErrLimit.Code:
		return http.StatusInsufficientStorage
	case ErrBadRequest.Code, ErrManifest.Code:
		return http.StatusBadRequest
	}
	return http.StatusUnprocessableEntity
}
