package store

import (
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// gently runs do with the lowest priority for processor and disk, so that a busy service does not notice, and gives back the memory
// that it took. It is a matter of one thread here, which nobody uses afterwards.
func gently(do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		const (
			who, idle = 1, 3 << 13 // IOPRIO_WHO_PROCESS, IOPRIO_CLASS_IDLE
		)
		// Where it is forbidden it is done at the usual priority.
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19)
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, who, uintptr(unix.Gettid()), idle)
		result <- do()
	}()
	err := <-result
	debug.FreeOSMemory()
	return err
}
