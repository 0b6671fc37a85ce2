package failpoint

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Env names the variable that a hotdeployd with the tag failpoints gives to [Arm].
const Env = "HOTDEPLOYD_FAILPOINT"

var armed string // the file's path; written once, before anything else runs

// Arm says in which file it is written what is to happen: NAME=kill, or NAME=stop, which is for SIGCONT to end. It may be written at any time,
// by rename. The process that comes to NAME first renames it to FILE.PID, and nothing happens to another one.
func Arm(file string) { armed = file }

// Struck is how the file is called when the process pid has come to its step.
func Struck(file string, pid int) string { return fmt.Sprintf("%s.%d", file, pid) }

// At is where a process may be killed or stopped. It blocks as long as it is stopped.
func At(name string) {
	if armed != "" {
		strike(name)
	}
}

func strike(name string) {
	b, err := os.ReadFile(armed)
	if err != nil {
		return
	}
	at, action, _ := strings.Cut(strings.TrimSpace(string(b)), "=")
	if at != name || os.Rename(armed, Struck(armed, os.Getpid())) != nil {
		return
	}
	signal := unix.SIGSTOP
	if action == "kill" {
		signal = unix.SIGKILL
	}
	// To this very thread: it does not get one instruction further.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Tgkill(os.Getpid(), unix.Gettid(), signal)
}
