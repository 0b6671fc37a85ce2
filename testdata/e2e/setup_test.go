package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// maxExposure is what systemd-analyze security may say at most, lower is tighter.
const maxExposure = 3.0

// The way of the README, from a machine with nothing on it.
func TestSetup_BareMachine_ThenPush(t *testing.T) {
	p := newProject(t)
	s := p.on(bare())
	if out := s.run("ls /usr/local/bin /etc/hotdeploy /srv 2>&1 | grep -c hotdeploy; true"); out != "1" { // ls: cannot access /etc/hotdeploy
		t.Logf("the machine is not bare: %s", s.run("ls /usr/local/bin /etc/hotdeploy /srv; true"))
	}

	first := s.setup().wantText("installed /usr/local/bin/hotdeployd")
	t.Logf("set up in %s", first.took)
	s.checkFolders(s.service)
	if out := s.run("systemctl status NAME | cat"); !strings.Contains(out, "active (running)") || !strings.Contains(out, "no release yet") {
		t.Errorf("systemctl status:\n%s", out)
	}
	s.checkExposure()
	again := s.hotdeploy("setup", s.host).want(0).wantText("nothing to change")
	t.Logf("found nothing to change in %s", again.took)

	pushed := s.push("1").want(0)
	t.Logf("first push in %s: %s", pushed.took, phases(s.status().Last))
	s.serves("1")
	if out := s.run("systemctl status NAME | cat"); !strings.Contains(out, "serving 1 (generation 1)") {
		t.Errorf("systemctl status:\n%s", out)
	}
	s.hotdeploy("status", s.host).want(0).wantText("serving 1", "generation 1")
	s.hotdeploy("releases", s.host).want(0).wantText("1", "committed")
	s.hotdeploy("version", s.host).want(0).wantText("hotdeploy")
	s.hotdeploy("push", "--version", "1", s.host).want(0).wantText("already")

	s.push("2").want(0)
	s.hotdeploy("logs", s.host).want(0).wantText("wsecho: version 1 serving", "wsecho: version 2 serving")
	one := s.hotdeploy("logs", "--release", "1", s.host).want(0).wantText("wsecho: version 1 serving")
	if strings.Contains(one.text(), "version 2") {
		t.Errorf("logs --release 1 shows another release:\n%s", one.text())
	}
	s.consistent()
	s.asDeploy()
}

// asDeploy goes on as a user who is not root but may use sudo: setup lets him into the service's group.
func (s *service) asDeploy() {
	s.t.Helper()
	d := *s
	d.host = s.vm.Name + "-deploy"
	refused := d.push("3").want(3).wantText("may not use", "hotdeploy setup")
	refused.oneScreen()
	d.hotdeploy("setup", d.host).want(0).wantText("deploy")
	if groups := s.run("id -nG deploy"); !strings.Contains(groups+" ", s.service+" ") {
		s.t.Errorf("deploy is in the groups %s", groups)
	}
	s.app("three")
	d.push("3").want(0)
	d.serves("3")
	d.hotdeploy("status", d.host).want(0).wantText("serving 3")
	d.hotdeploy("logs", "--release", "3", d.host).want(0).wantText("version 3 serving")
	d.push("broken", env(`WSECHO_EXIT_AT_START = "true"`)).want(3).wantText("fatal: the database said no")
	d.hotdeploy("logs", "--release", "77", d.host).want(3).wantText("no line of release 77")

	s.run("gpasswd -d deploy systemd-journal") // now one who may push and no more
	d.push("broken", env(`WSECHO_EXIT_AT_START = "true"`)).want(3).wantText("before it was ready", "usermod -aG systemd-journal deploy")
	refused = d.hotdeploy("logs", "--release", "3", d.host).want(3).wantText("may not read the journal", "usermod -aG systemd-journal deploy")
	if out := refused.stdout.String(); out != "" {
		s.t.Errorf("standard output has %q", out)
	}
	s.hotdeploy("setup", s.host, "--deploy-user", "deploy").want(0).wantText("deploy may push, but not see", "--read-journal")
	s.hotdeploy("setup", s.host, "--deploy-user", "deploy", "--read-journal").want(0).wantText("added deploy to the group systemd-journal", "whole journal")
	d.hotdeploy("logs", "--release", "3", d.host).want(0).wantText("version 3 serving")
	d.hotdeploy("rollback", d.host).want(0)
	d.serves("2")
}

// checkFolders looks at what set-up made, by its modes and owners.
func (s *service) checkFolders(name string) {
	s.t.Helper()
	out := s.run(`cd /srv/NAME && stat -c '%n %U:%G %a' . releases incoming shared state env; stat -c '%n %U:%G %a' /etc/hotdeploy/NAME.toml /etc/systemd/system/NAME.service /run/NAME /run/NAME/control.sock /usr/local/bin/hotdeployd`)
	s.t.Logf("folders and files:\n%s", out)
	for _, want := range []string{
		"state N:N 700", "env N:N 600", "/run/NAME N:N 750", "/run/NAME/control.sock N:N 660",
		"/etc/systemd/system/NAME.service root:root 644", "/usr/local/bin/hotdeployd root:root 755",
	} {
		want = strings.NewReplacer("NAME", name, "N:N", name+":"+name).Replace(want)
		if !strings.Contains(out+"\n", want+"\n") {
			s.t.Errorf("no %q", want)
		}
	}
	if user := s.run("getent passwd NAME"); !strings.Contains(user, "nologin") {
		s.t.Errorf("the service's user may log in: %s", user)
	}
	if on := s.run("systemctl is-enabled NAME.service"); on != "enabled" {
		s.t.Errorf("the unit is %s", on)
	}
}

var exposureLine = regexp.MustCompile(`Overall exposure level for \S+: (\d+\.\d+)`)

func (s *service) checkExposure() {
	s.t.Helper()
	out := s.run("systemd-analyze security --no-pager NAME.service")
	m := exposureLine.FindStringSubmatch(out)
	if m == nil {
		s.t.Errorf("systemd-analyze security does not say the exposure:\n%s", out)
		return
	}
	level, err := strconv.ParseFloat(m[1], 64)
	if err != nil || level > maxExposure {
		s.t.Errorf("exposure %s, want at most %.1f:\n%s", m[1], maxExposure, out)
	}
	s.t.Logf("systemd-analyze security: %s", m[1])
}

// What init writes must be good enough to push, with the app's own two lines changed at most.
func TestInit_ItsFilePushes(t *testing.T) {
	s := newService(t, common())
	must(t, os.Remove(filepath.Join(s.dir, "hotdeploy.toml")))
	must(t, os.Rename(filepath.Join(s.dir, "bin", "wsecho"), filepath.Join(s.dir, "bin", s.service)))
	s.hotdeploy("init", "--service", s.service).want(0)
	text, err := os.ReadFile(filepath.Join(s.dir, "hotdeploy.toml"))
	must(t, err)
	changed := strings.NewReplacer(`":8080"`, `":`+strconv.Itoa(s.port)+`"`, `#duration = "10s"`, `duration = "300ms"`).Replace(string(text))
	s.file("hotdeploy.toml", []byte(changed))
	s.hotdeploy("push", "--version", "1", s.host).want(0)
	s.serves("1")
	s.hotdeploy("init").want(2).wantText("hotdeploy.toml")
}
