package failpoint

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Env names the variable that says what is to happen.
const Env = "UPGRADE_FAILPOINT"

// FromEnv returns what strikes where UPGRADE_FAILPOINT asks for it: NAME=ACTION[@N], at the Nth time (default 1) that NAME is reached: kill (this process, at once),
// stop (SIGSTOP: it hangs until somebody ends it), pause (SIGSTOP: it stands still until somebody sends it SIGCONT). Or @FILE: that is in a file, if there is one by then, since a process and the one that follows it have
// one environment.
func FromEnv() func(name string) {
	asked := os.Getenv(Env)
	if path, ok := strings.CutPrefix(asked, "@"); ok {
		b, _ := os.ReadFile(path)
		asked = strings.TrimSpace(string(b))
	}
	name, action, _ := strings.Cut(asked, "=")
	action, at, _ := strings.Cut(action, "@")
	n, err := strconv.Atoi(at)
	if err != nil {
		n = 1
	}
	p := &point{name: name, action: action}
	p.left.Store(int64(n))
	return p.strike
}

type point struct {
	name, action string
	left         atomic.Int64
}

func (p *point) strike(name string) {
	if name != p.name {
		return
	}
	switch left := p.left.Add(-1); {
	case left > 0 || left < 0 && p.action == "pause":
		return
	case left < 0:
		select {} // the process is about to end: whoever comes after the one that ends it must not get further
	}
	fmt.Fprintf(os.Stderr, "failpoint %s: %s\n", name, p.action)
	switch p.action {
	case "kill":
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	case "stop":
		unix.Kill(os.Getpid(), unix.SIGSTOP)
		select {} // the signal may strike a moment later
	case "pause":
		runtime.LockOSThread() // it does not get one instruction further
		defer runtime.UnlockOSThread()
		unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
	}
}
