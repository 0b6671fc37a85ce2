package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/remote"
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
	must(t, s.vm.Rate(t.Context(), "60mbit"))
	t.Cleanup(func() { must(t, s.vm.Rate(context.Background(), "off")) })
	c := s.startPush("2")
	until(t, "some of the upload is there", func() bool { return s.uploaded() > enough })
	s.crash()
	s.boot()
	arrived := s.uploaded()
	c.within(patience)
	if st := c.status(); st != 3 && st != 5 {
		t.Errorf("the push that lost its host ended with %d, want 3 or 5", st)
	}
	is := s.look()
	if s.consistent() != "1" || !slices.Equal(is.releases, []string{"1"}) || arrived == 0 {
		t.Errorf("after the boot: %+v, %d bytes of the upload", is, arrived)
	}
	s.hotdeploy("status", s.host).want(0).wantText("serving 1")

	must(t, s.vm.Rate(t.Context(), "off"))
	l, config := newLine(t, s.vm)
	s.sshConfig = config
	s.push("2").want(0)
	t.Logf("%d bytes had arrived at the power cut; the next push sent %d", arrived, l.total())
	if most := size - arrived + remote.Rewind + 256<<10; l.total() > most {
		t.Errorf("the next push sent %d bytes although %d were there, want at most %d", l.total(), arrived, most)
	}
	if got := s.consistent(); got != "2" {
		t.Errorf("release %s is committed, want 2", got)
	}
}

// The plug is pulled at the beginning of each phase, and at several moments around the commit.
func TestPowerCut_DuringUpgrade(t *testing.T) {
	s := newService(t, other())
	s.push("1").want(0)
	const soaking = 600 * time.Millisecond
	for i, cut := range []struct {
		phase string
		after time.Duration
	}{
		{api.PhaseVerify, 0}, {api.PhaseStart, 0}, {api.PhaseReady, 0}, {api.PhaseSoak, 0},
		{api.PhaseSoak, soaking - 60*time.Millisecond}, {api.PhaseSoak, soaking - 30*time.Millisecond},
		{api.PhaseSoak, soaking - 15*time.Millisecond}, {api.PhaseCommit, 0}, {api.PhaseCommit, 20 * time.Millisecond},
	} {
		version := fmt.Sprint(i + 2)
		t.Run(fmt.Sprintf("%s+%s", cut.phase, cut.after), func(t *testing.T) {
			s.under(t).cutPower(version, cut.phase, cut.after, soaking)
		})
	}
}

func (s *service) cutPower(version, phase string, after, soaking time.Duration) {
	s.t.Helper()
	s.file("bin/data", []byte(version))
	before := s.consistent()
	m := s.at(phase)
	c := s.startPush(version, soak(soaking.String()), env(`WSECHO_SLOW_START = "150ms"`))
	if err := m.wait(); err != nil {
		s.t.Errorf("waiting for %s: %v", phase, err)
	}
	<-time.After(after) // where in the phase: the one thing that nobody tells
	s.crash()
	s.boot()
	c.within(patience)

	now := s.consistent()
	last := s.quiet()
	switch {
	case now != before && now != version:
		s.t.Errorf("release %s serves; it was %s, and %s was pushed", now, before, version)
	case last == nil || last.To.Version != version || (last.Outcome == api.Done) != (now == version):
		s.t.Errorf("release %s serves, and the daemon says of the last upgrade %+v", now, last)
	}
	s.truthful(c, before, version)
	s.hotdeploy("status", s.host).want(0).wantText("serving " + now)
	s.t.Logf("cut %s after the beginning of %s: %s serves, the push said %d", after, phase, now, c.status())
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
