package systemd

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Notifier tells the service manager that started this process how it is
// doing. The zero value is ready for use, also by several goroutines. Without
// NOTIFY_SOCKET in the environment every method does nothing and returns nil.
//
// A method blocks while the manager's queue is full, which is to say while
// PID 1 itself hangs; nothing that must go on should wait for it.
type Notifier struct{}

// Enabled reports whether somebody listens at all.
func (Notifier) Enabled() bool { return os.Getenv("NOTIFY_SOCKET") != "" }

// Ready says that start-up is over, and with what result in the words of an
// operator. An empty status leaves the status text as it is.
func (n Notifier) Ready(status string) error {
	return n.send(daemon.SdNotifyReady, statusLine(status))
}

// Status replaces the text that `systemctl status` shows.
func (n Notifier) Status(status string) error { return n.send(statusLine(status)) }

// Stopping says that the process is on its way out. An empty status leaves
// the status text as it is.
func (n Notifier) Stopping(status string) error {
	return n.send(daemon.SdNotifyStopping, statusLine(status))
}

// Watchdog is the sign of life that is due within every WatchdogInterval.
func (n Notifier) Watchdog() error { return n.send(daemon.SdNotifyWatchdog) }

// ExtendTimeout asks for d from now on before start-up or shutdown counts as
// hung. It may be repeated.
func (n Notifier) ExtendTimeout(d time.Duration) error {
	if d <= 0 {
		return fmt.Errorf("notify systemd: extend the timeout by %v: not a positive time", d)
	}
	return n.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
}

// MainPID makes pid the main process of the unit. systemd follows it from
// then on, and takes our own end for the end of any other process.
func (n Notifier) MainPID(pid int) error {
	if pid <= 0 {
		return fmt.Errorf("notify systemd: main process %d: not a process id", pid)
	}
	return n.send(fmt.Sprintf("MAINPID=%d", pid))
}

// send puts all lines into one datagram, so that the receiver sees them at
// the same instant.
func (Notifier) send(lines ...string) error {
	var set []string
	for _, l := range lines {
		if l != "" {
			set = append(set, l)
		}
	}
	if len(set) == 0 {
		return nil
	}
	if _, err := daemon.SdNotify(false, strings.Join(set, "\n")); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// statusLine keeps a text on one line: a newline in it would start a message
// of its own.
func statusLine(text string) string {
	if text == "" {
		return ""
	}
	return "STATUS=" + clip(printable(text), maxStatus)
}

// WatchdogInterval is how often Watchdog is to be called: half the time after
// which systemd takes this process for hung. Zero means that nobody watches.
func WatchdogInterval() (time.Duration, error) {
	d, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0, fmt.Errorf("watchdog: %w", err)
	}
	return d / 2, nil
}

// protocolVariables are meant for one process: whoever inherits them would
// take the parent's sockets, watchdog or journal stream for its own.
var protocolVariables = []string{
	"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "MAINPID", "MANAGERPID",
	"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID",
	"FDSTORE", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "TABLEFLIP_HAS_PARENT_7DIU3",
}

// CleanEnviron returns environ (KEY=value lines) without the variables by
// which systemd speaks to this very process. What remains may be handed on
// to a child.
func CleanEnviron(environ []string) []string {
	clean := make([]string, 0, len(environ))
	for _, line := range environ {
		if key, _, _ := strings.Cut(line, "="); !isProtocolVariable(key) {
			clean = append(clean, line)
		}
	}
	return clean
}

func isProtocolVariable(key string) bool {
	for _, v := range protocolVariables {
		if key == v {
			return true
		}
	}
	return false
}

// ErrMalformed says that a notify message was not understood. It is about
// that one message: the next one may be fine.
var ErrMalformed = errors.New("malformed notify message")
