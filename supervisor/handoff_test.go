package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/testdata/apps"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// newLiveRig is a rig whose app takes its listener from the SDK.
func newLiveRig(t testing.TB) *rig {
	r := newRig(t)
	r.app = apps.BuildFailing(t, "wslive")
	return r
}

// startMoving is startLoad with WebSockets that may change process, as long as nothing is lost. However many they are, they are no more than 5000 messages a second.
func startMoving(t testing.TB, r *rig, websockets, perSecond int) *load.Load {
	t.Helper()
	l, err := load.Start(context.Background(), load.Options{Addr: r.addr, WebSockets: websockets, NewConnsPerSecond: perSecond,
		MessageInterval: max(20*time.Millisecond, time.Duration(websockets)*time.Second/5000), Held: load.MayMove})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Ready(r.ctx()); err != nil {
		t.Fatal(err)
	}
	return l
}

// allMoved checks that a handoff left nothing behind but short requests on their way out.
func allMoved(t *testing.T, h *api.Handoff, websockets int) {
	t.Helper()
	if h == nil || h.Moved < websockets || h.Refused != 0 || h.Error != "" {
		t.Fatalf("%d WebSockets, and the handoff was %+v", websockets, h)
	}
	for why := range h.Kept {
		if why != "closed" && why != "closing" && why != "busy" {
			t.Errorf("connections stayed: %+v", h)
		}
	}
	t.Logf("%s in %s", h.Text(), h.Took)
}

// onVersion checks by whom every WebSocket was answered last.
func onVersion(t *testing.T, report load.Report, version string) {
	t.Helper()
	if n := report.Versions[version]; n != report.Total {
		t.Errorf("served by version: %v, not all %d by %s", report.Versions, report.Total, version)
	}
}

func TestHandoff_UnderLoad_NobodyNotices(t *testing.T) {
	for _, mode := range []string{"rolling", "barrier"} {
		t.Run(mode, func(t *testing.T) {
			r := newLiveRig(t)
			set := env("WSLIVE_MODE", mode)
			r.push("1", set)
			l := startMoving(t, r, 200, 50)
			for _, v := range []string{"2", "3", "4"} {
				u := r.push(v, set)
				allMoved(t, u.Handoff, 200)
				r.await(func(e api.Event) bool { // at once: the load would keep it for long
					return e.Generation == u.Generation-1 && strings.Contains(e.Text, "exited with status 0")
				})
			}
			u := r.upgrade(api.KindRollback, "")
			allMoved(t, u.Handoff, 200)
			r.awaitEvent(4, "exited with status 0")
			r.tellsOfMoves(u)
			report := stopLoad(t, l)
			onVersion(t, report, "3")
			if report.Changed != 200 {
				t.Errorf("%d of 200 changed process", report.Changed)
			}
		})
	}
}

// tellsOfMoves looks for the moves of the last upgrade wherever somebody might.
func (r *rig) tellsOfMoves(u api.Upgrade) {
	r.t.Helper()
	text := r.metrics()
	for _, want := range []string{"hotdeploy_connections_moved_total", "hotdeploy_connections_refused_total 0", "hotdeploy_handoff_longest_pause_seconds ",
		fmt.Sprintf(`hotdeploy_generation_handoff_connections{generation="%d",release="%s",state="serving",what="taken"} %d`, u.Generation, u.To.Version, u.Handoff.Moved)} {
		if !strings.Contains(text, want) {
			r.t.Errorf("no metric %s", want)
		}
	}
	if g := r.status().Generations[0]; g.Taken == nil || g.Taken.Moved != u.Handoff.Moved || g.Taken.LongestPause == 0 {
		r.t.Errorf("status of the serving generation: %+v", g)
	}
	list, err := r.client.History(r.ctx(), 1)
	if err != nil || len(list) != 1 || list[0].ID != u.ID || list[0].Handoff == nil || list[0].Handoff.Moved != u.Handoff.Moved {
		r.t.Errorf("history %+v (%v)", list, err)
	}
	r.await(func(e api.Event) bool {
		return e.Handoff != nil && e.Handoff.To == u.Generation && e.Handoff.Moved == u.Handoff.Moved
	})
}

func TestHandoff_UnhealthyInTheSoak_TheyComeBack(t *testing.T) {
	r := newLiveRig(t)
	r.push("1")
	l := startMoving(t, r, 100, 50)
	r.install("2", env("WSLIVE_UNHEALTHY", "1"), func(s *release.Spec) {
		s.Health = &release.Health{Probe: release.Probe{Check: release.CheckHTTP, Path: "/healthz"}}
		s.SetDefaults()
		s.Health.Interval = release.Duration(20 * time.Millisecond)
	})
	u := r.upgrade(api.KindPush, "2")
	if u.Outcome != api.RolledBack || !errors.Is(u.Error, api.ErrUnhealthy) {
		t.Errorf("%s: %+v", u.Outcome, u.Error)
	}
	allMoved(t, u.Handoff, 100)
	allMoved(t, u.HandedBack, 100)
	r.awaitEvent(2, "exited with status 0") // at once: nothing is left there
	if got := r.version(); got != "1" {
		t.Errorf("new clients get %s", got)
	}
	beat(t, r, l)
	report := stopLoad(t, l)
	onVersion(t, report, "1")
}

func TestHandoff_NewReleaseBreaks_OldGoesOn(t *testing.T) {
	for _, tc := range []struct{ name, failpoint string }{
		{"dies before anything", "take.begin=kill"},
		{"dies with an offer", "take.offer=kill"},
		{"dies with a later offer", "take.offer=kill@2"},
		{"dies while its app is told", "take.adopted=kill"},
		{"dies before the receipt", "take.accepted=kill"},
		{"hangs before anything", "take.begin=stop"},
		{"hangs with an offer", "take.offer=stop"},
		{"hangs before the receipt", "take.accepted=stop"},
	} {
		for _, mode := range []string{"rolling", "barrier"} {
			t.Run(tc.name+", "+mode, func(t *testing.T) {
				r := newLiveRig(t)
				r.push("1", env("WSLIVE_MODE", mode, "WSLIVE_PATIENCE", "20s"))
				all := 60
				if strings.HasSuffix(tc.failpoint, "@2") {
					all = 300 // more than one offer holds
				}
				l := startMoving(t, r, all, 20)
				r.install("2", env("UPGRADE_FAILPOINT", tc.failpoint, "WSLIVE_MODE", mode, "WSLIVE_PATIENCE", "20s"), stopsWithin(2*time.Second))
				u := r.upgrade(api.KindPush, "2")
				if u.Outcome != api.RolledBack {
					t.Fatalf("%s: %+v", u.Outcome, u.Error)
				}
				t.Logf("%s: %+v", u.Error.Message, u.Handoff)
				kept := 0
				if u.Handoff != nil {
					kept = all - u.Handoff.Moved // what had moved has crashed
				}
				if got := r.version(); got != "1" {
					t.Errorf("new clients get %s", got)
				}
				beat(t, r, l)
				report := l.Stop(r.ctx())
				if report.Kept < kept || report.Doubled+report.Reordered+report.Miscounted+report.Wrong > 0 {
					t.Errorf("%d should have been kept: %v", kept, report.Err())
				}
				if strings.HasPrefix(tc.failpoint, "take.begin") && kept != all {
					t.Errorf("only %d of %d stayed", kept, all)
				}
				onlyHeld(t, report)
			})
		}
	}
}

// onlyHeld checks that no message of a connection that lives was lost.
func onlyHeld(t *testing.T, report load.Report) {
	t.Helper()
	if report.Kept == report.Total {
		if report.MessagesLost+report.MessagesDue > 0 {
			t.Errorf("messages lost %d, due %d", report.MessagesLost, report.MessagesDue)
		}
		onVersion(t, report, "1")
	}
}

func TestHandoff_OldReleaseDies_NewOwns(t *testing.T) {
	for _, tc := range []struct{ name, failpoint string }{
		{"after the receipts", "give.confirm=kill"},
		{"after the confirm", "give.confirmed=kill"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newLiveRig(t)
			r.push("1", env("UPGRADE_FAILPOINT", tc.failpoint, "WSLIVE_MODE", "barrier"))
			l := startMoving(t, r, 60, 0)
			u := r.push("2", env("WSLIVE_MODE", "barrier"))
			t.Logf("%+v", u.Handoff)
			beat(t, r, l)
			onVersion(t, stopLoad(t, l), "2")
		})
	}
}

func TestHandoff_StateThatNobodyReads_Stays(t *testing.T) {
	r := newLiveRig(t)
	r.push("1")
	l := startMoving(t, r, 20, 0)
	u := r.push("2", env("WSLIVE_STATE", "2"))
	if u.Handoff == nil || u.Handoff.Moved != 0 || u.Handoff.Kept["state version"] != 20 {
		t.Errorf("%+v", u.Handoff)
	}
	if words := phaseText(u, api.PhaseHandoff); !strings.Contains(words, "2 cannot read the state of 20 connections that 1 has saved (it reads state version 2") ||
		!strings.Contains(words, "they finish in generation 1") {
		t.Errorf("the push says %q", words)
	}
	onVersion(t, stopLoad(t, l), "1")
}

// The release before goes on saving as it always did, and can read what the new one saves.
func TestHandoff_EachSavesInItsOwnVersion_ThereAndBack(t *testing.T) {
	r := newLiveRig(t)
	r.push("1", env("WSLIVE_READS", "2"))
	l := startMoving(t, r, 50, 20)
	allMoved(t, r.push("2", env("WSLIVE_STATE", "2", "WSLIVE_READS", "1")).Handoff, 50)
	beat(t, r, l)
	u := r.upgrade(api.KindRollback, "")
	if u.Outcome != api.Done {
		t.Fatalf("%s: %+v", u.Outcome, u.Error)
	}
	allMoved(t, u.Handoff, 50)
	beat(t, r, l)
	onVersion(t, stopLoad(t, l), "1")
}

func phaseText(u api.Upgrade, phase string) string {
	for _, p := range u.Phases {
		if p.Phase == phase {
			return p.Text
		}
	}
	return ""
}

// A generation whose connections the next release could not have gives them to a later one that can, before anything of it is closed.
func TestRetire_MovesWhatCan_AndClosesNothing(t *testing.T) {
	r := newLiveRig(t)
	r.push("1")
	l := startMoving(t, r, 50, 20)
	r.push("2", env("WSLIVE_STATE", "2"))
	if u := r.upgrade(api.KindRollback, ""); u.Outcome != api.Done {
		t.Fatalf("%s: %+v", u.Outcome, u.Error)
	}
	beat(t, r, l)
	if err := r.client.Retire(r.ctx(), 1, false); err != nil {
		t.Fatal(err)
	}
	r.awaitEvent(1, "handed its connections to generation 3 (1): moved 50")
	r.awaitEvent(1, "exited with status 0")
	beat(t, r, l)
	report := stopLoad(t, l)
	onVersion(t, report, "1")
	if report.Changed != 50 {
		t.Errorf("%d of 50 changed process", report.Changed)
	}
	if log := r.log.String(); strings.Contains(log, "closing its connections") || strings.Contains(log, "killing") {
		t.Error("something was closed")
	}
}

func TestHandoff_Cancelled_TakesEffectAtOnce(t *testing.T) {
	for _, mode := range []string{"rolling", "barrier"} {
		t.Run(mode, func(t *testing.T) {
			r := emptyRig(t)
			r.app = apps.BuildFailing(t, "wslive")
			r.adapt = func(s *Supervisor) { s.handoffWithin = 10 * time.Minute } // longer than any test waits
			r.start()
			r.push("1", env("WSLIVE_MODE", mode))
			l := startMoving(t, r, 50, 0)
			r.install("2", env("UPGRADE_FAILPOINT", "take.greet=stop", "WSLIVE_MODE", mode), stopsWithin(2*time.Second))
			u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
			if err != nil {
				t.Fatal(err)
			}
			r.awaitPhase(u, api.PhaseHandoff)
			if u, err = r.client.Cancel(r.ctx(), u.ID); err != nil {
				t.Fatal(err)
			}
			if u.Outcome != api.RolledBack || !errors.Is(u.Error, api.ErrCancelled) || u.Phase != api.PhaseHandoff {
				t.Errorf("%s: %+v", u.Outcome, u.Error)
			}
			t.Logf("%s; %+v", u.Error.Message, u.Handoff)
			beat(t, r, l)
			onVersion(t, stopLoad(t, l), "1")
		})
	}
}

// Cancelled in the middle: what has moved comes back, what waits stays, and nobody notices.
func TestHandoff_CancelledWhileTheyMove_TheyComeBack(t *testing.T) {
	for _, mode := range []string{"rolling", "barrier"} {
		t.Run(mode, func(t *testing.T) {
			r := newLiveRig(t)
			r.push("1", env("WSLIVE_MODE", mode))
			l := startMoving(t, r, 200, 50)
			for i := range 10 { // at another instant each time
				v := strconv.Itoa(i + 2)
				r.install(v, env("WSLIVE_MODE", mode), func(s *release.Spec) { s.Soak.Duration = release.Duration(time.Minute) })
				u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: v, By: "tester"})
				if err != nil {
					t.Fatal(err)
				}
				r.awaitPhase(u, api.PhaseHandoff)
				<-time.After(time.Duration(i) * 3 * time.Millisecond)
				if u, err = r.client.Cancel(r.ctx(), u.ID); err != nil {
					t.Fatal(err)
				}
				if u.Outcome != api.RolledBack || !errors.Is(u.Error, api.ErrCancelled) {
					t.Errorf("%s: %+v", u.Outcome, u.Error)
				}
				t.Logf("%s: %s; back: %+v", u.Error.Message, u.Handoff.Text(), u.HandedBack)
				beat(t, r, l)
			}
			onVersion(t, stopLoad(t, l), "1")
		})
	}
}

func TestHandoff_Refused_ComesBack(t *testing.T) {
	r := newLiveRig(t)
	r.push("1")
	l := startMoving(t, r, 20, 0)
	u := r.push("2", env("WSLIVE_REFUSE", "1"))
	if u.Handoff == nil || u.Handoff.Moved != 0 || u.Handoff.Refused != 20 {
		t.Errorf("%+v", u.Handoff)
	}
	onVersion(t, stopLoad(t, l), "1")
}

// A keep-alive connection that is idle moves, one with a request in flight finishes that first, and the handler does not notice.
func TestHandoff_HTTP_SameConnectionAnswersFromBoth(t *testing.T) {
	r := newLiveRig(t)
	r.push("1")
	idle, busy := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}, &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	get := func(c *http.Client, path string) (body string, reused bool) {
		ctx := httptrace.WithClientTrace(r.ctx(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }})
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+r.addr+path, nil)
		res, err := c.Do(req)
		if err != nil {
			t.Errorf("GET %s: %v", path, err)
			return "", false
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return strings.TrimSpace(string(b)), reused
	}
	get(idle, "/version")
	get(busy, "/version")
	slow := make(chan string, 1)
	go func() { body, _ := get(busy, "/slow?for=900ms"); slow <- body }()
	u := r.push("2")
	if body := <-slow; body != "slow but there" {
		t.Errorf("the slow request: %q", body)
	}
	for _, c := range []*http.Client{idle, busy} {
		if body, reused := get(c, "/version"); body != "2" || !reused {
			t.Errorf("answered by %s, the same connection: %v", body, reused)
		}
	}
	t.Logf("%+v", u.Handoff)
	idle.CloseIdleConnections()
	busy.CloseIdleConnections()
}

// beat waits until every client has had an answer to something that it says from now on.
func beat(t *testing.T, r *rig, l *load.Load) {
	t.Helper()
	if err := l.Beat(r.ctx()); err != nil {
		t.Error(err)
	}
}

// A release of hubs that must answer before it is ready has to be let in before the barrier.
func TestHandoff_BarrierAndReadinessByAConnection(t *testing.T) {
	r := newLiveRig(t)
	set := func(s *release.Spec) {
		env("WSLIVE_MODE", "barrier")(s)
		s.Ready.Probe = release.Probe{Check: release.CheckHTTP, Path: "/healthz"}
		s.SetDefaults()
	}
	r.push("1", set)
	l := startMoving(t, r, 10, 0)
	allMoved(t, r.push("2", set).Handoff, 10)
	onVersion(t, stopLoad(t, l), "2")
}

// What is busy for longer than the handoff waits moves later, when the old release has had its SIGTERM.
func TestHandoff_LongRequest_MovesWhenItEnds(t *testing.T) {
	r := newLiveRig(t)
	busy := filepath.Join(r.dir, "busy")
	first := r.push("1", env("WSLIVE_SLOW_WHILE", busy))
	c := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer c.CloseIdleConnections()
	get := func(path string) (body string, reused bool) {
		ctx := httptrace.WithClientTrace(r.ctx(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }})
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+r.addr+path, nil)
		res, err := c.Do(req)
		if err != nil {
			t.Fatalf("GET %s: %v", path, err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return strings.TrimSpace(string(b)), reused
	}
	get("/version")
	slow := make(chan string, 1)
	go func() { body, _ := get("/slow"); slow <- body }()
	for ctx := r.ctx(); ; <-time.After(time.Millisecond) {
		if _, err := os.Stat(busy); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the slow request does not begin")
		}
	}
	u := r.push("2")
	if err := os.Remove(busy); err != nil {
		t.Fatal(err)
	}
	if u.Handoff == nil || u.Handoff.Kept["busy"] != 1 {
		t.Errorf("%+v", u.Handoff)
	}
	if body := <-slow; body != "slow but there" {
		t.Errorf("the slow request: %q", body)
	}
	for ctx := r.ctx(); ; <-time.After(time.Millisecond) { // SIGTERM may not have arrived yet
		if body, reused := get("/version"); !reused || ctx.Err() != nil {
			t.Errorf("answered by %s, the same connection: %v", body, reused)
			break
		} else if body == "2" {
			break
		}
	}
	r.await(func(e api.Event) bool {
		return e.Generation == first.Generation && strings.Contains(e.Text, "exited with status 0")
	})
}

// A new release that hangs in the soak cannot give anything back. The old one must not suffer for that.
func TestHandoff_NewReleaseHangsInTheSoak_OldServes(t *testing.T) {
	r := newLiveRig(t)
	first := r.push("1")
	l := startMoving(t, r, 10, 0)
	r.install("2", stopsWithin(2*time.Second), func(s *release.Spec) {
		s.Soak.Duration = release.Duration(time.Minute)
		s.Health = &release.Health{Probe: release.Probe{Check: release.CheckHTTP, Path: "/healthz"}}
		s.SetDefaults()
		s.Health.Interval, s.Health.Timeout = release.Duration(50*time.Millisecond), release.Duration(200*time.Millisecond)
	})
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
	if err != nil {
		t.Fatal(err)
	}
	r.awaitPhase(u, api.PhaseSoak)
	r.s.do(func() { r.s.handoffWithin = time.Second }) // that of going back alone
	for _, g := range r.status().Generations {
		if g.Number == u.Generation || g.Number != first.Generation {
			syscall.Kill(g.PID, syscall.SIGSTOP)
		}
	}
	u = r.outcome(u.ID)
	if u.Outcome != api.RolledBack || !errors.Is(u.Error, api.ErrUnhealthy) {
		t.Errorf("%s: %+v", u.Outcome, u.Error)
	}
	st := r.status()
	if st.State != api.StateServing || st.Generations[0].Number != first.Generation {
		t.Errorf("%s: %+v", st.Text, st.Generations)
	}
	l.Stop(r.ctx())
}
