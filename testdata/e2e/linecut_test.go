package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/testdata/lab"
)

const payload = 4 << 20 // of each release that is pushed over a line that is cut

// moment in a push: after so many bytes to the host, counted from the start or (negative) from the end, or at a phase.
type cutMoment struct {
	bytes int64
	phase string
}

func (m cutMoment) String() string {
	if m.phase != "" {
		return m.phase
	}
	return fmt.Sprintf("byte %d", m.bytes)
}

// From the first byte of the connect to the last of what the upgrade takes to be asked for and followed: login, status, plan,
// upload, complete, upgrade; then each phase.
var cutMoments = []cutMoment{
	{bytes: 1}, {bytes: 1200}, {bytes: 2500}, {bytes: 3800}, {bytes: 5000}, {bytes: 100_000}, {bytes: payload / 2}, {bytes: -2000}, {bytes: -1200}, {bytes: -700}, {bytes: -500}, {bytes: -300},
	{phase: api.PhaseVerify}, {phase: api.PhaseStart}, {phase: api.PhaseReady}, {phase: api.PhaseSoak}, {phase: api.PhaseCommit},
}

// wired is a service that is pushed to over a line of our own.
type wired struct {
	*service
	line  *line
	total int64 // bytes that a push takes
}

// newWired makes one with release 1 on it. total, if not zero, is that of another.
func newWired(t *testing.T, vm *lab.Machine, total int64) *wired {
	t.Helper()
	w := &wired{service: newService(t, vm), total: total}
	w.base.Files = `["bin/**", "data/**"]`
	w.base.Env = `WSECHO_SLOW_START = "100ms"`
	w.fill()
	w.push("1").want(0)
	w.line, w.sshConfig = newLine(t, vm)
	if total == 0 {
		w.fill()
		w.push("1a").want(0)
		w.total = w.line.total()
		w.hotdeploy("rollback", w.host).want(0)
	}
	return w
}

// fill makes the next release one that must be uploaded.
func (w *wired) fill() {
	big := make([]byte, payload)
	_, err := randomBytes(big)
	must(w.t, err)
	w.file("data/big", big)
}

// cutPush pushes a version and has the line cut at that moment. It returns when the line is cut.
func (w *wired) cutPush(version string, m cutMoment, cut func()) *command {
	w.t.Helper()
	w.fill()
	if m.phase != "" {
		at := w.at(m.phase)
		c := w.startPush(version)
		if err := at.wait(); err != nil {
			w.t.Errorf("waiting for %s: %v", m.phase, err)
		}
		cut()
		return c
	}
	reached, done := make(chan struct{}), make(chan struct{})
	bytes := m.bytes
	if bytes < 0 {
		bytes += w.total
	}
	w.line.cutAfter(bytes, func() { close(reached); cut(); close(done) })
	c := w.startPush(version)
	select {
	case <-reached:
		<-done
	case <-c.ended: // of the cut, or before it
		select {
		case <-reached:
			<-done
		default:
			w.line.cutAfter(0, nil)
			if m.bytes >= 0 { // how many bytes it takes depends on how often it asks
				w.t.Errorf("the push ended before its byte %d", bytes)
			}
		}
	}
	return c
}

// aftermath is what must hold after any cut: the command told the truth, so does the next status, and the next push works.
func (w *wired) aftermath(c *command, before, version string) {
	w.t.Helper()
	w.quiet()
	w.truthful(c, before, version)
	now := w.consistent()
	w.hotdeploy("status", w.host).want(0).wantText("serving " + now)
	c.oneScreen()
	if text := c.text(); c.status() == 3 && !strings.Contains(text, "push again: it goes on") && !strings.Contains(text, "try  ssh") {
		w.t.Errorf("the line was cut, and the hint is another")
	}
	w.t.Logf("%s serves\n%s", now, c)
	w.push(version).want(0)
	if got := w.consistent(); got != version {
		w.t.Errorf("after the next push %s serves", got)
	}
}

func (w *wired) under(t *testing.T) *wired {
	one := *w
	one.service = w.service.under(t)
	return &one
}

// The line breaks with a reset and can be had again at once: what the push does not know it finds out, and it ends in no time.
func TestLineCut_Reset(t *testing.T) {
	w := newWired(t, common(), 0)
	killSessions := func(w *wired) func() {
		return func() { w.run(`pkill -KILL -f '^sshd: root@|^sshd-session: root@'; true`) }
	}
	before := "1"
	for i, m := range cutMoments {
		version := fmt.Sprint(i + 2)
		how, cut := "reset", func(w *wired) func() { return w.line.reset }
		if i%3 == 2 {
			how, cut = "sshd killed", killSessions
		}
		t.Run(fmt.Sprintf("%s/%s", how, m), func(t *testing.T) {
			w := w.under(t)
			c := w.cutPush(version, m, cut(w))
			c.within(20 * time.Second)
			if m.phase != "" && c.status() != 0 {
				t.Errorf("exit status %d: the line was there again at once, and the upgrade went on", c.status())
			}
			w.aftermath(c, before, version)
		})
		before = version
	}
}

// The line falls silent and stays so until the command has given up: that takes seconds, never for ever.
func TestLineCut_Silence(t *testing.T) {
	var all []*wired
	var cut []*command
	var total int64
	for _, m := range cutMoments { // one after the other; they wait for their end all at the same time
		w := newWired(t, common(), total)
		total = w.total
		if m.phase != "" && m.phase != api.PhaseCommit {
			w.base.Soak = "20s" // the line is silent before the upgrade has ended, however busy this machine is
		}
		all, cut = append(all, w), append(cut, w.cutPush("2", m, w.line.silence))
	}
	for i, m := range cutMoments {
		t.Run(m.String(), func(t *testing.T) {
			w, c := all[i].under(t), cut[i]
			c.within(time.Minute)
			switch st := c.status(); {
			case m.phase == api.PhaseCommit && st == 0: // that was faster than we are
			case m.phase != "" && st != 5:
				t.Errorf("exit status %d, want 5: the upgrade was asked for, and nobody told how it ended", st)
			case st != 0 && st != 3 && st != 5:
				t.Errorf("exit status %d", st)
			}
			if c.took > 45*time.Second {
				t.Errorf("it took %s", c.took)
			}
			w.line.restore()
			w.aftermath(c, "1", "2")
		})
	}
}

// A pulled cable that is put back while the upgrade goes on: the command is back in time to tell how it ended.
func TestLineCut_CableIsPutBack(t *testing.T) {
	s := newService(t, other())
	s.push("1").want(0)
	must(t, s.vm.Link(t.Context(), lab.Link{Delay: time.Nanosecond})) // the first time takes longest
	t.Cleanup(func() { must(t, s.vm.Link(context.Background(), lab.Link{})) })
	m := s.at(api.PhaseSoak)
	c := s.startPush("2", soak("20s"))
	must(t, m.wait())
	must(t, s.vm.Link(t.Context(), lab.Link{Loss: 100}))
	c.says("connecting again")
	noticed := time.Since(c.began)
	must(t, s.vm.Link(t.Context(), lab.Link{}))
	c.within(time.Minute).want(0)
	t.Logf("the push noticed the dead line %s after its start, and ended after %s", noticed.Round(time.Millisecond), c.took.Round(time.Millisecond))
	if got := s.consistent(); got != "2" {
		t.Errorf("release %s serves", got)
	}
}
