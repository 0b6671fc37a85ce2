package supervisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
)

// interrupted makes the state on the disk one that a power cut left during an upgrade. The daemon must not run.
func (r *rig) interrupted(u api.Upgrade) {
	r.t.Helper()
	file := filepath.Join(r.cfg.Root, "state/supervisor.json")
	b, err := os.ReadFile(file)
	if err != nil {
		r.t.Fatal(err)
	}
	var st store.State
	if err := json.Unmarshal(b, &st); err != nil {
		r.t.Fatal(err)
	}
	st.Upgrade = &u
	if b, err = json.Marshal(st); err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) history() []string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.cfg.Root, "state/history.jsonl"))
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func TestDaemonStart_AfterAPowerCutInAnUpgrade_TellsWhatBecameOfIt(t *testing.T) {
	r := newRig(t)
	first := r.push("1")
	second := r.push("2")
	for i, tc := range []struct {
		kind  string
		to    release.Ref
		phase string
		want  api.Outcome
	}{
		{api.KindPush, first.To, api.PhaseVerify, api.NothingChanged},
		{api.KindPush, second.To, api.PhaseCommit, api.Done},
		{api.KindRestart, second.To, api.PhaseVerify, api.NothingChanged}, // what is committed says nothing about a restart
		{api.KindRestart, second.To, api.PhaseCommit, api.Done},
		{api.KindRollback, second.To, api.PhaseVerify, api.NothingChanged},
	} {
		r.stop()
		u := api.Upgrade{ID: fmt.Sprintf("cut%d", i), Kind: tc.kind, By: "tester", To: tc.to, Started: time.Now(), Phase: tc.phase}
		r.interrupted(u)
		r.start()
		got, err := r.client.GetUpgrade(r.ctx(), u.ID)
		if err != nil || got.Outcome != tc.want || got.Finished == nil || (got.Error == nil) != (tc.want == api.Done) {
			t.Errorf("%s cut in phase %s: %+v, %v", tc.kind, tc.phase, got, err)
		}
		if last := r.status().Last; last == nil || last.ID != u.ID {
			t.Errorf("%s: the last upgrade is %+v", tc.kind, last)
		}
		if !r.serves("2") {
			t.Errorf("%s: 2 does not serve", tc.kind)
		}
	}
	// Cut between the entry in the history and the note that it is over: what was written counts, once.
	r.stop()
	lines := len(r.history())
	r.interrupted(api.Upgrade{ID: second.ID, Kind: api.KindPush, To: second.To, Started: time.Now(), Phase: api.PhaseVerify})
	r.start()
	if got, err := r.client.GetUpgrade(r.ctx(), second.ID); err != nil || got.Outcome != api.Done || len(r.history()) != lines {
		t.Errorf("%+v, %v, %d lines of history instead of %d", got, err, len(r.history()), lines)
	}
}

// Whoever sees an outcome, by whatever means, may go on at once.
func TestOutcome_IsSeen_NextOneBegins(t *testing.T) {
	r := newRig(t)
	r.push("1", func(s *release.Spec) { s.Soak.Duration = 0 })
	for range 5 {
		u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindRestart, By: "tester"})
		if err != nil {
			t.Fatal(err)
		}
		for u.Outcome == "" {
			if u, err = r.client.GetUpgrade(r.ctx(), u.ID); err != nil {
				t.Fatal(err)
			}
		}
		if u.Outcome != api.Done {
			t.Fatalf("%+v", u)
		}
	}
}

func TestPrune_KeepsWhatIsNeeded_AndNobodyGetsInItsWay(t *testing.T) {
	r := newRig(t)
	keep := func(s *release.Spec) { s.Releases.Keep, s.Drain.Spread = 1, 0 }
	r.push("1", keep)
	l := startLoad(t, r.addr, 2, 0) // keeps generation 1 alive, so 1 is in use
	for _, v := range []string{"2", "3", "4", "5"} {
		r.awaitOnly(1, r.push(v, keep).Generation) // one in use is not removed
	}
	have := func() string {
		list, err := r.client.Releases(r.ctx())
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, rel := range list {
			names = append(names, rel.Version+" "+rel.State)
		}
		return strings.Join(names, ", ")
	}
	pruned := func() (yes bool) {
		r.s.do(func() { yes = r.s.pruning == nil })
		return yes
	}
	for !pruned() {
		<-time.After(time.Millisecond)
	}
	if got := have(); got != "5 committed, 4 previous, 3 , 1 draining" {
		t.Errorf("on the host: %s", got)
	}
	stopLoad(t, l)
	// While releases are being removed an upgrade waits, but not the start of what is committed.
	done := make(chan struct{})
	r.s.do(func() { r.s.pruning = done })
	number := r.status().Generations[0].Number
	r.killServing()
	number = r.awaitServing(number)
	began := make(chan error, 1)
	go func() {
		_, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindRollback, Version: "3", By: "tester"})
		began <- err
	}()
	select {
	case err := <-began:
		t.Errorf("did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	r.s.do(func() { r.s.pruning = nil })
	close(done)
	if err := <-began; err != nil {
		t.Error(err)
	}
	r.awaitServing(number)
	if !r.serves("3") {
		t.Error("3 does not serve")
	}
}

// The committed release's folder may have been replaced by one of the same name.
func TestStart_OtherContentUnderTheSameVersion_IsNotStarted(t *testing.T) {
	r := newRig(t)
	u := r.push("1")
	r.stop()
	file := filepath.Join(r.cfg.Root, "state/supervisor.json")
	b, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte(strings.ReplaceAll(string(b), u.To.Digest, strings.Repeat("ab", 32))), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.start()
	r.awaitText("start cannot begin: release 1 on this host has digest")
	if st := r.status(); st.State != api.StateCrashed || len(st.Generations) != 0 {
		t.Errorf("%s: %+v", st.Text, st.Generations)
	}
}

func TestKeeper_BackOff(t *testing.T) {
	policy := release.Restart{Backoff: release.Duration(100 * time.Millisecond), MaxBackoff: release.Duration(time.Second), Crashes: 3, Window: release.Duration(time.Minute)}
	for attempts, want := range map[int]time.Duration{0: 0, 1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 4: 800 * time.Millisecond, 5: time.Second, 1000: time.Second} {
		if got := (&keeper{policy: policy, attempts: attempts}).backoff(); got != want {
			t.Errorf("after %d attempts: %s, not %s", attempts, got, want)
		}
	}
	now := time.Now()
	crash := func(k *keeper, times int, at time.Time) *keeper {
		for range times {
			k.crashed(at)
		}
		return k
	}
	after := func(kind string) *keeper {
		k := &keeper{policy: policy}
		k.committed(kind, now)
		return k
	}
	for _, tc := range []struct {
		name string
		k    *keeper
		at   time.Time
		want bool
	}{
		{"too few", crash(after(api.KindPush), 2, now), now, false},
		{"enough", crash(after(api.KindPush), 3, now), now, true},
		{"too late", crash(after(api.KindPush), 3, now), now.Add(2 * time.Minute), false},
		{"after a restart", crash(after(api.KindRestart), 9, now), now, false},
		{"after a rollback", crash(after(api.KindRollback), 9, now), now, false},
		{"after the boot", crash(&keeper{policy: policy}, 9, now), now, false},
	} {
		if got := tc.k.givesUp(tc.at); got != tc.want {
			t.Errorf("%s: gives up: %v", tc.name, got)
		}
	}
	k := crash(after(api.KindPush), 5, now)
	if crash(k, 1, now.Add(time.Hour)); k.attempts != 1 {
		t.Errorf("after an hour well: attempt %d", k.attempts)
	}
	if k.gaveUp(); k.givesUp(now) {
		t.Error("a second time")
	}
	var none keeper
	none.policy = defaultRestart()
	if none.failed(); none.backoff() <= 0 {
		t.Error("without a policy it would start again and again without a pause")
	}
}
