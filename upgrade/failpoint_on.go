//go:build failpoints

package upgrade

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// broken is what UPGRADE_FAILPOINT asks for: NAME=ACTION[@N], at the Nth time (default 1) that NAME is reached: kill (this process, at once),
// stop (SIGSTOP: it hangs until somebody ends it). Or @FILE: that is in a file, if there is one by then, since a process and the one that follows it have
// one environment.
var broken struct {
	name, action string
	left         atomic.Int64
}

func init() {
	asked := os.Getenv("UPGRADE_FAILPOINT")
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
	broken.name, broken.action = name, action
	broken.left.Store(int64(n))
}

func failpoint(name string) {
	if name != broken.name {
		return
	}
	switch left := broken.left.Add(-1); {
	case left > 0:
		return
	case left < 0:
		select {} // the process is about to end: whoever comes after the one that ends it must not get further
	}
	fmt.Fprintf(os.Stderr, "failpoint %s: %s\n", name, broken.action)
	switch broken.action {
	case "kill":
		unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	case "stop":
		unix.Kill(os.Getpid(), unix.SIGSTOP)
		select {} // the signal may strike a moment later
	}
}
