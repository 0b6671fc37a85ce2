package supervisor

import (
	"errors"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// shortage says of an error that comes from the state of the machine what that state is, and what helps. It returns nil for any other.
func shortage(err error) *api.Error {
	for _, of := range []struct {
		cause      unix.Errno
		code       *api.Error
		says, hint string
	}{
		{unix.ENOSPC, api.ErrDiskSpace, "no room on the disk", "make room on the host"},
		{unix.EDQUOT, api.ErrDiskSpace, "no room within the disk quota", "make room on the host, or raise the quota"},
		{unix.EROFS, api.ErrReadOnly, "the disk is read-only", "see why on the host (dmesg), and mount it writable again"},
		{unix.EMFILE, api.ErrLimit, "the daemon has no file descriptor left", "end draining generations (hotdeploy retire), or raise LimitNOFILE= of its unit"},
		{unix.ENFILE, api.ErrLimit, "the host has no file descriptor left", "see what has them: lsof; the limit is fs.file-max"},
		{unix.ENOMEM, api.ErrMemory, "the host has no memory left", "free memory on the host, or end draining generations: hotdeploy retire"},
	} {
		if errors.Is(err, of.cause) {
			e := of.code.With(of.says + ": " + err.Error())
			e.Hint = of.hint
			return e
		}
	}
	return nil
}

// internal is for errors that nobody has put into words.
func internal(err error) *api.Error {
	if e := shortage(err); e != nil {
		return e
	}
	return api.ErrInternal.With(err.Error())
}

// noProcess is what it means that no process could be started for now. Elsewhere the same error number means other things.
func noProcess(err error) *api.Error {
	if !errors.Is(err, unix.EAGAIN) {
		return nil
	}
	e := api.ErrLimit.With("no process can be started, the limit is reached: " + err.Error())
	e.Hint = "see what runs on the host (systemctl status), and end it, or raise TasksMax= of the unit"
	return e
}

// reservedThreads is more than the daemon ever had at once when it was looked at.
const reservedThreads = 24

// reserveThreads makes threads while the machine has some to give: an app may take all that the unit may have, and a Go program that cannot
// make the thread that it needs dies. The runtime keeps threads that nobody uses.
func reserveThreads() {
	var made, ended sync.WaitGroup
	made.Add(reservedThreads)
	let := make(chan struct{})
	for range reservedThreads {
		ended.Go(func() {
			runtime.LockOSThread() // as long as it waits nobody else has its thread
			made.Done()
			<-let
			runtime.UnlockOSThread()
		})
	}
	made.Wait()
	close(let)
	ended.Wait()
}
