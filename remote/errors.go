package remote

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

var (
	// ErrLineLost means that the connection broke: what was asked for may
	// have happened on the host, or not, or half.
	ErrLineLost = errors.New("the line was lost")
	// ErrNeverRan means that the host did nothing at all of what was asked.
	// An error can be this and ErrLineLost at once: lost before it began.
	ErrNeverRan = errors.New("it never ran")
	// ErrClosed means that the session was closed at this end.
	ErrClosed = errors.New("the session is closed")
	// ErrDestination means that the words are not those of a destination.
	ErrDestination = errors.New("not a destination")
)

// ErrUnreachable means that no SSH server answered: the name has no
// address, nobody listens, a hop on the way refuses, or there was no answer
// in time.
type ErrUnreachable struct {
	Host string // host:port
	Err  error
}

func (e *ErrUnreachable) Error() string { return fmt.Sprintf("%s is unreachable: %v", e.Host, e.Err) }
func (e *ErrUnreachable) Unwrap() error { return e.Err }

// ErrUnknownHostKey means that no known_hosts file vouches for the key that
// the host showed. Nothing was sent to it and nothing was written down.
type ErrUnknownHostKey struct {
	Host           string // the name that was looked up, as known_hosts writes it
	Fingerprint    string // SHA256:...
	KeyType        string
	KnownHostsFile string // where an accepted key will go
	// Command lets the operator compare the fingerprint and accept the key.
	Command string
}

func (e *ErrUnknownHostKey) Error() string {
	return fmt.Sprintf("the host key of %s is unknown: %s %s", e.Host, e.KeyType, e.Fingerprint)
}

// ErrHostKeyChanged means that known_hosts has another key for the host:
// the host was made anew, or somebody is in between.
type ErrHostKeyChanged struct {
	Host        string
	Fingerprint string // of the key that was shown
	KeyType     string
	Known       string // fingerprint of the key in known_hosts
	File        string
	Line        int
	// Command removes the old key, for when the host was made anew.
	Command string
}

func (e *ErrHostKeyChanged) Error() string {
	return fmt.Sprintf("the host key of %s has changed: it shows %s %s, but %s:%d has %s",
		e.Host, e.KeyType, e.Fingerprint, e.File, e.Line, e.Known)
}

// ErrHostKeyRefused means that the host showed a revoked key, or a
// certificate that is not good: expired, for another name, by an authority
// that is not trusted for this host.
type ErrHostKeyRefused struct {
	Host        string
	Fingerprint string
	KeyType     string
	Err         error
}

func (e *ErrHostKeyRefused) Error() string {
	return fmt.Sprintf("the host key of %s is refused: %s %s: %v", e.Host, e.KeyType, e.Fingerprint, e.Err)
}
func (e *ErrHostKeyRefused) Unwrap() error { return e.Err }

// ErrAuth means that the server let us in by nothing that we have.
type ErrAuth struct {
	Host    string
	User    string
	Methods []string // what the server allows
	Tried   []string // what we tried of it
	Keys    []KeyTried
	Err     error
}

// KeyTried says what became of one key.
type KeyTried struct {
	Source      string // a file, or "agent"
	Fingerprint string // empty where it is not known
	KeyType     string
	Result      string // "refused by the server", "wrong passphrase", ...
}

func (k KeyTried) String() string {
	return strings.Join(strings.Fields(k.Source+" "+k.KeyType+" "+k.Fingerprint), " ") + ": " + k.Result
}

func (e *ErrAuth) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s does not let %s in", e.Host, e.User)
	if len(e.Methods) > 0 {
		fmt.Fprintf(&b, " (it takes %s)", strings.Join(e.Methods, ", "))
	}
	if len(e.Keys) == 0 {
		b.WriteString("; no key was found to try")
	}
	for _, k := range e.Keys {
		b.WriteString("; " + k.String())
	}
	if e.Err != nil && strings.Contains(e.Err.Error(), "disconnect") { // too many keys, for example
		fmt.Fprintf(&b, "; then it hung up: %v", e.Err)
	}
	return b.String()
}
func (e *ErrAuth) Unwrap() error { return e.Err }

// ExitError means that a command ran on the host to its end and failed.
type ExitError struct {
	Command string // its first word
	Status  int    // -1 where a signal ended it
	Signal  string // without SIG; empty where it exited
	Stderr  string // the last of its standard error, where that was not taken by the caller
}

func (e *ExitError) Error() string {
	how := fmt.Sprintf("exit status %d", e.Status)
	if e.Signal != "" {
		how = "killed by signal " + e.Signal
	}
	if text := strings.TrimSpace(e.Stderr); text != "" {
		return fmt.Sprintf("%s on the host: %s: %s", e.Command, how, text)
	}
	return fmt.Sprintf("%s on the host: %s", e.Command, how)
}

// SocketReason says why a socket on the host was not reached.
type SocketReason int

const (
	// SocketUnknown: the server does not say, and could not be asked.
	SocketUnknown SocketReason = iota
	// SocketForbidden: the server does not forward to sockets. Go through a
	// command instead (DialCommand).
	SocketForbidden
	// SocketAbsent: there is no such socket, or we may not see it.
	SocketAbsent
	// SocketDead: the file is there and nobody listens.
	SocketDead
	// SocketDenied: somebody listens and we may not connect.
	SocketDenied
)

var socketReasons = [...]string{
	"the server does not say why",
	"the server forbids forwarding to sockets",
	"there is no such socket",
	"nobody listens on it",
	"permission denied",
}

func (r SocketReason) String() string { return socketReasons[r] }

// ErrSocket means that a socket on the host was not reached; nothing was
// sent to it.
type ErrSocket struct {
	Path   string
	Reason SocketReason
	Err    error
}

func (e *ErrSocket) Error() string {
	return fmt.Sprintf("connect to %s on the host: %v", e.Path, e.Reason)
}
func (e *ErrSocket) Unwrap() []error { return []error{ErrNeverRan, e.Err} }

// lineLost makes err one that says why the line was lost.
func lineLost(err error) error {
	switch {
	case err == nil:
		return ErrLineLost
	case errors.Is(err, ErrLineLost):
		return err
	}
	return fmt.Errorf("%w: %w", ErrLineLost, inWords(err))
}

// errHungUp is how a connection ends of which nothing more is known.
var errHungUp = errors.New("the other side has closed the connection")

// inWords says in words for people what says nothing to them: the end of a stream, or what follows from it inside of libraries.
func inWords(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || strings.Contains(err.Error(), "unexpected packet in response") {
		return errHungUp
	}
	return err
}

func neverRan(what string, err error) error {
	return fmt.Errorf("%s: %w: %w", what, ErrNeverRan, err)
}
