package supervisor

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// quickSamples looks at draining generations often enough for a test.
func quickSamples(s *Supervisor) { s.sample = 50 * time.Millisecond }

func (r *rig) awaitEvent(generation int, part string) {
	r.t.Helper()
	r.await(func(e api.Event) bool { return e.Generation == generation && strings.Contains(e.Text, part) })
}

func ends(spread time.Duration) change {
	return func(s *release.Spec) { s.Drain.Spread = release.Duration(spread) }
}

// visit opens connections, a few at a time, until done is closed, and lets go of them at the end of the test. Both generations take
// some where both accept.
func (r *rig) visit(done <-chan struct{}) {
	r.t.Helper()
	for {
		for range 4 {
			c, err := net.Dial("tcp", r.addr)
			if err != nil {
				r.t.Fatal(err)
			}
			r.t.Cleanup(func() { c.Close() })
		}
		select {
		case <-done:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// clientOf holds a connection to that version, until the end of the test: without one a draining generation is ended for that alone.
func (r *rig) clientOf(version string) {
	r.t.Helper()
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); {
		c := &http.Client{Transport: &http.Transport{}}
		if r.versionTold(c) == version {
			r.t.Cleanup(c.CloseIdleConnections)
			return
		}
		c.CloseIdleConnections()
	}
	r.t.Fatalf("%s accepts nothing", version)
}

// when is closed when such an event comes.
func (r *rig) when(generation int, part string) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.awaitEvent(generation, part)
	}()
	return done
}

// Clients of a failed release are seen off like any others; but it must not take new ones for as long as it pleases.
func TestDrain_FailedOneThatGoesOnAccepting_IsEnded(t *testing.T) {
	r := emptyRig(t)
	r.adapt = quickSamples
	r.start()
	r.push("1")
	r.install("2", stubborn(400*time.Millisecond), ends(0), soaks(time.Minute))
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
	if err != nil {
		t.Fatal(err)
	}
	r.awaitPhase(u, api.PhaseSoak)
	r.clientOf("2")
	if u, err = r.client.Cancel(r.ctx(), u.ID); err != nil || u.Outcome != api.RolledBack {
		t.Fatalf("%s: %v", u.Outcome, err)
	}
	r.visit(r.when(u.Generation, "was killed by signal 9"))
	r.awaitEvent(u.Generation, "goes on accepting connections although it failed")
	if st := r.status(); st.State != api.StateServing || st.Generations[0].Release.Version != "1" {
		t.Errorf("%s", st.Text)
	}
}

func TestDrain_OldOneThatGoesOnAccepting_IsTold(t *testing.T) {
	r := emptyRig(t)
	r.adapt = quickSamples
	r.start()
	first := r.push("1", stubborn(300*time.Millisecond))
	hold := startLoad(t, r.addr, 1, 0)
	r.push("2")
	r.visit(r.when(first.Generation, "goes on accepting connections after SIGTERM; end it: hotdeploy retire"))
	if report := hold.Stop(r.ctx()); report.Closed != 0 {
		t.Error("its connections were closed for that")
	}
}

func TestDrain_OverItsAge_IsClosedAndEnded(t *testing.T) {
	r := newRig(t)
	u := r.push("1", ends(0), func(s *release.Spec) { s.Drain.MaxAge = release.Duration(300 * time.Millisecond) })
	l := startLoad(t, r.addr, 5, 0)
	r.push("2")
	r.awaitEvent(u.Generation, "is over its drain deadline")
	r.awaitEvent(u.Generation, "exited with status 0")
	awaitClosed(t, r, l, 5)
	if report := l.Stop(r.ctx()); report.Closed != 5 {
		t.Errorf("%d of 5 connections were closed", report.Closed)
	}
}

func TestRetire_AtOnce_AlsoWhenItBeganSlowly(t *testing.T) {
	r := newRig(t)
	u := r.push("1", ends(time.Hour))
	l := startLoad(t, r.addr, 20, 0)
	r.push("2")
	if err := r.client.Retire(r.ctx(), u.Generation, false); err != nil {
		t.Fatal(err)
	}
	r.awaitEvent(u.Generation, "closing its connections over 1h0m0s")
	if err := r.client.Retire(r.ctx(), u.Generation, true); err != nil {
		t.Fatal(err)
	}
	r.awaitEvent(u.Generation, "exited with status 0")
	awaitClosed(t, r, l, 20)
	if report := l.Stop(r.ctx()); report.Closed != 20 {
		t.Errorf("%d of 20 connections were closed", report.Closed)
	}
}

// Somebody who pushes the same bad release again and again must not fill the host with its generations.
func TestDrain_FailedOnesCountForTheLimit(t *testing.T) {
	r := newRig(t)
	r.push("1", ends(0), func(s *release.Spec) { s.Drain.MaxGenerations = 1 })
	var first int
	for i := range 3 {
		version := fmt.Sprint("2.", i)
		r.install(version, ends(0), func(s *release.Spec) { s.Soak.Duration = release.Duration(time.Minute) })
		u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: version, By: "tester"})
		if err != nil {
			t.Fatal(err)
		}
		r.awaitPhase(u, api.PhaseSoak)
		l := startLoad(t, r.addr, 20, 0) // some of them are taken by it, and keep it alive
		defer l.Stop(t.Context())
		if u, err = r.client.Cancel(r.ctx(), u.ID); err != nil || u.Outcome != api.RolledBack {
			t.Fatalf("%+v, %v", u, err)
		}
		if first == 0 {
			first = u.Generation
		}
	}
	r.awaitEvent(first, "exited")
}

// cgroups lets generations have their own, which takes root and a cgroup2 mount. A CI machine must have both.
func (r *rig) cgroups() {
	r.t.Helper()
	dir := ""
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(mount + "/cgroup.procs"); err == nil {
			dir = fmt.Sprintf("%s/hotdeploy-supervisor-test-%d", mount, os.Getpid())
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if os.Getenv("CI") == "true" {
			r.t.Fatalf("cgroups cannot be tested here, and CI must: %v", err)
		}
		fmt.Fprintf(os.Stderr, "##### SKIPPED, NOT TESTED: %s: no cgroups: %v #####\n", r.t.Name(), err)
		r.t.Skip(err)
	}
	r.t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			r.t.Error(err)
		}
	})
	r.prepare = func(o *Options) { o.Cgroup = dir }
}

// Nobody can tell who belongs to a generation whose cgroup was taken away. Then it says so, and is not taken for idle.
func TestDrain_CgroupTakenAway_IsUnknownAndNotIdle(t *testing.T) {
	r := emptyRig(t)
	r.adapt = quickSamples
	r.cgroups()
	r.start()
	r.push("1", stubborn(200*time.Millisecond))
	l := startLoad(t, r.addr, 3, 0)
	st := r.status()
	if g := st.Generations[0]; g.Connections != 3 || g.Processes != 1 {
		t.Fatalf("%+v", g)
	}
	group := filepath.Join(r.s.opt.Cgroup, "generation-1")
	if err := os.WriteFile(filepath.Join(r.s.opt.Cgroup, "cgroup.procs"), []byte(strconv.Itoa(st.Generations[0].PID)), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(group); err != nil {
		t.Fatal(err)
	}
	r.push("2", func(s *release.Spec) { s.Soak.Duration = release.Duration(800 * time.Millisecond) })
	<-time.After(time.Second) // time enough to take it for idle
	st = r.status()
	if len(st.Generations) != 2 || st.Generations[1].Connections != -1 || st.Generations[1].RSS != -1 || !strings.Contains(st.Text, "1 draining") || strings.Contains(st.Text, "connection") {
		t.Errorf("%s: %+v", st.Text, st.Generations)
	}
	if report := l.Stop(r.ctx()); report.Closed != 0 {
		t.Errorf("%d connections were closed", report.Closed)
	}
	if st, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"}); err != nil || len(st.Generations) != 0 { // it can be ended
		t.Errorf("%+v, %v", st, err)
	}
}

// The same in a cgroup as without: a whole tree is counted, and ended to the last process.
func TestStop_InCgroups_EndsTheWholeTree(t *testing.T) {
	r := emptyRig(t)
	r.cgroups()
	r.start()
	r.push("1")
	u := r.push("2")
	r.killServing()
	r.awaitServing(u.Generation)
	if st, err := r.client.Stop(r.ctx(), api.StopRequest{By: "tester"}); err != nil || st.State != api.StateStopped {
		t.Errorf("%+v, %v", st, err)
	}
	if left, _ := filepath.Glob(r.s.opt.Cgroup + "/generation-*"); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
}
