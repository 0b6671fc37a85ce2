package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// With systemd holding the sockets even a restart of the daemon refuses nobody: who comes meanwhile waits.
func TestSocketActivation_RestartOfTheUnit_ClientsWait(t *testing.T) {
	s := newProject(t).on(common())
	s.setup("--socket-activation").wantText(s.service + "-http.socket")
	s.push("1").want(0)
	if ls := s.status().Listeners; len(ls) != 1 || ls[0].Source != "systemd" {
		t.Errorf("listeners %+v", ls)
	}
	l := s.load(load.Options{NewConnsPerSecond: 100, RequestTimeout: 30 * time.Second})
	beat(t, l)
	began := time.Now()
	s.run("systemctl restart NAME.service")
	s.daemon.Close()
	beat(t, l)
	t.Logf("restarted and serving after %s", time.Since(began).Round(time.Millisecond))
	s.push("2").want(0)
	s.serves("2")
	s.run("systemctl kill -s KILL --kill-whom=all NAME.service")
	s.daemon.Close()
	until(t, "it serves after the kill", func() bool { st, err := s.askStatus(); return err == nil && st.State == "serving" })
	beat(t, l)
	r := stopLoad(l)
	onlyLost(t, r)
	t.Logf("%d requests, %d failed %v, slowest %s", r.RequestsOK, r.RequestsFailed, r.RequestFailures, r.Latency.Slowest.Round(time.Millisecond))
	if got := s.consistent(); got != "2" {
		t.Errorf("release %s serves", got)
	}
	if out := s.hotdeploy("setup", s.host, "--socket-activation").want(0).text(); !strings.Contains(out, "nothing to change") {
		t.Errorf("set up again:\n%s", out)
	}
}
