package sockets

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/release"
)

// Record is what a later program must know of a socket to go on with it.
type Record struct {
	Listener release.Listener `json:"listener"`
	Addr     string           `json:"addr"`
	Path     uint64           `json:"path,omitempty"` // inode of the path that Bind made, if any
}

// Record is s's.
func (s *Socket) Record() Record {
	r := Record{Listener: s.Listener, Addr: s.Addr}
	if s.made != nil {
		if st, err := s.made.Stat(); err == nil {
			r.Path = st.Sys().(*syscall.Stat_t).Ino
		}
	}
	return r
}

// Restore makes f, a descriptor of the recorded socket, what it was (ErrMismatch if it is another one). The Socket owns f from then
// on; with an error f stays the caller's.
func Restore(f *os.File, r Record) (*Socket, error) {
	is, err := look(f)
	if err != nil {
		return nil, err
	}
	if err := is.matchesRecord(r); err != nil {
		return nil, err
	}
	return &Socket{Listener: r.Listener, File: f, Addr: r.Addr, made: madePath(r)}, nil
}

func (is found) matchesRecord(r Record) error {
	kind := unix.SOCK_STREAM
	if r.Listener.Network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	if is.kind != kind || is.address() != r.Addr || (kind == unix.SOCK_STREAM && !is.listening) {
		return fmt.Errorf("%w: it is %s, not %s", ErrMismatch, is, r.Addr)
	}
	return nil
}

// madePath holds the path that Bind made, if it is still that one.
func madePath(r Record) *os.File {
	if r.Path == 0 {
		return nil
	}
	f, err := os.OpenFile(r.Addr, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	if st, err := f.Stat(); err == nil && st.Mode().Type() == fs.ModeSocket && st.Sys().(*syscall.Stat_t).Ino == r.Path {
		return f
	}
	f.Close()
	return nil
}

// Take looks for the recorded socket among those that a process has open and gets a descriptor of it (pidfd_getfd), which is the
// caller's. ErrForbidden: the kernel does not let us; os.ErrNotExist: the process does not have it.
func Take(pid int, r Record) (*os.File, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, os.NewSyscallError("pidfd_open", err))
	}
	defer unix.Close(process)
	var taken *os.File
	var refused error
	err = eachSocket(pid, func(fd int, _ uint64) bool {
		n, err := unix.PidfdGetfd(process, fd, 0)
		if err != nil {
			refused = err
			return err == unix.EBADF // closed meanwhile
		}
		f := os.NewFile(uintptr(n), r.Listener.Name)
		if is, err := look(f); err == nil && is.matchesRecord(r) == nil {
			taken = f
			return false
		}
		f.Close()
		return true
	})
	switch {
	case taken != nil:
		return taken, nil
	case errors.Is(err, fs.ErrPermission), refused == unix.EPERM, refused == unix.EACCES, refused == unix.ENOSYS:
		return nil, fmt.Errorf("%w: process %d: %w", ErrForbidden, pid, errors.Join(err, refused))
	case err != nil:
		return nil, err
	}
	return nil, fmt.Errorf("process %d has no socket %s: %w", pid, r.Addr, os.ErrNotExist)
}
