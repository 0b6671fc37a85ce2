package api

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// The two ways in which the line fails. Compare with errors.Is.
var (
	ErrNotSent  = errors.New("the request was never sent")
	ErrLineLost = errors.New("the line was lost after the request was sent")
)

const wasLost = "the line was lost"

// ErrSilent is why a line counts as lost that is there: nobody answers.
var ErrSilent = errors.New("the daemon does not answer")

// LineError is a failure of the line, not an answer. It is ErrNotSent (nothing happened) or ErrLineLost (unknown: the
// daemon may have acted on the request), and whatever Err is.
type LineError struct {
	Op   string // method and path
	Sent bool   // the request may have arrived
	Err  error
}

func (e *LineError) Error() string {
	switch {
	case errors.Is(e.Err, ErrSilent), e.Sent && strings.Contains(e.Err.Error(), wasLost): // whoever dialled knows that, too
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	case e.Sent:
		return fmt.Sprintf("%s: %s: %v", e.Op, wasLost, e.Err)
	}
	return e.Err.Error() // the dialler's words say it all
}

// Unwrap gives the sentinel and the cause.
func (e *LineError) Unwrap() []error {
	if e.Sent {
		return []error{ErrLineLost, e.Err}
	}
	return []error{ErrNotSent, e.Err}
}

func lost(op string, err error) error { return &LineError{Op: op, Sent: true, Err: err} }

// unwrapURL takes off net/http's wrapper, whose made-up URL would only confuse.
func unwrapURL(err error) error {
	if u := new(url.Error); errors.As(err, &u) {
		return u.Err
	}
	return err
}
