package systemd

import (
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

func TestNotifier_WithoutSystemd_DoesNothing(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	var n Notifier
	if n.Enabled() {
		t.Error("enabled without NOTIFY_SOCKET")
	}
	for name, err := range map[string]error{
		"Ready":         n.Ready("serving"),
		"Status":        n.Status("serving"),
		"Stopping":      n.Stopping(""),
		"Watchdog":      n.Watchdog(),
		"ExtendTimeout": n.ExtendTimeout(time.Second),
		"MainPID":       n.MainPID(1),
	} {
		if err != nil {
			t.Errorf("%s without systemd: %v", name, err)
		}
	}
}

func TestNotifier_SystemdIsGone_IsAnError(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", t.TempDir()+"/nobody")
	if err := (Notifier{}).Ready(""); err == nil {
		t.Error("no error though nobody listens")
	}
}

func TestNotifier_RefusesNonsense(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := (Notifier{}).ExtendTimeout(-1); err == nil {
		t.Error("a negative time was accepted")
	}
	if err := (Notifier{}).MainPID(0); err == nil {
		t.Error("pid 0 was accepted")
	}
}

func TestWatchdogInterval(t *testing.T) {
	self := strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
		wantErr   bool
	}{
		{"", "", 0, false},
		{"3000000", "", 1500 * time.Millisecond, false},
		{"3000000", self, 1500 * time.Millisecond, false},
		{"3000000", "1", 0, false},
		{"soon", self, 0, true},
		{"-1", self, 0, true},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		if got, err := WatchdogInterval(); got != c.want || (err != nil) != c.wantErr {
			t.Errorf("WATCHDOG_USEC=%q WATCHDOG_PID=%q: %v, %v; want %v", c.usec, c.pid, got, err, c.want)
		}
	}
}

func TestCleanEnviron(t *testing.T) {
	environ := []string{
		"PATH=/usr/bin", "NOTIFY_SOCKET=/run/systemd/notify", "LISTEN_FDS=1", "LISTEN_PID=1", "LISTEN_FDNAMES=web",
		"LISTEN_FDS_OF_MINE=kept", "WATCHDOG_USEC=1", "JOURNAL_STREAM=8:1", "INVOCATION_ID=kept", "odd",
	}
	want := []string{"PATH=/usr/bin", "LISTEN_FDS_OF_MINE=kept", "INVOCATION_ID=kept", "odd"}
	if got := CleanEnviron(environ); !slices.Equal(got, want) {
		t.Errorf("CleanEnviron = %q, want %q", got, want)
	}
}
