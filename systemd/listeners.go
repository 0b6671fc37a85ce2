package systemd

import (
	"fmt"
	"os"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
)

// Listeners returns the sockets that systemd (or a supervisor that speaks as
// it does) passed to this process, in the order in which they were passed.
// Each file's Name is its FileDescriptorName, or LISTEN_FD_<number> where it
// has none; two files may share a name. None passed is an empty list.
//
// The files are the caller's to close, and close-on-exec. The variables that
// announce them are gone from the environment afterwards, so that no child
// believes in them; a second call therefore returns nothing. Calling it
// before the process opens descriptors of its own is the caller's part: a
// file made from a number cannot tell whose number it is.
//
// O_NONBLOCK is shared with systemd and with older processes, so reach the
// sockets through SyscallConn; Fd may flip it and hang a neighbour.
func Listeners() ([]*os.File, error) {
	defer os.Unsetenv("LISTEN_PIDFDID") // newer than the library
	files := activation.Files(true)
	for _, f := range files {
		if err := checkPassed(f); err != nil {
			for _, other := range files {
				other.Close()
			}
			return nil, fmt.Errorf("socket %q passed by systemd: %w", f.Name(), err)
		}
	}
	return files, nil
}

// checkPassed finds a number that was announced but not passed, here rather
// than at the first use.
func checkPassed(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var statErr error
	err = raw.Control(func(fd uintptr) {
		var st syscall.Stat_t
		statErr = syscall.Fstat(int(fd), &st)
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("fstat", statErr)
}
