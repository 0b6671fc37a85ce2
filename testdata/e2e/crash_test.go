package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/testdata/apps"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// newLiveService is one whose app takes its listener from the SDK.
func newLiveService(t *testing.T) *service {
	t.Helper()
	p := newProject(t)
	p.place(apps.Build(t, "wslive", "", ""), "bin/wslive")
	p.base.Command = `["bin/wslive"]`
	s := p.on(common())
	s.setup()
	return s
}

// killDaemon ends the supervisor with SIGKILL, and nothing else.
func (s *service) killDaemon() (pid string) {
	s.t.Helper()
	pid = s.daemonPID()
	s.run("kill -9 " + pid)
	return pid
}

func (s *service) daemonPID() string { return s.run("systemctl show -P MainPID NAME") }

// awaitDaemon waits until another supervisor than that one answers.
func (s *service) awaitDaemon(other string) api.Status {
	s.t.Helper()
	var st api.Status
	until(s.t, "a supervisor answers again", func() bool {
		var err error
		st, err = s.askStatus()
		return err == nil && fmt.Sprint(st.Daemon.PID) != other
	})
	return st
}

// processes are those of the service's user, one a line.
func (s *service) processes() string { return s.run("ps -o pid=,args= -u NAME || true") }

func (s *service) stored() string { return s.run("systemctl show -P NFileDescriptorStore NAME") }

func TestKilled_UnderSystemd_NobodyNotices(t *testing.T) {
	s := newLiveService(t)
	s.push("1").want(0)
	websockets, perSecond, kills, duringUpgrades := 300, 100, 12, 4
	if *soaking {
		websockets, perSecond, kills, duringUpgrades = 1000, 200, 40, 10
	}
	l := s.load(load.Options{WebSockets: websockets, NewConnsPerSecond: perSecond, Held: load.MayMove})
	first := s.status().Generations[0]
	for range kills {
		<-time.After(rand.N(200 * time.Millisecond)) // at any moment
		s.awaitDaemon(s.killDaemon())
	}
	st := s.status()
	if g := st.Generations[0]; g.Number != first.Number || g.PID != first.PID || len(st.Generations) != 1 {
		t.Errorf("generation %+v\nwas %+v", g, first)
	}
	if a := strings.Join(st.Daemon.Adopted, "\n"); !strings.Contains(a, "generation 1 (1, serving), 1 listener") || strings.Contains(a, "lost") {
		t.Errorf("it tells %q", a)
	}
	if got := s.stored(); got != "4" {
		t.Errorf("%s descriptors in the fd store, want those of a listener, a process, its channel and the notify socket", got)
	}
	for i := range duringUpgrades {
		version := fmt.Sprint(i + 2)
		m := s.at(api.PhaseVerify)
		c := s.startPush(version)
		must(t, m.wait())
		<-time.After(rand.N(900 * time.Millisecond)) // an upgrade takes some 800 ms
		s.awaitDaemon(s.killDaemon())
		c.within(patience)
		last := s.quiet()
		t.Logf("the push of %s ended with %d; the daemon says %s", version, c.status(), phases(last))
		s.truthful(c, s.consistent(), version)
	}
	s.push("last").want(0)
	report := unnoticed(t, l)
	t.Logf("%s", report)
	s.run("systemctl stop NAME")
	if left := s.processes(); left != "" {
		t.Errorf("after the stop there is\n%s", left)
	}
}

func TestStop_UnderSystemd_LeavesNothing(t *testing.T) {
	s := newLiveService(t)
	for name, do := range map[string]func(){
		"in order": func() {},
		"in order, by a supervisor that systemd has not started": func() {
			pid := s.daemonPID()
			s.run("hotdeployd replace --service NAME")
			s.awaitDaemon(pid)
		},
		"the supervisor hangs": func() {
			s.run("(while kill -STOP " + s.daemonPID() + "; do sleep 0.01; done) >/dev/null 2>&1 &") // systemd would wake it with the SIGTERM
		},
		"the supervisor was just killed": func() { s.killDaemon() },
		"no supervisor comes back": func() {
			s.run("mv /etc/hotdeploy/NAME.toml /etc/hotdeploy/NAME.away")
			s.killDaemon()
			until(t, "it has failed to start", func() bool { return s.run("systemctl show -P NRestarts NAME") >= "2" })
		},
		"the supervisor is to come back much later": func() {
			s.run("sed -i s/RestartSec=.*/RestartSec=1h/ /etc/systemd/system/NAME.service.d/test.conf; systemctl daemon-reload")
			s.killDaemon()
			until(t, "systemd waits", func() bool { return s.run("systemctl show -P SubState NAME") == "auto-restart" })
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.under(t)
			s.run("mkdir -p /etc/systemd/system/NAME.service.d; printf '[Service]\nTimeoutStopSec=7s\nRestartSec=500ms\n' >/etc/systemd/system/NAME.service.d/test.conf; systemctl daemon-reload; systemctl start NAME")
			s.awaitDaemon("")
			s.push(fmt.Sprint(serial.Add(1))).want(0)
			do()
			if p := s.processes(); !strings.Contains(p, "bin/wslive") {
				t.Errorf("the app did not survive:\n%s", p)
			}
			answered := make(chan error, 1)
			go func() {
				_, _, err := s.get("/slow?for=2s")
				answered <- err
			}()
			until(t, "the request is in flight", func() bool { return s.run(fmt.Sprintf("ss -Htn state established sport = :%d", s.port)) != "" })
			began := time.Now()
			s.run("systemctl stop NAME")
			until(t, "no process is left", func() bool { return s.processes() == "" })
			t.Logf("nothing left after %s", time.Since(began).Round(time.Millisecond))
			if state := s.run("systemctl show -P ActiveState NAME"); state != "inactive" && state != "failed" {
				t.Errorf("the unit is %s", state)
			}
			if err := <-answered; err != nil {
				t.Errorf("the request that was in flight: %v", err)
			}
			s.run("[ ! -e /etc/hotdeploy/NAME.away ] || mv /etc/hotdeploy/NAME.away /etc/hotdeploy/NAME.toml; systemctl reset-failed NAME || true")
		})
	}
}

// What an operator does to systemd itself, and to the unit.
func TestRestart_ReloadReexec_UnderSystemd(t *testing.T) {
	s := newLiveService(t)
	s.push("1").want(0)
	l := s.load(load.Options{WebSockets: 50, NewConnsPerSecond: 50, Held: load.MayMove})
	before := s.status()
	s.run("systemctl daemon-reload; systemctl daemon-reexec")
	st := s.status()
	if st.Daemon.PID != before.Daemon.PID || st.Generations[0].PID != before.Generations[0].PID {
		t.Errorf("after reload and reexec: %+v", st)
	}
	s.awaitDaemon(s.killDaemon())
	if st = s.status(); st.Generations[0].PID != before.Generations[0].PID || strings.Contains(strings.Join(st.Daemon.Adopted, "\n"), "lost") {
		t.Errorf("after a crash after that: %+v", st)
	}
	unnoticed(t, l)

	l = s.load(load.Options{NewConnsPerSecond: 100}) // a restart ends the app; those who come meanwhile wait
	s.run("systemctl restart NAME")
	s.servesAgain()
	if st = s.status(); st.Generations[0].PID == before.Generations[0].PID {
		t.Error("the restart did not restart the app")
	}
	r := stopLoad(l)
	b, _ := json.Marshal(r.RequestFailures)
	t.Logf("during the restart: %d answered, failed %s", r.RequestsOK, b)
	if r.RequestFailures["refused"] > 0 {
		t.Errorf("clients were refused: %s", b)
	}
}

func (s *service) servesAgain() {
	s.t.Helper()
	until(s.t, "it serves", func() bool { st, err := s.askStatus(); return err == nil && st.State == api.StateServing })
}

// A supervisor that hangs for good: the watchdog ends it, and the app goes on meanwhile. Whoever does not wait for that restarts the unit, or the machine.
func TestHung_UnderSystemd(t *testing.T) {
	s := newLiveService(t)
	s.push("1").want(0)
	s.dropIn("WatchdogSec=10s\nTimeoutAbortSec=2s")
	s.awaitDaemon(s.killDaemon())
	l := s.load(load.Options{WebSockets: 50, NewConnsPerSecond: 50, Held: load.MayMove})
	before, pid := s.status(), s.daemonPID()
	began := time.Now()
	s.run("kill -STOP " + pid)
	s.awaitDaemon(pid)
	t.Logf("hung, with a watchdog of 10s and 2s to abort: another one answers after %s", time.Since(began).Round(time.Millisecond))
	if st := s.status(); st.Generations[0].PID != before.Generations[0].PID || len(st.Generations) != 1 {
		t.Errorf("it was %+v, is %+v", before.Generations, st.Generations)
	}
	t.Logf("%s", unnoticed(t, l))

	s.dropIn("WatchdogSec=30s")
	app := s.status().Generations[0].PID
	s.run("kill -STOP " + s.daemonPID())
	began = time.Now()
	s.run("systemctl restart NAME")
	s.servesAgain()
	t.Logf("hung, and restarted: it serves after %s", time.Since(began).Round(time.Millisecond))
	if p := s.processes(); strings.Contains(p+"\n", fmt.Sprintf("%d ", app)) {
		t.Errorf("the app of before is still there:\n%s", p)
	}
	s.serves("1")
}

// dropIn changes the unit as an operator would.
func (s *service) dropIn(lines string) {
	s.t.Helper()
	s.run("mkdir -p /etc/systemd/system/NAME.service.d; printf '[Service]\n" + lines + "\n' >/etc/systemd/system/NAME.service.d/test.conf; systemctl daemon-reload")
}
