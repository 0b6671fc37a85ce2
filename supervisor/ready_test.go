package supervisor

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
	"github.com/hotdeploy/hotdeploy/systemd"
)

// checked lets a release be found ready in another way than by READY=1, which wsecho says all the same.
func checked(p release.Probe, timeout time.Duration) change {
	return func(s *release.Spec) {
		s.Ready = release.Ready{Probe: p, Timeout: release.Duration(timeout)}
		s.Resolve()
	}
}

// The old generation accepts on the same socket all the while, and answers: that must not count.
func TestReady_ByProbe_WhileTheOldOneAccepts(t *testing.T) {
	const start, soon = 300 * time.Millisecond, 30 * time.Second
	slow := env("WSECHO_SLOW_START", start.String())
	command := []string{"sh", "-c", `test "$HOTDEPLOY_VERSION" = 2 && kill -0 "$HOTDEPLOY_PID" && exec 3<"/proc/$HOTDEPLOY_PID/fd" && grep -q serving ready`}
	for _, tc := range []struct {
		name  string
		ready change
		least time.Duration
	}{
		{"tcp", checked(release.Probe{Check: release.CheckTCP}, soon), start},
		{"http", checked(release.Probe{Check: release.CheckHTTP, Path: "/healthz"}, soon), start},
		{"command", checked(release.Probe{Check: release.CheckCommand, Command: command}, soon), start},
		{"delay", func(s *release.Spec) {
			s.Ready = release.Ready{Probe: release.Probe{Check: release.CheckDelay}, Delay: release.Duration(2 * start), Timeout: release.Duration(soon)}
		}, 2 * start},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.push("1")
			l := startLoad(t, r.addr, 5, 50)
			ready := filepath.Join(r.dir, "ready")
			r.install("2", slow, tc.ready, func(s *release.Spec) {
				for i, c := range s.Ready.Command {
					s.Ready.Command[i] = strings.Replace(c, "grep -q serving ready", "test -e "+ready, 1)
				}
			})
			u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
			if err != nil {
				t.Fatal(err)
			}
			shown := time.Now().Add(start)
			if tc.name == "command" {
				<-time.After(start)
				if err := os.WriteFile(ready, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			u = r.outcome(u.ID)
			if u.Outcome != api.Done || !r.serves("2") {
				t.Fatalf("%s: %+v", u.Outcome, u.Error)
			}
			g := r.status().Generations[0]
			if tc.name == "command" {
				g.Started, tc.least = shown, 0
			}
			if took := g.Ready.Sub(g.Started); took < tc.least { // the daemon notes both on its own clock, the start before the process
				t.Errorf("ready after %s, which is less than the %s that it takes", took, tc.least)
			}
			stopLoad(t, l)
		})
	}
}

func TestReady_ByProbe_NeverShown_NothingChanged(t *testing.T) {
	const soon, sooner = 10 * time.Second, 400 * time.Millisecond // it must have had the time to say no
	r := newRig(t)
	r.push("1")
	for _, tc := range []struct {
		name  string
		ready change
		says  string
	}{
		{"tcp", checked(release.Probe{Check: release.CheckTCP}, sooner), "accepted no connection"},
		{"http", checked(release.Probe{Check: release.CheckHTTP, Path: "/nowhere"}, soon), "404"},
		{"command", checked(release.Probe{Check: release.CheckCommand, Command: []string{"sh", "-c", "echo the database said no; exit 7"}}, soon), "exit status 7: the database said no"},
		{"command that hangs", checked(release.Probe{Check: release.CheckCommand, Command: []string{"sh", "-c", "sleep 60 & sleep 60"}}, sooner), "killed"},
		{"dies before", func(s *release.Spec) {
			env("WSECHO_EXIT_AT_START", "1")(s)
			checked(release.Probe{Check: release.CheckTCP}, time.Minute)(s)
		}, "exited with status 3 before it was ready"},
	} {
		version := strings.ReplaceAll(tc.name, " ", "-")
		t.Run(tc.name, func(t *testing.T) {
			r.install(version, func(s *release.Spec) {
				if tc.name == "tcp" {
					env("WSECHO_NEVER_READY", "1")(s)
				}
			}, tc.ready)
			u := r.upgrade(api.KindPush, version)
			if u.Outcome != api.NothingChanged || !strings.Contains(u.Error.Message, tc.says) || !strings.Contains(u.Error.State, "release 1 is serving") {
				t.Errorf("%s: %+v", u.Outcome, u.Error)
			}
			if !r.serves("1") {
				t.Error("1 does not serve")
			}
		})
	}
}

func TestReady_TheAppAsksForMoreTime(t *testing.T) {
	r := newRig(t)
	r.push("1", self("slow but alive"), func(s *release.Spec) { s.Ready.Timeout = release.Duration(lessThanSlow) })
}

func TestReady_MoreTimeIsNotForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const second = time.Second // of this bubble's clock
		rel := &store.Release{Manifest: &release.Manifest{}}
		rel.Manifest.Spec.SetDefaults()
		rel.Manifest.Spec.Ready.Timeout = release.Duration(2 * second)
		g := &generation{rel: rel, group: &procs.Group{}, started: time.Now(), ready: make(chan struct{}), extend: make(chan time.Duration, 1)}
		time.AfterFunc(second, func() { g.notified(systemd.Message{Extend: 4 * second}) })
		time.AfterFunc(3*second, func() { g.notified(systemd.Message{Extend: second}) }) // less than it has
		err := (&Supervisor{}).awaitReady(t.Context(), g)
		if took := time.Since(g.started); took != 5*second || !errors.Is(err, api.ErrNotReady) {
			t.Errorf("%v after %s, not %s", err, took, 5*second)
		}
	})
}

func TestReady_SaidByAChild_Counts_ByAStranger_DoesNot(t *testing.T) {
	r := newRig(t)
	u := r.push("1", self("ready by a child"))
	if st := r.status(); st.Generations[0].Text != "said by a child" {
		t.Errorf("generation %d: %+v", u.Generation, st.Generations[0])
	}
	r.install("2", env("WSECHO_NEVER_READY", "1"), func(s *release.Spec) { s.Ready.Timeout = release.Duration(500 * time.Millisecond) })
	v, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
	if err != nil {
		t.Fatal(err)
	}
	r.await(func(e api.Event) bool {
		return e.Upgrade != nil && e.Upgrade.ID == v.ID && e.Upgrade.Phase == api.PhaseReady
	})
	c, err := net.Dial("unixgram", filepath.Join(r.cfg.RunDir, "notify.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, msg := range []string{"READY=1", "READY=1\nSTATUS=\x1b[31mred", "nonsense", strings.Repeat("x", 1<<16), "STATUS=last"} {
		if _, err := c.Write([]byte(msg)); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.outcome(v.ID); got.Outcome != api.NothingChanged || !errors.Is(got.Error, api.ErrNotReady) {
		t.Errorf("a stranger's word counted: %s: %+v", got.Outcome, got.Error)
	}
}

// An app that is told to stop together with the daemon still has a listener for its notifications; the queue of a datagram
// socket is short, and it would hang.
func TestShutdown_AppsAreHeardToTheEnd(t *testing.T) {
	r := newRig(t)
	r.push("1", self("much to say at the end"), func(s *release.Spec) { s.Run.StopAfter = release.Duration(20 * time.Second) })
	r.stop()
	if log := r.log.String(); !strings.Contains(log, "exited with status 0") || strings.Contains(log, "killing it") {
		t.Errorf("it did not end by itself:\n%s", log)
	}
}
