package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// ofVersion is a daemon that calls itself so.
func ofVersion(t *testing.T, version string) string {
	return variant(t, "cmd/hotdeployd", edit{"internal/version/version.go", `number = ""`, `number = "` + version + `"`})
}

// setsUp brings that daemon with hotdeploy setup, and returns which process is the main one then.
func (s *service) setsUp(daemon string) (pid string) {
	s.t.Helper()
	before := s.daemonPID()
	s.hotdeploy("setup", s.host, "--daemon", daemon).want(0).wantText("process "+before+" made way for", "the app runs on")
	s.awaitDaemon(before)
	return s.daemonPID()
}

// Twenty daemons in a row, each of which takes over from the one before, newer and older ones in turn, as an operator brings them.
func TestReplaced_UnderSystemd_NobodyNotices(t *testing.T) {
	s := newLiveService(t)
	s.push("1").want(0)
	l := s.load(load.Options{WebSockets: 100, NewConnsPerSecond: 50, Held: load.MayMove})
	before := s.status()
	daemons := []string{ofVersion(t, "2.0"), ofVersion(t, "1.0")}
	for i := range 20 {
		pid := s.daemonPID()
		if i < 4 {
			s.setsUp(daemons[i%2])
		} else { // what hotdeploy setup does on the host
			s.run("hotdeployd replace --service NAME")
		}
		st := s.awaitDaemon(pid)
		if want := []string{"2.0", "1.0", "2.0", "1.0"}[min(i, 3)]; st.Daemon.Version != want || s.daemonPID() != fmt.Sprint(st.Daemon.PID) {
			t.Fatalf("it is %+v, main process %s; want version %s", st.Daemon, s.daemonPID(), want)
		}
	}
	pid := s.daemonPID()
	s.hotdeploy("setup", s.host, "--daemon", daemons[1]).want(0).wantText("nothing to change")
	st := s.status()
	if st.Generations[0].PID != before.Generations[0].PID || fmt.Sprint(st.Daemon.PID) != pid || len(st.Daemon.Adopted) != 1 {
		t.Errorf("after twenty: main process %s, %+v", pid, st)
	}
	if restarts := s.run("systemctl show -P NRestarts NAME"); restarts != "0" {
		t.Errorf("systemd restarted it %s times", restarts)
	}
	s.awaitDaemon(s.killDaemon()) // and the last one is as good as the first
	s.push("2").want(0)
	t.Logf("%s", unnoticed(t, l))
	s.run("systemctl stop NAME")
	if left := s.processes(); left != "" {
		t.Errorf("after the stop there is\n%s", left)
	}
}

// A daemon that cannot go on is not the one that runs, and not the one that is installed either.
func TestReplaced_ByOneThatCannot_NothingChanges(t *testing.T) {
	s := newLiveService(t)
	s.push("1").want(0)
	l := s.load(load.Options{WebSockets: 50, NewConnsPerSecond: 50, Held: load.MayMove})
	good := variant(t, "cmd/hotdeployd", edit{"supervisor/replace.go", "replaceTimeout = 30 *", "replaceTimeout = 3 *"})
	broken := variant(t, "cmd/hotdeployd", edit{"supervisor/store/state.go", "StateFormat = 1", "StateFormat = 0"}, edit{"cmd/hotdeployd/main.go", "func main() {", `func main() {
	switch how, _ := os.ReadFile("/run/broken"); os.Args[1] + string(how) {
	case "versionat all", "runat once":
		os.Exit(7)
	case "runhangs":
		syscall.Pause()
	}
`})
	s.setsUp(good)
	before, installed := s.status(), s.run("sha256sum /usr/local/bin/hotdeployd")
	for how, says := range map[string]string{"at once": "exit status 7", "hangs": "timed out", "at all": "does not run on this host", "state": "newer hotdeployd"} {
		t.Run(how, func(t *testing.T) {
			s := s.under(t)
			s.run("printf '" + how + "' >/run/broken")
			c := s.hotdeploy("setup", s.host, "--daemon", broken).want(3)
			c.wantText(says, "state:", "hint:", "hotdeploy setup "+s.host).oneScreen()
			t.Logf("%s", c)
			if got := s.run("sha256sum /usr/local/bin/hotdeployd"); got != installed {
				t.Errorf("installed is %s, it was %s", got, installed)
			}
			if st := s.status(); st.Daemon.PID != before.Daemon.PID || st.Generations[0].PID != before.Generations[0].PID {
				t.Errorf("it is %+v", st)
			}
			s.hotdeploy("setup", s.host, "--daemon", good).want(0).wantText("nothing to change")
		})
	}
	s.awaitDaemon(s.killDaemon())
	s.push("2").want(0)

	// One that knows nothing of it can only be restarted.
	s.setsUp(variant(t, "cmd/hotdeployd", edit{"supervisor/server.go", `"POST /daemon/replace"`, `"POST /gone"`}))
	c := s.hotdeploy("setup", s.host).want(3).wantText("too old", "state:", "hotdeploy restart --daemon "+s.host)
	c.oneScreen()
	t.Logf("%s", c)
	s.hotdeploy("setup", s.host).want(3).wantText("too old")
	s.serves("2")
	t.Logf("%s", unnoticed(t, l))
	s.hotdeploy("restart", "--daemon", s.host).want(0)
	s.hotdeploy("setup", s.host).want(0).wantText("nothing to change")
	until(t, "it serves again", func() bool { st, err := s.askStatus(); return err == nil && st.State == api.StateServing })
	s.serves("2")
}

// A unit that changed with the daemon is read, and what of it only a restart brings is told, until there was one.
func TestReplaced_UnitChangedToo_SaysWhatWaits(t *testing.T) {
	s := newLiveService(t)
	s.push("1").want(0)
	l := s.load(load.Options{WebSockets: 20, NewConnsPerSecond: 20, Held: load.MayMove})
	lowPort := "\n[[listen]]\nname = \"low\"\naddress = \":81\"\n"
	s.base.More = lowPort
	s.write()
	before, newer := s.daemonPID(), ofVersion(t, "2.0")
	c := s.hotdeploy("setup", s.host, "--daemon", newer).want(0)
	c.wantText("process "+before+" made way for", "updated /etc/systemd/system/", "restart needed", "capabilities", "sandbox", "hotdeploy restart --daemon "+s.host).oneScreen()
	t.Logf("%s", c)
	if reload := s.run("systemctl show -P NeedDaemonReload NAME"); reload != "no" {
		t.Error("systemd has not read the unit")
	}
	s.hotdeploy("setup", s.host, "--daemon", newer).want(0).wantText("nothing to change", "capabilities")
	if a := strings.Join(s.status().Daemon.Adopted, "\n"); !strings.Contains(a, "generation 1 (1, serving)") {
		t.Errorf("it tells %q", a)
	}
	unnoticed(t, l)
	s.hotdeploy("restart", "--daemon", s.host).want(0)
	again := s.hotdeploy("setup", s.host, "--daemon", newer).want(0).wantText("nothing to change")
	if strings.Contains(again.text(), "restart") {
		t.Errorf("after the restart it still says\n%s", again.text())
	}
	s.base.More = ""
	s.push("2").want(0)
}
