package systemd

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// connectPatience bounds the wait for a journald that does not accept.
const connectPatience = 5 // seconds

// OpenJournalStream opens a stream whose lines show in the journal with
// SYSLOG_IDENTIFIER=identifier, under the unit and pid of whoever writes. It
// is meant as standard output and error of a child: it is blocking and
// close-on-exec, outlives us in the child, and survives a restart of
// journald. The caller closes it. Without a journal here: ErrNoJournal.
//
// journald looks the writer up when it reads the line, and believes only root
// about units. The last lines of a process that is gone by then have the
// identifier but no unit: search by identifier.
func OpenJournalStream(identifier string, priority Priority) (*os.File, error) {
	return openJournalStream(journalStdout, identifier, priority)
}

func openJournalStream(path, identifier string, priority Priority) (*os.File, error) {
	header, err := journalHeader(identifier, priority)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := startStream(fd, path, header); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open journal stream %q: %w", identifier, err)
	}
	return os.NewFile(uintptr(fd), "journal:"+identifier), nil
}

func startStream(fd int, path, header string) error {
	setSendTimeout(fd, connectPatience) // connect waits for room in the backlog, too
	if err := ignoringEINTR(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) }); err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("%w: %s: %w", ErrNoJournal, path, err)
		}
		return os.NewSyscallError("connect "+path, err)
	}
	if err := ignoringEINTR(func() error { _, err := unix.Write(fd, []byte(header)); return err }); err != nil {
		return os.NewSyscallError("write header", err)
	}
	setSendTimeout(fd, 0) // the option lives in the socket: the child would inherit it
	// journald never answers; a child that reads its standard output gets an end-of-file.
	return os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_RD))
}

// setSendTimeout cannot fail on a socket that is open.
func setSendTimeout(fd int, seconds int64) {
	tv := unix.NsecToTimeval(seconds * 1e9)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func journalStreamEnv(f *os.File) (string, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", f.Name(), err)
	}
	var st unix.Stat_t
	var statErr error
	if err := raw.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &st) }); err != nil {
		return "", fmt.Errorf("look at %s: %w", f.Name(), err)
	}
	if statErr != nil {
		return "", fmt.Errorf("look at %s: %w", f.Name(), statErr)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}
