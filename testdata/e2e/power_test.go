package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/remote"
	"github.com/hotdeploy/hotdeploy/testdata/apps"
)

func (s *service) crash() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(s.t, s.vm.Crash(ctx))
	s.daemon.Close() // connections to a machine that is no more
}

func (s *service) boot() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(s.t, s.vm.Start(ctx))
	until(s.t, "the committed release serves after the boot", func() bool { _, _, err := s.get("/version"); return err == nil })
}

func TestReboot_CommittedReleaseServes(t *testing.T) {
	s := newService(t, other())
	s.push("1").want(0)
	s.push("2").want(0)
	s.run("kill -STOP " + s.daemonPID()) // which must not hold the machine up
	began := time.Now()
	must(t, s.vm.Reboot(t.Context()))
	until(t, "it serves after the reboot", func() bool { _, _, err := s.get("/version"); return err == nil })
	t.Logf("it serves %s after the reboot was asked for", time.Since(began).Round(time.Millisecond))
	if got := s.consistent(); got != "2" {
		t.Errorf("release %s serves after the reboot, want 2", got)
	}
	s.hotdeploy("status", s.host).want(0).wantText("serving 2")
	s.hotdeploy("rollback", s.host).want(0)
	s.serves("1")
	// An operator's stop lasts until the machine boots anew. The lab's machines have their boot id by a mount in /proc, which
	// the fresh /proc of a sandbox does not show: what makes one goes, for this once.
	must(t, s.vm.WriteFile(t.Context(), "/etc/systemd/system/"+s.service+".service.d/lab.conf",
		[]byte("[Service]\nProtectProc=default\nProtectKernelTunables=no\nProtectControlGroups=no\n"), 0o644))
	s.run("systemctl daemon-reload && systemctl restart NAME")
	until(t, "the daemon answers", func() bool { _, err := s.askStatus(); return err == nil })
	s.hotdeploy("stop", s.host).want(0)
	must(t, s.vm.Reboot(t.Context()))
	until(t, "it serves after the reboot", func() bool { _, _, err := s.get("/version"); return err == nil })
	s.serves("1")
}

// uploaded is how many bytes of uploads have arrived on the machine.
func (s *service) uploaded() int64 {
	s.t.Helper()
	n, err := strconv.ParseInt(s.run(`find /srv/NAME/incoming \( -path '*/parts/*' -o -name 'bundle-*' \) -type f -printf '%s\n' | awk '{n += $1} END {print n+0}'`), 10, 64)
	must(s.t, err)
	return n
}

func TestPowerCut_DuringUpload(t *testing.T) {
	s := newService(t, other())
	const size, enough = 16 << 20, 6 << 20
	s.push("1").want(0)
	s.base.Files = `["bin/**", "data/**"]`
	big := make([]byte, size)
	_, err := randomBytes(big)
	must(t, err)
	s.file("data/big", big)
	l, config := newLine(t, s.vm)
	s.sshConfig = config
	reached := make(chan struct{})
	l.cutAfter(size/2, func() { l.silence(); close(reached) })
	c := s.startPush("2")
	select {
	case <-reached:
	case <-c.ended:
		t.Fatalf("the push ended before it was halfway:\n%s", c.text())
	}
	until(t, "some of the upload is there", func() bool { return s.uploaded() > enough })
	s.crash()
	s.boot()
	arrived := s.uploaded()
	l.restore()
	c.within(patience)
	if st := c.status(); st != 3 && st != 5 {
		t.Errorf("the push that lost its host ended with %d, want 3 or 5", st)
	}
	is := s.look()
	if s.consistent() != "1" || !slices.Equal(is.releases, []string{"1"}) || arrived == 0 {
		t.Errorf("after the boot: %+v, %d bytes of the upload", is, arrived)
	}
	s.hotdeploy("status", s.host).want(0).wantText("serving 1")

	before := l.total()
	s.push("2").want(0)
	sent := l.total() - before
	t.Logf("%d bytes had arrived at the power cut; the next push sent %d", arrived, sent)
	if most := size - arrived + remote.Rewind + 256<<10; sent > most {
		t.Errorf("the next push sent %d bytes although %d were there, want at most %d", sent, arrived, most)
	}
	if got := s.consistent(); got != "2" {
		t.Errorf("release %s is committed, want 2", got)
	}
}

// pausing is a daemon that stops for ever at the step that the file pause-at of its service names, and says so by that file's name.
func (s *service) pausing(version string) string {
	s.t.Helper()
	const at = "func At(name string) {\n"
	pause := s.named(`	const at = "/srv/NAME/shared/pause-at"
	if b, _ := os.ReadFile(at); string(b) == name && os.Rename(at, "/srv/NAME/shared/paused") == nil {
		select {}
	}
`)
	return variant(s.t, "cmd/hotdeployd", edit{"internal/failpoint/failpoint.go", at, at + pause},
		edit{"internal/version/version.go", `number = ""`, `number = "` + version + `"`})
}

// arm lets the daemon stop at a step, and pauses waits until it has.
func (s *service) arm(step string) {
	s.run("rm -f /srv/NAME/shared/paused; printf '%s' '" + step + "' >/srv/NAME/shared/pause-at.new && mv /srv/NAME/shared/pause-at.new /srv/NAME/shared/pause-at")
}

func (s *service) pauses(step string) {
	s.t.Helper()
	until(s.t, "the daemon is at the step "+step, func() bool { return s.run("ls /srv/NAME/shared") == "paused" })
}

// Steps where something changes: of the rebuilding of a release out of a difference, and of an upgrade. Without -soak some of them are tried.
var powerSteps = []struct {
	step string
	soak bool
}{
	{"placed", true}, {"publish", false}, {"published", false}, {"synced", true},
	{"verify", true}, {"start", true}, {"started", false}, {"born", true}, {"recorded", true}, {"ready", false},
	{"handoff", false}, {"handed over", true}, {"soak", false}, {"soaked", true}, {"commit", false}, {"committed", false}, {"promoted", true}, {"pointed", false},
	{"drain", true}, {"conclude", true}, {"in history", false}, {"remembered", true}, {"prune", false},
}

// The plug is pulled exactly at a step.
func TestPowerCut_DuringUpgrade(t *testing.T) {
	p := newProject(t)
	p.place(apps.Build(t, "wslive", "", ""), "bin/wslive")
	p.base.Command, p.base.More = `["bin/wslive"]`, "[releases]\nkeep = 2\n"
	s := p.on(other())
	s.setup("--daemon", s.pausing("1.0"))
	s.push("1").want(0)
	for i, cut := range powerSteps {
		if cut.soak && !*soaking {
			continue
		}
		version := fmt.Sprint(i + 2)
		t.Run(strings.ReplaceAll(cut.step, " ", "_"), func(t *testing.T) {
			s := s.under(t)
			s.file("bin/data", []byte(version))
			before := s.consistent()
			s.arm(cut.step)
			c := s.startPush(version)
			s.pauses(cut.step)
			s.powerCut()
			c.within(patience)
			now := s.consistent()
			if last := s.quiet(); now != before && now != version || last != nil && last.To.Version == version && (last.Outcome == api.Done) != (now == version) {
				t.Errorf("release %s serves; it was %s, and %s was pushed; the daemon says of the last upgrade %+v", now, before, version, last)
			}
			s.truthful(c, before, version)
			s.hotdeploy("status", s.host).want(0).wantText("serving " + now)
			t.Logf("cut at %s: %s serves, it was %s, and the push of %s ended with %d", cut.step, now, before, version, c.status())
			if now != version {
				s.push(version).want(0)
			}
		})
	}
}

// powerCut cuts the power, boots, and looks for what is half there.
func (s *service) powerCut() {
	s.t.Helper()
	s.crash()
	s.boot()
	s.quiet()
	if left := s.run("cd /srv/NAME; ls -1dA .[!.]* state/.[!.]* releases/.[!.]* 2>/dev/null; true"); left != "" {
		s.t.Errorf("half there after the boot: %s", left)
	}
}

func TestPowerCut_WhileTheDaemonIsReplaced(t *testing.T) {
	s := newProject(t).on(other())
	daemons := []string{s.pausing("1.0"), s.pausing("2.0")}
	s.setup("--daemon", daemons[0])
	s.push("1").want(0)
	for i, step := range []string{"replace", "proved", "main pid", "gone"} {
		t.Run(strings.ReplaceAll(step, " ", "_"), func(t *testing.T) {
			s := s.under(t)
			daemon, version := daemons[(i+1)%2], fmt.Sprintf("%d.0", (i+1)%2+1)
			s.arm(step)
			c := s.start("setup", s.host, "--daemon", daemon)
			s.pauses(step)
			s.powerCut()
			if st := c.within(patience).status(); st != 3 && st != 5 {
				t.Errorf("the setup that lost its host ended with %d, want 3 or 5", st)
			}
			if got := s.consistent(); got != "1" {
				t.Errorf("release %s serves, want 1", got)
			}
			again := s.hotdeploy("setup", s.host, "--daemon", daemon).want(0).wantText("nothing to change")
			if st := s.status(); st.Daemon.Version != version {
				t.Errorf("the daemon is %s, want %s\n%s", st.Daemon.Version, version, again)
			}
		})
	}
	if left := s.run("ls -A /usr/local/bin | grep -v ^hotdeployd$; true"); left != "" {
		t.Logf("beside the daemon: %s", left)
	}
	s.app("two")
	s.push("2").want(0)
}

// truthful fails the test if what an ended push claimed is not so.
func (s *service) truthful(c *command, before, version string) {
	s.t.Helper()
	want := map[int]string{0: version, 3: before, 4: before, 5: s.consistent()}
	serving, known := want[c.status()]
	if got := s.consistent(); !known || got != serving {
		s.t.Errorf("the push of %s ended with %d, but %s serves (before it %s):\n%s", version, c.status(), got, before, c.text())
	}
}
