package procs

import (
	"fmt"
	"syscall"
)

// Exit is how a process ended.
type Exit struct {
	Code    int            // its status; -1 if it could not be learned
	Signal  syscall.Signal // what killed it; 0 if it exited by itself
	Core    bool           // and it left a core dump
	running bool
}

// String says it in words, as in "exited with status 3" or "was killed by signal 9 (killed)".
func (e Exit) String() string {
	switch {
	case e.running:
		return "is running"
	case e.Signal != 0 && e.Core:
		return fmt.Sprintf("was killed by signal %d (%s, core dumped)", int(e.Signal), e.Signal)
	case e.Signal != 0:
		return fmt.Sprintf("was killed by signal %d (%s)", int(e.Signal), e.Signal)
	case e.Code < 0:
		return "ended in an unknown way"
	}
	return fmt.Sprintf("exited with status %d", e.Code)
}
