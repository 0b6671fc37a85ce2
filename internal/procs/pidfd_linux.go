package procs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pollablePidfd gives a pidfd to Go's poller: waiting for a process then costs no thread. The File owns fd.
func pollablePidfd(fd int) (*os.File, error) {
	if fd < 0 {
		return nil, errors.ErrUnsupported
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if err := f.SetReadDeadline(time.Time{}); err != nil { // it is not in the poller
		f.Close()
		return nil, err
	}
	return f, nil
}

// openPidfd opens any process's; os.ErrProcessDone if it is gone.
func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL { // EINVAL: a thread's number by now
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return pollablePidfd(fd)
}

// ended waits until the process has ended. One goroutine at a time may wait on a File.
func ended(ctx context.Context, pidfd *os.File) error {
	pidfd.SetReadDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n == 1
	})
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// exitOf is how the process behind pidfd, a child of ours, ended. It stays a zombie.
func exitOf(pidfd *os.File) Exit {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return Exit{Code: -1}
	}
	// siginfo_t as waitid(2) fills it; the kernel writes 128 bytes.
	var info struct {
		signo, errno, code int32
		f                  struct {
			_      [0]uintptr // aligned as the kernel's union is
			pid    int32
			uid    uint32
			status int32
		}
		_ [128]byte
	}
	var waitErr error
	err = raw.Control(func(fd uintptr) {
		for {
			waitErr = unix.Waitid(unix.P_PIDFD, int(fd), (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT, nil)
			if waitErr != unix.EINTR {
				return
			}
		}
	})
	if err != nil || waitErr != nil {
		return Exit{Code: -1}
	}
	const cldExited, cldDumped = 1, 3
	switch info.code {
	case cldExited:
		return Exit{Code: int(info.f.status)}
	default:
		return Exit{Signal: syscall.Signal(info.f.status), Core: info.code == cldDumped}
	}
}

func signalPidfd(pidfd *os.File, sig syscall.Signal) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return os.ErrProcessDone // Remove has closed it
	}
	var sigErr error
	err = raw.Control(func(fd uintptr) { sigErr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	if err != nil || sigErr == unix.ESRCH {
		return os.ErrProcessDone
	}
	return sigErr
}

// signalMember signals pid if it still belongs to t, not a stranger who got its number. One that is gone is no error.
func signalMember(t tree, pid int, sig syscall.Signal) error {
	f, err := openPidfd(pid)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if !t.contains(pid) { // asked only now: the pidfd holds on to whoever has the number
		return nil
	}
	if err := signalPidfd(f, sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", pid, err)
	}
	return nil
}

// awaitMember waits until pid has ended, or no longer belongs to t.
func awaitMember(ctx context.Context, t tree, pid int) error {
	f, err := openPidfd(pid)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if !t.contains(pid) {
		return nil
	}
	return ended(ctx, f)
}

// killRounds kills and waits until nothing is left, as often as needed: for what is forked between two looks.
func killRounds(ctx context.Context, t tree) error {
	for {
		pids := t.pids()
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := signalMember(t, pid, syscall.SIGKILL); err != nil {
				return err
			}
		}
		for _, pid := range pids {
			if err := awaitMember(ctx, t, pid); err != nil {
				return fmt.Errorf("%d processes are left: %w", len(t.pids()), err)
			}
		}
		if ctx.Err() != nil { // they fork faster than we look
			return context.Cause(ctx)
		}
	}
}
