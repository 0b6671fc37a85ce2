package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// onlyLost fails the test if a client was refused or waited in vain. What a process had accepted when it was killed is lost.
func onlyLost(t *testing.T, r load.Report) {
	t.Helper()
	for why, n := range r.RequestFailures {
		if why != "reset" && why != "closed" {
			t.Errorf("%d requests failed: %s\n%v", n, why, r.Err())
		}
	}
	if r.RequestsDue > 0 || r.RequestsOK == 0 {
		t.Errorf("%d requests due, %d answered", r.RequestsDue, r.RequestsOK)
	}
}

func TestCrashedApp_IsRestarted_AndClientsWait(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	l := s.load(load.Options{NewConnsPerSecond: 100, RequestTimeout: 30 * time.Second})
	for range 3 {
		beat(t, l)
		g := s.status().Generations[0]
		began := time.Now()
		s.run(fmt.Sprintf("kill -KILL %d", g.PID))
		until(t, "the app is back", func() bool {
			st := s.status()
			return st.State == api.StateServing && st.Generations[0].Number > g.Number
		})
		t.Logf("back %s after the kill", time.Since(began).Round(time.Millisecond))
	}
	beat(t, l)
	r := stopLoad(l)
	onlyLost(t, r)
	t.Logf("%d requests, %d failed %v, slowest %s", r.RequestsOK, r.RequestsFailed, r.RequestFailures, r.Latency.Slowest.Round(time.Millisecond))
	if got := s.consistent(); got != "1" {
		t.Errorf("release %s serves", got)
	}
}

// A release that keeps crashing soon after its upgrade is given up for the one before.
func TestCrashLoop_AfterAnUpgrade_GoesBack(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	s.push("2", soak("100ms"), more("[restart]\nbackoff = \"10ms\"\ncrashes = 2\n")).want(0)
	until(t, "release 1 is back", func() bool {
		st := s.status()
		for _, g := range st.Generations {
			if g.Release.Version == "2" && g.State == api.GenServing {
				s.run(fmt.Sprintf("kill -KILL %d || true", g.PID))
			}
		}
		return st.State == api.StateServing && st.Committed.Version == "1" && st.Upgrade == nil
	})
	if got := s.consistent(); got != "1" {
		t.Errorf("release %s serves", got)
	}
	c := s.hotdeploy("status", s.host).want(0).wantText("serving 1")
	t.Logf("%s", c)
}

func TestRollback_ToTheOneBefore_AndToAVersion(t *testing.T) {
	s := newService(t, common())
	l := (*load.Load)(nil)
	for _, v := range []string{"1", "2", "3"} {
		s.push(v).want(0)
		if l == nil {
			l = s.load(load.Options{WebSockets: 50, NewConnsPerSecond: 100})
		}
	}
	s.hotdeploy("rollback", s.host).want(0)
	s.serves("2")
	s.hotdeploy("rollback", s.host).want(0)
	s.serves("1")
	s.hotdeploy("rollback", s.host, "--to", "3").want(0)
	s.serves("3")
	c := s.hotdeploy("rollback", s.host, "--to", "7").want(3).wantText("7", "3 is serving", "hotdeploy releases")
	c.oneScreen()
	r := unnoticed(t, l)
	t.Logf("%s", r)
	if got := s.consistent(); got != "3" {
		t.Errorf("release %s is committed", got)
	}
}

// An operator may end one old generation, and only such a one.
func TestRetire_EndsOneDrainingGeneration(t *testing.T) {
	s := newService(t, common())
	s.base.More = "[drain]\nspread = \"300ms\"\n"
	s.push("1").want(0)
	l := s.load(load.Options{WebSockets: 40})
	s.push("2").want(0)
	s.hotdeploy("status", s.host).want(0).wantText("draining", "40")
	s.hotdeploy("retire", s.host, "2").want(3).wantText("state:")
	beat(t, l)
	s.hotdeploy("retire", s.host, "1").want(0)
	until(t, "generation 1 has ended", func() bool { return len(s.status().Generations) == 1 })
	if r := stopLoad(l); r.Kept != 0 || r.Closed != 40 {
		t.Errorf("%s, closed %d", r, r.Closed)
	}
	s.serves("2")
	s.hotdeploy("retire", s.host, "1").want(3)
}

func TestRestart_NothingIsNoticed_StopAndStart(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	l := s.load(load.Options{WebSockets: 100, NewConnsPerSecond: 200})
	s.hotdeploy("restart", s.host).want(0)
	beat(t, l)
	s.hotdeploy("restart", s.host).want(0)
	beat(t, l)
	if g := s.status().Generations[0]; g.Number != 3 || g.Release.Version != "1" {
		t.Errorf("generation %d of release %s serves", g.Number, g.Release.Version)
	}
	r := unnoticed(t, l)
	t.Logf("two restarts: %s, slowest request %s", r, r.Latency.Slowest.Round(time.Millisecond/10))

	s.hotdeploy("stop", s.host).want(0)
	if _, _, err := s.get("/version"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a stopped service answers %v", err)
	}
	s.hotdeploy("status", s.host).want(0).wantText("stopped")
	if out := s.run("systemctl status NAME | cat"); !strings.Contains(out, "stopped by an operator") {
		t.Errorf("systemctl status:\n%s", out)
	}
	s.run("systemctl restart NAME") // a stop holds until start, an upgrade or a boot
	s.hotdeploy("status", s.host).want(0).wantText("stopped")
	s.hotdeploy("start", s.host).want(0)
	s.serves("1")
	s.hotdeploy("stop", s.host).want(0)
	s.push("2").want(0)
	s.serves("2")
}

// Hosts are done one after another, and the first failure stops.
func TestPush_SeveralHosts_TheSecondFails(t *testing.T) {
	p := newProject(t)
	one, two := p.on(common()), p.on(other())
	p.hosts = []string{one.host, two.host}
	p.write()
	p.hotdeploy("setup", "all").want(0)
	p.hotdeploy("push", "--version", "1", "all").want(0)
	one.serves("1")
	two.serves("1")
	two.run("systemctl stop NAME")
	c := p.hotdeploy("push", "--version", "2", "all").want(6).wantText(one.host, two.host, "not running", "state: nothing is serving", "systemctl start")
	c.oneScreen()
	t.Logf("%s", c)
	one.serves("2")
	if out := two.run("readlink /srv/NAME/current; ls /srv/NAME/releases"); strings.Contains(out, "2") {
		t.Errorf("%s: %s", two.host, out)
	}
	two.run("systemctl start NAME")
	p.hotdeploy("push", "--version", "2", "all").want(0).wantText("already")
	two.serves("2")
	p.hotdeploy("status", "all").want(0).wantText(one.host, two.host)

	p.hosts = []string{two.host, one.host} // the first one fails: nothing was done anywhere
	p.write()
	two.run("systemctl stop NAME")
	p.hotdeploy("push", "--version", "3", "all").want(3)
	one.serves("2")
}

// Both lines are slow, so that whoever waited for the other one would be seen to.
func TestPush_SeveralHosts_ReceiveAtTheSameTime(t *testing.T) {
	p := newProject(t)
	hosts := []*service{p.on(common()), p.on(other())}
	p.hosts = []string{hosts[0].host, hosts[1].host}
	p.write()
	p.hotdeploy("setup", "all").want(0)
	for _, s := range hosts {
		must(t, s.vm.Rate(t.Context(), "20mbit"))
		t.Cleanup(func() { must(t, s.vm.Rate(context.Background(), "off")) })
	}
	c := p.hotdeploy("push", "--version", "1", "all").want(0)
	text := c.text()
	for _, s := range hosts {
		began, first := strings.Index(text, s.host+": uploading "), strings.Index(text, ": uploaded ")
		if began < 0 || first < 0 || began > first {
			t.Errorf("%s had to wait for the other one:\n%s", s.host, text)
		}
		s.serves("1")
	}
	t.Logf("%s", c)
}
