package systemd

import "errors"

// Sender is who sent a notify message, as the kernel vouches for it. The pid
// may be gone, or be somebody else's, by the time it is looked at.
type Sender struct {
	PID int
	UID int
	GID int
}

// ErrSocketInUse says that somebody else listens on the path.
var ErrSocketInUse = errors.New("socket is in use")
