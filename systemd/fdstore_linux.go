package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// storeTimeout bounds the wait for room in PID 1's queue.
const storeTimeout = 5 * time.Second

// Put keeps a duplicate of f under name, which has a dot in it. The manager keeps it until Remove, or until the unit has stopped; it
// does not watch it, so the end of a process does not take its pidfd out.
func (FDStore) Put(name string, f syscall.Conn) error {
	if err := checkFDName(name); err != nil {
		return err
	}
	raw, err := f.SyscallConn() // not Fd, which could switch it to blocking mode everywhere
	if err != nil {
		return fmt.Errorf("fd store: %s: %w", name, err)
	}
	var sendErr error
	if err := raw.Control(func(fd uintptr) {
		sendErr = notifyManager("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, unix.UnixRights(int(fd)))
	}); err != nil {
		return fmt.Errorf("fd store: %s: %w", name, err)
	}
	if sendErr != nil {
		return fmt.Errorf("fd store: %s: %w", name, sendErr)
	}
	return nil
}

// Remove lets the manager close everything that is kept under name.
func (FDStore) Remove(name string) error {
	if err := checkFDName(name); err != nil {
		return err
	}
	if err := notifyManager("FDSTOREREMOVE=1\nFDNAME="+name, nil); err != nil {
		return fmt.Errorf("fd store: remove %s: %w", name, err)
	}
	return nil
}

// notifyManager is what the library does, with control data and a limit to the wait.
func notifyManager(text string, control []byte) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(storeTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return os.NewSyscallError("setsockopt SO_SNDTIMEO", err)
	}
	for {
		err := unix.Sendmsg(fd, []byte(text), control, &unix.SockaddrUnix{Name: path}, 0) // "@" is understood
		if err != unix.EINTR {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// Barrier waits until the manager has handled everything that was sent before (sd_notify_barrier(3)).
func (Notifier) Barrier(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	raw, err := w.SyscallConn()
	if err == nil {
		if ctlErr := raw.Control(func(fd uintptr) { err = notifyManager("BARRIER=1", unix.UnixRights(int(fd))) }); ctlErr != nil {
			err = ctlErr
		}
	}
	w.Close() // the manager's is the only other end
	if err != nil {
		return fmt.Errorf("notify systemd: barrier: %w", err)
	}
	defer context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })()
	if _, err := r.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("notify systemd: barrier: %w", context.Cause(ctx))
	}
	return nil
}
