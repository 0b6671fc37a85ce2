package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// step is an instruction at which the supervisor can be killed, and what must be true of an upgrade from 1 to 2 in which it was.
type step struct {
	name  string
	nth   int           // the push of 2 comes to it for the nth time
	fails bool          // the release fails its soak, so that the upgrade is taken back
	may   []api.Outcome // "": nobody was told that it began
}

var (
	undone    = []api.Outcome{api.NothingChanged, api.RolledBack}
	finished  = []api.Outcome{api.Done}
	takenBack = []api.Outcome{api.RolledBack}
)

// steps are all of them, in the order of an upgrade.
var steps = []step{
	{name: "verify", may: []api.Outcome{"", api.NothingChanged}},
	{name: "verified", may: undone},
	{name: "start", may: undone},
	{name: "born", may: undone},
	{name: "recorded", may: undone},
	{name: "started", may: finished},
	{name: "ready", may: finished},
	{name: "handoff", may: undone},
	{name: "handed over", may: undone},
	{name: "soak", may: finished},
	{name: "soaked", may: finished},
	{name: "commit", may: finished},
	{name: "committed", may: finished},
	{name: "drain", may: finished},
	{name: "told", may: finished},
	{name: "promoted", may: finished},
	{name: "pointed", may: finished},
	{name: "conclude", may: finished},
	{name: "in history", may: finished},
	{name: "remembered", may: finished},
	{name: "prune", may: finished},

	{name: "take back", fails: true, may: takenBack},
	{name: "hand back", fails: true, may: takenBack},
	{name: "drain", fails: true, may: takenBack},
	{name: "told", fails: true, may: takenBack},
	{name: "conclude", fails: true, may: takenBack},
	{name: "in history", fails: true, may: takenBack},
	{name: "remembered", fails: true, may: takenBack},
}

// TestCrashMatrix_SupervisorDiesAtEachStep kills the supervisor at each step of an upgrade under load, and once more while the next one
// takes over. Every time the books must be closed, exactly one release be committed and serve, and nobody have noticed.
func TestCrashMatrix_SupervisorDiesAtEachStep(t *testing.T) {
	var table strings.Builder
	for _, at := range steps {
		name := at.name
		if at.fails {
			name += " of an upgrade that fails"
		}
		t.Run(name, func(t *testing.T) {
			result := dieAt(t, at)
			fmt.Fprintf(&table, "%-40s %s\n", name, result)
		})
	}
	t.Logf("killed at          the upgrade ended with, connections kept\n%s", &table)
}

func dieAt(t *testing.T, at step) (result string) {
	r := newCrashRig(t, crashModes[0])
	r.push("1")
	l := startMoving(t, r.rig, 20, 20)
	r.install("2", func(s *release.Spec) {
		if at.fails {
			env("WSLIVE_UNHEALTHY", "1")(s)
			s.Health = &release.Health{Probe: release.Probe{Check: release.CheckHTTP, Path: "/healthz"}, Interval: release.Duration(20 * time.Millisecond),
				Timeout: release.Duration(5 * time.Second), Failures: 2}
		}
	})
	r.kill()
	r.spec.FailAt, r.spec.Nth = at.name, max(at.nth, 1)
	r.boot()
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
	if err != nil && at.name != "verify" {
		t.Fatal(err)
	}
	r.died()
	r.spec.FailAt = "resumed" // and the one that comes dies too
	r.spawn()
	r.died()
	r.spec.FailAt = ""
	r.boot()

	outcome := api.Outcome("")
	if u.ID != "" {
		outcome = r.closed(u.ID)
	}
	if !contains(at.may, outcome) {
		t.Errorf("the upgrade ended with %q", outcome)
	}
	want := "1"
	if outcome == api.Done {
		want = "2"
	}
	r.consistent(want)
	report := l.Stop(r.ctx())
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	r.push("3")
	if outcome == "" {
		outcome = "never begun"
	}
	return fmt.Sprintf("%-16s %d/%d", outcome, report.Kept, report.Total)
}

func contains(list []api.Outcome, o api.Outcome) bool {
	for _, x := range list {
		if x == o {
			return true
		}
	}
	return false
}

// closed waits until the upgrade has ended, for whichever supervisor. One that none knows has never begun.
func (r *crashRig) closed(id string) api.Outcome {
	r.t.Helper()
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); <-time.After(5 * time.Millisecond) {
		u, err := r.client.GetUpgrade(r.ctx(), id)
		if errors.Is(err, api.ErrNotFound) {
			return ""
		}
		if err == nil && u.Outcome != "" {
			return u.Outcome
		}
	}
	r.t.Errorf("upgrade %s does not end", id)
	return ""
}

// consistent is the audit: that version is committed, current and alone, and nothing is half there.
func (r *crashRig) consistent(version string) {
	r.t.Helper()
	var st api.Status
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); <-time.After(5 * time.Millisecond) {
		if st = r.status(); st.Upgrade == nil && len(st.Generations) == 1 && st.State == api.StateServing {
			break
		}
	}
	if st.State != api.StateServing || st.Committed.Version != version || len(st.Generations) != 1 || st.Generations[0].Release.Version != version || st.Upgrade != nil {
		r.t.Errorf("%s; committed %v, generations %+v, upgrade %+v", st.Text, st.Committed, st.Generations, st.Upgrade)
	}
	if !r.serves(version) {
		r.t.Errorf("%s does not serve", version)
	}
	if to, err := os.Readlink(filepath.Join(r.cfg.Root, "current")); err != nil || to != "releases/"+version {
		r.t.Errorf("current points to %q, %v", to, err)
	}
	left := r.halfDone()
	for limit := time.Now().Add(30 * time.Second); len(left) > 0 && time.Now().Before(limit); left = r.halfDone() {
		<-time.After(5 * time.Millisecond) // a release that never served is taken back in the background
	}
	if len(left) > 0 {
		r.t.Errorf("left: %q", left)
	}
	if len(st.Generations) == 1 {
		n := st.Generations[0].Number
		want := fmt.Sprintf("[control.%d listener.1 notify.sock process.%d]", n, n)
		if got := fmt.Sprint(r.manager.names()); got != want {
			r.t.Errorf("the fd store holds %s, want %s", got, want)
		}
		if dirs, _ := filepath.Glob(filepath.Join(r.spec.Cgroup, "*/cgroup.procs")); len(dirs) != 1 {
			r.t.Errorf("cgroups: %q", dirs)
		}
	}
}

func (r *crashRig) halfDone() (left []string) {
	for _, pattern := range []string{"state/.hotdeploy-*", "releases/.hotdeploy-*", ".hotdeploy-*", "../run/*.new"} {
		found, _ := filepath.Glob(filepath.Join(r.cfg.Root, pattern))
		left = append(left, found...)
	}
	return left
}

// The other ones that can die while an upgrade is under way: at each phase the old generation, and the new one.
func TestCrashMatrix_GenerationAndSupervisorDieTogether(t *testing.T) {
	for _, phase := range []string{"ready", "handed over", "soak", "committed"} {
		for _, who := range []string{"old", "new"} {
			t.Run(who+" at "+phase, func(t *testing.T) {
				r := newCrashRig(t, crashModes[0])
				r.push("1")
				r.install("2")
				r.kill()
				r.spec.FailAt, r.spec.Nth = phase, 1
				r.boot()
				u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
				if err != nil {
					t.Fatal(err)
				}
				r.died()
				l, err := readLedger(r.cfg.RunDir, "echo")
				if err != nil {
					t.Fatal(err)
				}
				for _, g := range l.Generations {
					if (g.Release.Version == "2") == (who == "new") {
						if err := syscall.Kill(g.Process.Pid, syscall.SIGKILL); err != nil {
							t.Error(err)
						}
					}
				}
				r.spec.FailAt = ""
				r.boot()
				outcome := r.closed(u.ID)
				want := "1"
				if outcome == api.Done {
					want = "2"
				}
				r.consistent(want)
				t.Logf("%s", outcome)
			})
		}
	}
}
