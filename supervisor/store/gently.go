package store

import (
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// gently runs do with a low priority for processor and disk, so that a busy service does not notice, and gives back the memory
// that it took. Not with the lowest: beside an app that takes all it can get the release would never be there. It is a matter of one
// thread here, which nobody uses afterwards.
func gently(do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		const (
			nice     = 10           // a tenth of a processor that others want too
			who, low = 1, 2<<13 | 7 // IOPRIO_WHO_PROCESS; IOPRIO_CLASS_BE and its last level
		)
		// Where it is forbidden it is done at the usual priority.
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), nice)
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, who, uintptr(unix.Gettid()), low)
		result <- do()
	}()
	err := <-result
	debug.FreeOSMemory()
	return err
}
