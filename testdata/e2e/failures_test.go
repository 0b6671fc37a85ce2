package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/apps"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// failure is a push that must fail and change nothing.
type failure struct {
	name    string
	given   func(s *service)
	changes []change
	status  int
	words   []string
	loses   bool // what the new release accepted is lost with it: the price of L2
}

var failures = []failure{
	{name: "wrong architecture", status: 3, words: []string{"arm64", "amd64"},
		given: func(s *service) { s.place(apps.Build(s.t, "wsecho", "linux", "arm64"), "bin/wsecho") }},
	{name: "start command is missing in the release", status: 3, words: []string{"bin/nothing"},
		changes: []change{startWith(`["bin/nothing"]`)}},
	{name: "start command is missing on the host", status: 3, words: []string{"no-such-program"},
		changes: []change{startWith(`["no-such-program", "server.js"]`)}},
	{name: "start command is not executable", status: 3, words: []string{"bin/wsecho", "executable", "chmod +x"},
		given: func(s *service) { must(s.t, os.Chmod(filepath.Join(s.dir, "bin", "wsecho"), 0o644)) }},
	{name: "required variable is not set", status: 3, words: []string{"DATABASE_URL", "env"},
		changes: []change{func(s *settings) { s.Run = `require_env = ["DATABASE_URL"]` }}},
	{name: "exits at once", status: 3, changes: []change{env(`WSECHO_EXIT_AT_START = "true"`)},
		words: []string{"before it was ready", "3", "start line 2: opening the database", "fatal: the database said no", "hotdeploy logs"}},
	{name: "never ready", status: 3, changes: []change{env(`WSECHO_NEVER_READY = "true"`), ready(`timeout = "10s"`)},
		words: []string{"not ready within 10s", "READY=1", "told to be never ready"}},
	{name: "ready, then dies in the soak", status: 4, loses: true,
		changes: []change{env(`WSECHO_EXIT_AFTER = "10s", WSECHO_EXIT_STATUS = "7"`), soak("60s")},
		words:   []string{"in the soak", "7", "told to exit with 7"}},
	{name: "ready, then unhealthy in the soak", status: 4, words: []string{"unhealthy", "503"},
		changes: []change{env(`WSECHO_UNHEALTHY_AFTER = "500ms"`), soak("60s"), more("[health]\ncheck = \"http\"\npath = \"/healthz\"\ninterval = \"100ms\"")}},
	{name: "a stranger has the port", status: 3, words: []string{":9999", "in use"},
		given: stranger, changes: []change{more("[[listen]]\nname = \"taken\"\naddress = \":9999\"")}},
	{name: "no permission for the port", status: 3, words: []string{":80", "CAP_NET_BIND_SERVICE", "hotdeploy setup"},
		changes: []change{more("[[listen]]\nname = \"low\"\naddress = \":80\"")}},
	{name: "unknown key in hotdeploy.toml", status: 2, words: []string{"hotdeploy.toml:", "soack", "unknown key", "soak"},
		changes: []change{more("[soack]\nduration = \"1s\"")}},
}

// stranger is somebody else's process on port 9999 of the machine.
func stranger(s *service) {
	s.t.Helper()
	program, err := os.ReadFile(apps.Build(s.t, "wsecho", "", ""))
	must(s.t, err)
	must(s.t, s.vm.WriteFile(s.t.Context(), "/usr/local/bin/stranger", program, 0o755))
	ctx, cancel := context.WithCancel(context.Background())
	cmd, err := s.vm.EnterCommand(ctx, "/usr/local/bin/stranger", "-addr", ":9999", "-print-addr")
	must(s.t, err)
	out, err := cmd.StdoutPipe()
	must(s.t, err)
	must(s.t, cmd.Start())
	s.t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	_, err = out.Read(make([]byte, 1)) // it is there
	must(s.t, err)
}

// Each of them leaves the old release serving, changes nothing, and says why in one screen, while clients are connected.
func TestPush_Failures(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	held := s.load(load.Options{WebSockets: 100})
	for i, f := range failures {
		t.Run(f.name, func(t *testing.T) {
			one := s.under(t)
			one.app("")
			if f.given != nil {
				f.given(one)
			}
			one.failsToPush(fmt.Sprintf("bad-%d", i), f)
			beat(t, held)
		})
	}
	r := unnoticed(t, held)
	t.Logf("all the while: %s", r)
	s.app("good")
	s.push("2").want(0)
	s.serves("2")
}

func (s *service) failsToPush(version string, f failure) {
	s.t.Helper()
	before := s.look()
	l := s.load(load.Options{NewConnsPerSecond: 100})
	c := s.push(version, f.changes...)
	beat(s.t, l)
	r := stopLoad(l)
	if err := r.Err(); err != nil && !f.loses {
		s.t.Error(err)
	}
	s.t.Logf("%s\n%d requests meanwhile, %d failed", c, r.RequestsOK, r.RequestsFailed)
	if f.loses && r.RequestFailures["refused"]+r.RequestFailures["timeout"] > 0 {
		s.t.Errorf("a client was refused or left waiting: %v", r.RequestFailures)
	}

	if c.status() != f.status {
		s.t.Errorf("exit status %d, want %d", c.status(), f.status)
	}
	c.wantText(append(f.words, "hotdeploy: error:", "hint:")...).oneScreen()
	if f.status != 2 {
		c.wantText("state:", "1 is serving")
	}
	after := s.look()
	until(s.t, "the failed release has seen its clients off and is gone", func() bool {
		after = s.look()
		return len(after.releases) == len(before.releases) && after.temporary == ""
	})
	if fmt.Sprint(before) != fmt.Sprint(after) || after.serving != "1" {
		s.t.Errorf("before %+v, afterwards %+v", before, after)
	}
}

// No room is told before anything is sent.
func TestPush_NoRoomOnTheDisk_IsToldBeforeTheUpload(t *testing.T) {
	p := newProject(t)
	must(t, other().LimitDisk(t.Context(), "/srv/"+p.service, "96m"))
	s := p.on(other())
	s.setup()
	s.push("1").want(0)
	s.base.Files = `["bin/**", "data/**"]`
	big := make([]byte, 90<<20)
	_, err := randomBytes(big)
	must(t, err)
	s.file("data/big", big)
	l, config := newLine(t, s.vm)
	s.sshConfig = config
	s.failsToPush("2", failure{status: 3, words: []string{"no room", "MiB", "make room"}})
	if sent := l.total(); sent > 1<<20 || s.uploaded() != 0 {
		t.Errorf("%d bytes were sent, %d are there", sent, s.uploaded())
	}
}

// A disk that is full, from the beginning or just when the release is to be committed, and one that is read-only: the old release serves, the error names the
// cause, and when that is gone the same command works.
func TestPush_DiskFullOrReadOnly_ThenNotAnyMore(t *testing.T) {
	p := newProject(t)
	must(t, other().LimitDisk(t.Context(), "/srv/"+p.service, "96m"))
	s := p.on(other())
	s.setup()
	s.push("1").want(0)
	const fill, free = "head -c 200m /dev/zero >/srv/NAME/fill 2>/dev/null; df --output=avail /srv/NAME | tail -1", "rm -f /srv/NAME/fill"
	inDaemon := func(cmd string) { s.run("nsenter -t " + s.daemonPID() + " -m sh -c '" + cmd + "'") }
	for i, tt := range []struct {
		name     string
		at       string // the phase at which it happens, or empty: before the push
		from, to func()
		status   int
		words    string
	}{
		{"full", "", func() { s.run(fill) }, func() { s.run(free) }, 3, "no room"},
		{"full at the commit", "soak", func() { s.run(fill) }, func() { s.run(free) }, 4, "no space left"},
		{"read-only", "", func() {
			inDaemon("mount --bind /srv/NAME/state /srv/NAME/state && mount -o remount,bind,ro /srv/NAME/state")
		},
			func() { inDaemon("umount /srv/NAME/state") }, 3, "read-only"},
		{"read-only at the commit", "soak", func() {
			inDaemon("mount --bind /srv/NAME/state /srv/NAME/state && mount -o remount,bind,ro /srv/NAME/state")
		},
			func() { inDaemon("umount /srv/NAME/state") }, 4, "read-only"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := s.under(t)
			version := fmt.Sprint(i + 2)
			s.app(version)
			before := s.consistent()
			var c *command
			if tt.at == "" {
				tt.from()
				c = s.startPush(version, soak("1s"))
			} else {
				m := s.at(tt.at)
				c = s.startPush(version, soak("1s"))
				must(t, m.wait())
				tt.from()
			}
			c.want(tt.status).wantText(tt.words, "state:", before).oneScreen()
			t.Logf("%s", c)
			s.serves(before)
			tt.to()
			s.consistent()
			s.push(version, soak("1s")).want(0)
			s.serves(version)
		})
	}
}

// A file that is damaged on its way is sent again; if it comes damaged again and again the push fails.
func TestPush_DamagedOnTheWay(t *testing.T) {
	s := newProject(t).on(common())
	s.setup("--daemon", s.damaging())
	s.bulk()
	s.push("1").want(0)
	l, config := newLine(t, s.vm)
	s.sshConfig = config
	halfway := func() *command {
		reached := make(chan struct{})
		l.cutAfter(8<<20, func() { l.silence(); close(reached) })
		c := s.startPush("2")
		<-reached
		return c
	}
	const damage = `for f in /srv/NAME/incoming/*/bundle-* /srv/NAME/incoming/*/parts/*; do [ -f "$f" ] || continue; printf damaged | dd of="$f" bs=1 seek=4096 conv=notrunc status=none; done`

	t.Run("once", func(t *testing.T) {
		s := s.under(t)
		s.bulk()
		c := halfway()
		s.run(damage)
		pid := s.killDaemon() // which has what it rebuilt so far; the next one has only what is on the disk
		l.restore()
		c.want(3)
		s.awaitDaemon(pid)
		t.Logf("%s", s.push("2").want(0).wantText("sending it"))
		if got := s.consistent(); got != "2" {
			t.Errorf("release %s serves", got)
		}
		s.hotdeploy("rollback", s.host).want(0)
	})
	t.Run("every time", func(t *testing.T) {
		s := s.under(t)
		s.bulk()
		s.run("touch /srv/NAME/shared/damage")
		s.failsToPush("3", failure{status: 3, words: []string{"sending it again", "hotdeploy: error: " + s.host + ": upload", "arrived damaged: data/big"}})
		s.run("rm /srv/NAME/shared/damage")
		s.push("3").want(0)
	})
}

// damaging is a daemon that finds each file that has arrived damaged while its service has the file damage in shared.
func (s *service) damaging() string {
	s.t.Helper()
	const open = "	h, fi, err := openRegular(b.upload.parts, bl.sha)\n"
	damage := s.named(`	if _, err := os.Stat("/srv/NAME/shared/damage"); err == nil {
		if h, err := b.upload.parts.OpenFile(bl.sha, os.O_WRONLY, 0); err == nil {
			h.WriteAt([]byte("damaged"), 4096)
			h.Close()
		}
	}
`)
	return variant(s.t, "cmd/hotdeployd", edit{"supervisor/store/fill.go", open, damage + open})
}

func TestPush_TwoAtOnce_TheSecondIsToldWhoIsAtIt(t *testing.T) {
	s := newService(t, common())
	s.push("1").want(0)
	m := s.at("soak")
	first := s.startPush("2", soak("60s"))
	must(t, m.wait())
	began := time.Now()
	second := s.push("3").want(3)
	second.wantText("is at it", "push of 2", "since", "soak", "state:", "hotdeploy status "+s.host+" --watch").oneScreen()
	t.Logf("%s\nthe second asker knew after %s", second, time.Since(began).Round(time.Millisecond))
	first.interrupt()
	first.want(4)
	if got := s.consistent(); got != "1" {
		t.Errorf("release %s serves", got)
	}
	s.push("3").want(0)
}
