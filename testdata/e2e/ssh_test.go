package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

// Where sshd forwards no unix sockets the command goes through `hotdeployd dial`.
func TestForwardingForbidden_UsesDial(t *testing.T) {
	s := newService(t, common())
	must(t, s.vm.ForbidSocketForwarding(t.Context(), true))
	t.Cleanup(func() { must(t, s.vm.ForbidSocketForwarding(context.Background(), false)) })
	s.push("1").want(0)
	s.serves("1")
	s.hotdeploy("status", s.host).want(0).wantText("serving 1")
	s.hotdeploy("rollback", s.host).want(3).wantText("no release to go to")
	s.run("systemctl stop NAME")
	s.hotdeploy("status", s.host).want(3).wantText("not running", "systemctl start "+s.service)
}

func TestCtrlC_BeforeTheUpgrade_NothingChanged(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	s.bulk()
	l, config := newLine(t, s.vm)
	s.sshConfig = config
	reached := make(chan struct{})
	l.cutAfter(1<<20, func() { l.silence(); close(reached) }) // in the middle of the upload, which then waits for us
	c := s.startPush("2")
	<-reached
	c.interrupt()
	l.restore()
	c.want(3).wantText("cancelled before the upgrade", "state:", "hint:").oneScreen()
	t.Logf("%s", c)
	if got := s.consistent(); got != "1" {
		t.Errorf("release %s serves", got)
	}
	s.push("2").want(0)
	s.serves("2")
}

func TestCtrlC_InTheSoak_IsTakenBack(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	m := s.at(api.PhaseSoak)
	c := s.startPush("2", soak("60s"))
	must(t, m.wait())
	c.interrupt()
	c.want(4).wantText("cancelled in phase soak", "taken back", "state:").oneScreen()
	t.Logf("%s", c)
	if got := s.consistent(); got != "1" {
		t.Errorf("release %s serves", got)
	}
	if last := s.quiet(); last.Outcome != api.RolledBack {
		t.Errorf("the daemon says %+v", last)
	}
}

func TestHostKey_UnknownOrChanged_Stops(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	key := func() string { k, err := s.vm.HostKey(); must(t, err); return k }()
	stranger, err := other().HostKey()
	must(t, err)
	_, strangers, _ := strings.Cut(stranger, " ")
	names, _, _ := strings.Cut(key, " ")
	for name, c := range map[string]struct {
		known string
		words []string
	}{
		"unknown": {"", []string{"unknown", "SHA256:", "compare the fingerprint"}},
		"changed": {names + " " + strangers + "\n", []string{"has changed", "SHA256:", "ssh-keygen", "-R"}},
	} {
		t.Run(name, func(t *testing.T) {
			known := filepath.Join(t.TempDir(), "known_hosts")
			must(t, os.WriteFile(known, []byte(c.known), 0o600))
			config, err := os.ReadFile(world.SSHConfig())
			must(t, err)
			path := filepath.Join(t.TempDir(), "ssh_config")
			must(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(config), world.KnownHosts(), known)), 0o600))
			push := start(t, s.dir, program(), "--ssh-config", path, "push", "--version", "2", s.host)
			push.want(3).wantText(append(c.words, "state:", "hint:")...).oneScreen()
			t.Logf("%s", push)
			after, err := os.ReadFile(known)
			must(t, err)
			if string(after) != c.known {
				t.Errorf("known_hosts was changed to %q", after)
			}
		})
	}
	if got := s.consistent(); got != "1" {
		t.Errorf("release %s serves", got)
	}
}
