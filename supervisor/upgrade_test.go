package supervisor

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

func startLoad(t testing.TB, addr string, websockets, perSecond int) *load.Load {
	t.Helper()
	l, err := load.Start(context.Background(), load.Options{Addr: addr, WebSockets: websockets, NewConnsPerSecond: perSecond,
		MessageInterval: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := l.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return l
}

func stopLoad(t *testing.T, l *load.Load) load.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	report := l.Stop(ctx)
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	return report
}

func TestPush_UnderLoad_NobodyNotices(t *testing.T) {
	r := newRig(t)
	r.push("1")
	l := startLoad(t, r.addr, 50, 100)
	for _, v := range []string{"2", "3", "4"} {
		r.push(v)
		if !r.serves(v) {
			t.Errorf("after the push of %s another one answers", v)
		}
	}
	st := r.status()
	if len(st.Generations) < 2 || st.Generations[0].Connections < 0 {
		t.Fatalf("generations: %+v", st.Generations)
	}
	held := 0
	for _, g := range st.Generations {
		if g.Release.Version == "1" {
			held = g.Connections
		}
	}
	if held < 50 {
		t.Errorf("the kernel counts %d connections of generation 1, the load holds 50", held)
	}
	report := stopLoad(t, l)
	if report.Kept != 50 {
		t.Errorf("kept %d of 50", report.Kept)
	}
	if st.Committed.Version != "4" || st.Previous.Version != "3" {
		t.Errorf("committed %v, previous %v", st.Committed, st.Previous)
	}
	// Its clients have left: what drains ends by itself.
	r.await(func(e api.Event) bool { return e.Generation == 1 && strings.Contains(e.Text, "exited") })
}

func TestPush_Fails_OldKeepsServing(t *testing.T) {
	stranger, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	for _, tc := range []struct {
		name    string
		change  change
		outcome api.Outcome
		code    *api.Error
		phase   string
		says    string
	}{
		{"exits at once", env("WSECHO_EXIT_AT_START", "1"), api.NothingChanged, api.ErrStart, api.PhaseReady, "exited with status 3"},
		{"never ready", func(s *release.Spec) {
			env("WSECHO_NEVER_READY", "1")(s)
			s.Ready.Timeout = release.Duration(300 * time.Millisecond)
		}, api.NothingChanged, api.ErrNotReady, api.PhaseReady, "was not ready within"},
		{"dies in the soak", soaks(time.Minute), api.RolledBack, api.ErrExited, api.PhaseSoak, "was killed by signal 9 (killed) in the soak"},
		{"unhealthy in the soak", func(s *release.Spec) {
			env("WSECHO_UNHEALTHY", "1")(s)
			s.Health = &release.Health{Probe: release.Probe{Check: release.CheckHTTP, Path: "/healthz"}}
			s.SetDefaults()
			s.Health.Interval = release.Duration(20 * time.Millisecond)
		}, api.RolledBack, api.ErrUnhealthy, api.PhaseSoak, "503"},
		{"port in use", func(s *release.Spec) {
			s.Listeners = append(s.Listeners, release.Listener{Name: "more", Network: "tcp", Address: stranger.Addr().String()})
		}, api.NothingChanged, api.ErrListen, api.PhaseStart, "in use"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.push("1")
			l := startLoad(t, r.addr, 5, 50)
			r.install("2", tc.change)
			u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
			if err != nil {
				t.Fatal(err)
			}
			if tc.name == "dies in the soak" {
				r.killSoaking(u)
			}
			u = r.outcome(u.ID)
			if u.Outcome != tc.outcome || !errors.Is(u.Error, tc.code) || u.Phase != tc.phase || !strings.Contains(u.Error.Message, tc.says) {
				t.Errorf("outcome %q in phase %q: %+v", u.Outcome, u.Phase, u.Error)
			}
			if !strings.Contains(u.Error.State, "release 1 is serving") || u.Error.Hint == "" {
				t.Errorf("what is serving, what to do: %+v", u.Error)
			}
			if tc.name == "exits at once" && len(u.Error.Output) < 3 {
				t.Errorf("its last lines: %q", u.Error.Output)
			}
			if st := r.status(); st.Committed.Version != "1" || st.State != api.StateServing {
				t.Errorf("status: %s, committed %s", st.Text, st.Committed.Version)
			}
			if tc.phase == api.PhaseSoak { // it may have accepted some before it failed, and nobody can give those back
				l.Stop(r.ctx())
				return
			}
			stopLoad(t, l)
		})
	}
}

func TestPush_TwoAtOnce_SecondIsToldWho(t *testing.T) {
	r := newRig(t)
	r.push("1")
	ready := filepath.Join(r.dir, "ready")
	r.install("2", checked(release.Probe{Check: release.CheckCommand, Command: []string{"test", "-e", ready}}, time.Minute))
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "alice@laptop"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindRestart, By: "bob@desk"})
	if !errors.Is(err, api.ErrBusy) || !strings.Contains(err.Error(), "alice@laptop") {
		t.Errorf("second asker: %v", err)
	}
	writeFile(t, ready, "")
	if got := r.outcome(u.ID); got.Outcome != api.Done {
		t.Errorf("first: %+v", got)
	}
}

func TestCancel_BeforeCommit_OldKeepsServing(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.install("2", func(s *release.Spec) { s.Soak.Duration = release.Duration(time.Minute) })
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
	if err != nil {
		t.Fatal(err)
	}
	r.awaitPhase(u, api.PhaseSoak)
	got, err := r.client.Cancel(r.ctx(), u.ID)
	if err != nil || got.Outcome != api.RolledBack || !errors.Is(got.Error, api.ErrCancelled) {
		t.Errorf("cancelled: %+v, %v", got, err)
	}
	if st := r.status(); st.Committed.Version != "1" {
		t.Errorf("committed %s", st.Committed.Version)
	}
}

func TestCrash_RestartsOnTheSameSocket_ClientsWait(t *testing.T) {
	r := newRig(t)
	u := r.push("1")
	pid := r.status().Generations[0].PID
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if !r.serves("1") { // refused or reset would have failed it
		t.Error("another version answers")
	}
	r.await(func(e api.Event) bool {
		return e.Upgrade != nil && e.Upgrade.Kind == api.KindStart && e.Upgrade.Outcome == api.Done
	})
	st := r.status()
	if st.State != api.StateServing || st.Generations[0].Number == u.Generation {
		t.Errorf("%s: %+v", st.Text, st.Generations)
	}
}

func TestCrashLoopSoonAfterAnUpgrade_GoesBack(t *testing.T) {
	r := newRig(t)
	r.push("1")
	number := r.push("2", restartsAtOnce).Generation
	r.killServing()
	for range release.DefaultCrashes - 1 {
		number = r.awaitServing(number)
		r.killServing()
	}
	r.await(func(e api.Event) bool {
		return e.Upgrade != nil && e.Upgrade.Kind == api.KindAutoRollback && e.Upgrade.Outcome == api.Done
	})
	st := r.status()
	if st.Committed.Version != "1" || st.State != api.StateServing {
		t.Errorf("%s, committed %s", st.Text, st.Committed.Version)
	}
	if st.Previous != nil {
		t.Errorf("a rollback would go to the bad release %s", st.Previous.Version)
	}
	if !r.serves("1") {
		t.Error("another version answers")
	}
}

func TestRollback_ToTheOneBefore_ThenFurtherBack(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.push("2")
	r.push("3")
	if u := r.upgrade(api.KindRollback, ""); u.Outcome != api.Done || u.To.Version != "2" {
		t.Fatalf("%+v", u)
	}
	if st := r.status(); st.Previous == nil || st.Previous.Version != "1" {
		t.Errorf("previous is %v, not 1", st.Previous)
	}
	if u := r.upgrade(api.KindRollback, "3"); u.Outcome != api.Done || !r.serves("3") {
		t.Errorf("to a named version: %+v", u)
	}
	if _, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindRollback, Version: "9", By: "tester"}); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("to one that is not there: %v", err)
	}
}

func TestRetire_EndsADrainingGeneration(t *testing.T) {
	r := newRig(t)
	first := r.push("1", func(s *release.Spec) { s.Drain.Spread = 0 })
	l := startLoad(t, r.addr, 20, 0)
	second := r.push("2")
	if err := r.client.Retire(r.ctx(), second.Generation, false); !errors.Is(err, api.ErrConflict) {
		t.Errorf("the serving one: %v", err)
	}
	if err := r.client.Retire(r.ctx(), first.Generation, true); err != nil {
		t.Fatal(err)
	}
	r.await(func(e api.Event) bool {
		return e.Generation == first.Generation && strings.Contains(e.Text, "exited with status 0")
	})
	awaitClosed(t, r, l, 20)
	l.Stop(r.ctx())
}

// awaitClosed waits until so many clients have noticed that their connections have ended.
func awaitClosed(t *testing.T, r *rig, l *load.Load, n int) {
	t.Helper()
	for ctx := r.ctx(); l.Snapshot().Closed < n; {
		if ctx.Err() != nil {
			t.Fatalf("%d of %d connections closed", l.Snapshot().Closed, n)
		}
		time.Sleep(5 * time.Millisecond) // nothing tells
	}
}

func TestDrain_Policy_OldestGoesFirst(t *testing.T) {
	r := newRig(t)
	few := func(s *release.Spec) { s.Drain.MaxGenerations, s.Drain.Spread = 2, 0 }
	var loads []*load.Load
	for _, v := range []string{"1", "2", "3", "4"} {
		r.awaitDraining(r.push(v, few).Generation - 1)
		loads = append(loads, startLoad(t, r.addr, 2, 0))
	}
	r.awaitText("generation 1 (1) was retired")
	r.await(func(e api.Event) bool { return e.Generation == 1 && strings.Contains(e.Text, "exited") })
	awaitClosed(t, r, loads[0], 1)
	for i, l := range loads {
		report := l.Stop(r.ctx())
		if closed := report.Closed > 0; closed != (i == 0) {
			t.Errorf("connections of release %d closed: %d", i+1, report.Closed)
		}
	}
}

func TestListeners_AddedAndDropped(t *testing.T) {
	r := newRig(t)
	r.push("1")
	extra := freeAddr(t)
	r.push("2", func(s *release.Spec) {
		s.Listeners = append(s.Listeners, release.Listener{Name: "admin", Network: "tcp", Address: extra})
	})
	c, err := net.Dial("tcp", extra)
	if err != nil {
		t.Fatalf("the added listener: %v", err)
	}
	c.Close()
	u := r.push("3")
	r.await(func(e api.Event) bool { return e.Generation == u.Generation-1 && strings.Contains(e.Text, "exited") })
	r.awaitText("closed listener admin") // it goes with the last generation that has it
	if c, err := net.Dial("tcp", extra); err == nil {
		c.Close()
		t.Error("the dropped listener still takes connections")
	}
}

func TestStop_EndsEverything_StartBringsItBack(t *testing.T) {
	r := newRig(t)
	r.push("1")
	st, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"})
	if err != nil || st.State != api.StateStopped || len(st.Generations) != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	if c, err := net.Dial("tcp", r.addr); err == nil {
		c.Close()
		t.Error("a stopped service takes connections")
	}
	r.stop()
	r.start() // the daemon restarts, the machine does not: still stopped
	if st := r.status(); st.State != api.StateStopped {
		t.Errorf("after a restart of the daemon: %s", st.Text)
	}
	if st, err := r.client.Start(r.ctx(), api.StopRequest{By: "tester"}); err != nil || st.State != api.StateServing {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestDaemonRestart_CommittedReleaseComesUp(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.push("2")
	r.stop()
	r.start()
	if !r.serves("2") {
		t.Error("another version answers")
	}
	if st := r.status(); st.Committed.Version != "2" || st.Previous.Version != "1" {
		t.Errorf("committed %v, previous %v", st.Committed, st.Previous)
	}
	if current, err := os.Readlink(filepath.Join(r.cfg.Root, "current")); err != nil || filepath.Base(current) != "2" {
		t.Errorf("current is %s: %v", current, err)
	}
}

// Whoever lost the line asks the next daemon what became of the upgrade, however that ended.
func TestDaemonStart_KnowsTheLastUpgrade(t *testing.T) {
	r := newRig(t)
	done := r.push("1")
	r.install("2", env("WSECHO_EXIT_AT_START", "true"))
	failed := r.upgrade(api.KindPush, "2")
	for _, want := range []api.Upgrade{failed, failed} { // the second time a start was in between
		r.stop()
		r.start()
		if last := r.status().Last; last == nil || last.ID != want.ID || last.Outcome != want.Outcome {
			t.Errorf("the last upgrade is %+v, want %+v", last, want)
		}
		r.version() // it serves again
	}
	if u, err := r.client.GetUpgrade(r.ctx(), done.ID); err != nil || u.Outcome != api.Done {
		t.Errorf("the upgrade before: %+v, %v", u, err)
	}
}

// A power cut between the commit and the link leaves a link that lies to people and scripts until somebody puts it right.
func TestDaemonStart_CurrentFollowsTheCommit(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.push("2")
	r.stop()
	link := filepath.Join(r.cfg.Root, "current")
	if err := errors.Join(os.Remove(link), os.Symlink("releases/1", link)); err != nil {
		t.Fatal(err)
	}
	r.start()
	if !r.serves("2") {
		t.Error("another version answers")
	}
	if current, err := os.Readlink(link); err != nil || filepath.Base(current) != "2" {
		t.Errorf("current is %s: %v", current, err)
	}
}

func TestSecondDaemon_IsRefused(t *testing.T) {
	r := newRig(t)
	_, err := New(Options{Config: r.cfg})
	if err == nil || !strings.Contains(err.Error(), "pid") {
		t.Errorf("a second daemon on the same root: %v", err)
	}
	if r.status().State != api.StateEmpty {
		t.Error("the first one suffered")
	}
}
