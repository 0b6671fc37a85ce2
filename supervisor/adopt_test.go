package supervisor

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/testdata/apps"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// inCrashModes runs a story in every way in which generations can be found again.
func inCrashModes(t *testing.T, story func(t *testing.T, r *crashRig)) {
	for _, mode := range crashModes {
		t.Run(mode, func(t *testing.T) { story(t, newCrashRig(t, mode)) })
	}
}

func TestKilled_WhileItServes_TheNextOneGoesOn(t *testing.T) {
	inCrashModes(t, func(t *testing.T, r *crashRig) {
		r.push("1")
		l := startMoving(t, r.rig, 50, 50)
		before := r.status()
		for range 3 {
			r.kill()
			r.boot()
		}
		st := r.status()
		was, is := before.Generations[0], st.Generations[0]
		if st.State != api.StateServing || is.Number != was.Number || is.PID != was.PID || !is.Started.Equal(was.Started) || len(st.Generations) != 1 {
			t.Errorf("it was %+v, is %s: %+v", was, st.Text, st.Generations)
		}
		if st.Listeners[0].Bound != before.Listeners[0].Bound {
			t.Errorf("listeners %+v", st.Listeners)
		}
		if a := st.Daemon.Adopted; len(a) == 0 || !strings.Contains(a[0], "with generation 1 (1, serving), 1 listener") {
			t.Errorf("it tells %q", a)
		}
		lost := "lost: the control channel of generation 1: its connections will not move to the next release, they drain"
		if says := slices.Contains(st.Daemon.Adopted, lost) && strings.Contains(r.out.String(), lost+"\n"); says != (r.manager == nil) {
			t.Errorf("it tells %q", st.Daemon.Adopted)
		}
		if r.manager != nil {
			want := []string{"control.1", "listener.1", "notify.sock", "process.1"}
			if got := r.manager.names(); !slices.Equal(got, want) {
				t.Errorf("the fd store holds %v", got)
			}
		}
		u := r.push("2")
		if r.manager != nil {
			allMoved(t, u.Handoff, 50)
		}
		if u.Generation != 2 {
			t.Errorf("the next generation is %d", u.Generation)
		}
		report := l.Stop(r.ctx())
		if report.Closed > 0 && r.manager != nil || report.RequestsFailed > 0 {
			t.Errorf("%s", report)
		}
	})
}

func TestKilled_AppDiesMeanwhile_IsToldWithItsStatusAndRestarted(t *testing.T) {
	inCrashModes(t, func(t *testing.T, r *crashRig) {
		first := r.push("1")
		pid := r.status().Generations[0].PID
		r.kill()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for isAlive(pid) {
			<-time.After(time.Millisecond) // nobody tells
		}
		r.boot()
		r.awaitServing(first.Generation)
		said := r.lines("generation 1 (1) ")
		if r.manager != nil && !strings.Contains(said, "was killed by signal 9 (killed) while no supervisor ran") {
			t.Errorf("it says\n%s", said)
		}
		if !strings.Contains(said, "while no supervisor ran") {
			t.Errorf("it says\n%s", said)
		}
	})
}

// isAlive is true until the last thread has ended: only then what the process had open is closed.
func isAlive(pid int) bool { return !hasEnded(pid) }

func TestKilled_WhileOldOnesDrain_TheirDeadlinesStay(t *testing.T) {
	inCrashModes(t, func(t *testing.T, r *crashRig) {
		r.app = apps.Build(t, "wsecho", "", "")
		r.push("1", func(s *release.Spec) { s.Drain.MaxAge = release.Duration(time.Hour) })
		l, err := load.Start(r.ctx(), load.Options{Addr: r.addr, WebSockets: 1, Held: load.Stays})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Ready(r.ctx()); err != nil {
			t.Fatal(err)
		}
		r.push("2")
		var was api.Generation
		for _, g := range r.status().Generations {
			if g.State == api.GenDraining {
				was = g
			}
		}
		r.kill()
		r.boot()
		for _, g := range r.status().Generations {
			if g.Number != was.Number {
				continue
			}
			if g.State != api.GenDraining || was.Deadline == nil || !g.Deadline.Equal(*was.Deadline) || !g.Draining.Equal(*was.Draining) || g.Connections != 1 {
				t.Errorf("it is %+v\nwas %+v", g, was)
			}
		}
		if report := l.Stop(r.ctx()); report.Closed > 0 {
			t.Errorf("%s", report)
		}
		r.await(func(e api.Event) bool {
			return e.Generation == was.Number && strings.Contains(e.Text, "exited with status 0")
		})
	})
}
