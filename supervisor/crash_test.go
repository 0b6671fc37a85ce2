package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// crashAgain lets what serves end by itself from now on, again and again.
func (r *rig) crashAgain() {
	r.t.Helper()
	r.hostEnv("WSECHO_EXIT_AFTER=300ms\n")
	r.killServing()
}

func restartsAtOnce(s *release.Spec) { s.Restart.Backoff = release.Duration(time.Millisecond) }

func TestCrash_DuringAnUpgrade_TheNewOneServes(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.install("2", env("WSECHO_SLOW_START", "700ms"))
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
	if err != nil {
		t.Fatal(err)
	}
	r.awaitPhase(u, api.PhaseReady)
	r.killServing()
	r.awaitText("was killed by signal 9")
	if !r.serves("2") { // it waited in the queue for whoever comes
		t.Error("another version answers")
	}
	got := r.outcome(u.ID)
	if got.Outcome != api.Done {
		t.Errorf("%+v", got)
	}
	r.awaitOnly(got.Generation) // it is told of the one that was killed before its place is free
	if st := r.status(); st.State != api.StateServing {
		t.Errorf("%s", st.Text)
	}
}

func TestCrash_DuringAnUpgradeThatFails_TheOldOneComesBack(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.install("2", func(s *release.Spec) {
		env("WSECHO_NEVER_READY", "1")(s)
		s.Ready.Timeout = release.Duration(time.Minute)
	})
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindPush, Version: "2", By: "tester"})
	if err != nil {
		t.Fatal(err)
	}
	r.awaitPhase(u, api.PhaseReady)
	r.killServing()
	r.awaitText("was killed by signal 9")
	got, err := r.client.Cancel(r.ctx(), u.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got.Outcome != api.NothingChanged || !strings.Contains(got.Error.State, "release 1 is to be started") {
		t.Errorf("%s: %+v", got.Outcome, got.Error)
	}
	if !r.serves("1") {
		t.Error("another version answers")
	}
}

// Whichever side of the switch it dies on, the outcome says that side, and somebody serves in the end.
func TestCrash_AroundTheCommit_TheOutcomeIsTheTruth(t *testing.T) {
	r := newRig(t)
	r.push("1")
	for i, after := range []string{"195ms", "200ms", "201ms", "203ms", "206ms", "210ms"} {
		version := "2." + string(rune('a'+i))
		r.install(version, env("WSECHO_EXIT_AFTER", after), func(s *release.Spec) { s.Restart.Crashes = 1 })
		u := r.upgrade(api.KindPush, version)
		want := "1"
		switch {
		case u.Outcome == api.Done:
			r.await(func(e api.Event) bool { // its crash takes it back
				return e.Upgrade != nil && e.Upgrade.Kind == api.KindAutoRollback && e.Upgrade.From == nil && e.Upgrade.Outcome == api.Done && e.Upgrade.Generation > u.Generation
			})
		case u.Outcome == api.NothingChanged && errors.Is(u.Error, api.ErrStart): // it had ended before anybody heard that it was ready
		case u.Outcome != api.RolledBack || !errors.Is(u.Error, api.ErrExited):
			t.Errorf("%s: %+v", u.Outcome, u.Error)
		}
		if st := r.status(); st.State != api.StateServing || st.Committed.Version != want || !r.serves(want) {
			t.Errorf("after %s: %s, committed %v", u.Outcome, st.Text, st.Committed)
		}
	}
	if n := strings.Count(r.log.String(), "exited with status 1\n"); n > 6 {
		t.Errorf("six releases exited %d times:\n%s", n, r.log)
	}
}

// The two instants around the switch, exactly.
func TestCrash_AtTheSwitch(t *testing.T) {
	for at, want := range map[string]struct {
		outcome api.Outcome
		serves  string
		crashes string
	}{
		"commit":    {api.RolledBack, "1", "0"},
		"committed": {api.Done, "2", "1"},
	} {
		t.Run(at, func(t *testing.T) {
			r := emptyRig(t)
			r.adapt = func(s *Supervisor) {
				s.step = func(name string) {
					var g *generation
					s.do(func() {
						if s.busy != nil && s.busy.record.To.Version == "2" && s.busy.record.Kind == api.KindPush {
							g = s.gens[s.busy.record.Generation]
						}
					})
					if name == at && g != nil {
						g.group.Signal(syscall.SIGKILL)
						<-g.gone // its sockets are given back by then
					}
				}
			}
			r.start()
			r.push("1")
			r.install("2")
			u := r.upgrade(api.KindPush, "2")
			if u.Outcome != want.outcome || u.Error != nil && !errors.Is(u.Error, api.ErrExited) {
				t.Errorf("%s: %+v", u.Outcome, u.Error)
			}
			if want.outcome == api.Done {
				r.awaitServing(u.Generation)
			}
			if st := r.status(); st.State != api.StateServing || st.Committed.Version != want.serves || !r.serves(want.serves) {
				t.Errorf("%s, committed %v", st.Text, st.Committed)
			}
			if !strings.Contains(r.metrics(), "hotdeploy_crashes_total "+want.crashes+"\n") {
				t.Errorf("crashes:\n%s", r.metrics())
			}
			if n := strings.Count(r.log.String(), "generation 2 (2) was killed by signal 9"); n != 1 {
				t.Errorf("its end was told %d times", n)
			}
		})
	}
}

func TestAutoRollback_CannotBegin_GoesOnRestarting(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.push("2", restartsAtOnce)
	there, away := filepath.Join(r.cfg.Root, "releases/1"), filepath.Join(r.cfg.Root, "away")
	if err := os.Rename(there, away); err != nil {
		t.Fatal(err)
	}
	r.crashAgain()
	r.awaitText("auto-rollback cannot begin: there is no release 1")
	starts := 0
	r.await(func(e api.Event) bool {
		if u := e.Upgrade; u != nil && u.Outcome == api.Done && u.Kind == api.KindStart {
			starts++
		}
		return starts > 5
	})
	if n := strings.Count(r.log.String(), "going back to 1"); n != 1 {
		t.Errorf("tried to go back %d times", n)
	}
}

func TestAutoRollback_FailsToo_GoesOnRestarting(t *testing.T) {
	r := newRig(t)
	r.push("1")
	damaged := filepath.Join(r.cfg.Root, "releases/1/files/bin/wsecho")
	r.push("2", restartsAtOnce)
	if err := errors.Join(os.Chmod(filepath.Dir(damaged), 0o755), os.Remove(damaged), os.WriteFile(damaged, []byte("damaged"), 0o755)); err != nil {
		t.Fatal(err)
	}
	r.crashAgain()
	failed := 0
	r.await(func(e api.Event) bool {
		if u := e.Upgrade; u != nil && u.Kind == api.KindAutoRollback && u.Outcome != "" {
			failed = u.Generation
			if u.Outcome != api.NothingChanged || !errors.Is(u.Error, api.ErrDigest) {
				t.Errorf("%s: %+v", u.Outcome, u.Error)
			}
			return true
		}
		return false
	})
	seen := 0
	r.await(func(e api.Event) bool { // and once is enough: no second try
		u := e.Upgrade
		if u != nil && u.Outcome == api.Done && u.Kind == api.KindStart && u.Generation > failed {
			seen++
		}
		return seen > 4
	})
	if n := strings.Count(r.log.String(), "going back to 1"); n != 1 {
		t.Errorf("went back %d times", n)
	}
	if st := r.status(); st.Committed.Version != "2" {
		t.Errorf("committed %s", st.Committed.Version)
	}
}

func TestStart_CommittedReleaseCannotBeRead_IsTriedAgainAndSaysWhy(t *testing.T) {
	r := newRig(t)
	r.push("1")
	r.stop()
	there, away := filepath.Join(r.cfg.Root, "releases"), filepath.Join(r.cfg.Root, "away")
	if err := errors.Join(os.Rename(there, away), os.Mkdir(there, 0o755)); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.awaitText("there is no release 1 on this host")
	st := r.status()
	if st.State != api.StateCrashed || !strings.Contains(st.Text, "there is no release 1 on this host") {
		t.Errorf("%s: %s", st.State, st.Text)
	}
	if err := errors.Join(os.Remove(there), os.Rename(away, there)); err != nil {
		t.Fatal(err)
	}
	r.awaitServing(0)
	if !r.serves("1") {
		t.Error("another version answers")
	}
}

// A log that fills the disk is a common cause of a crash: it must not be one of staying down.
func TestCrash_StateCannotBeWritten_ComesBack(t *testing.T) {
	r := newRig(t)
	first := r.push("1")
	r.install("2")
	repair := r.breakState()
	r.killServing()
	second := r.awaitServing(first.Generation)
	r.killServing()
	r.awaitServing(second)
	if !r.serves("1") {
		t.Error("another version answers")
	}
	if u := r.upgrade(api.KindPush, "2"); u.Outcome != api.NothingChanged || !strings.Contains(u.Error.Message, "state") || !r.serves("1") {
		t.Errorf("a push: %s: %+v", u.Outcome, u.Error)
	}
	repair()
	if u := r.upgrade(api.KindPush, "2"); u.Outcome != api.Done {
		t.Errorf("a push when there is room again: %s: %+v", u.Outcome, u.Error)
	}
}

func TestCrashLoop_DoesNotFillTheHistory(t *testing.T) {
	r := newRig(t)
	r.push("1", func(s *release.Spec) {
		s.Restart.Backoff, s.Restart.MaxBackoff = release.Duration(time.Millisecond), release.Duration(2*time.Millisecond)
	})
	r.hostEnv("WSECHO_EXIT_AT_START=true\n")
	r.killServing()
	failed := 0
	r.await(func(e api.Event) bool {
		if u := e.Upgrade; u != nil && u.Kind == api.KindStart && u.Outcome == api.NothingChanged {
			failed++
		}
		return failed == 10
	})
	if st := r.status(); !strings.Contains(st.Text, "exited with status 3") {
		t.Errorf("the status does not say why: %s", st.Text)
	}
	b, err := os.ReadFile(filepath.Join(r.cfg.Root, "state/history.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), `"kind":"start"`); n != 1 {
		t.Errorf("%d failed starts are in the history, want the first", n)
	}
	if err := os.Remove(filepath.Join(r.cfg.Root, "env")); err != nil {
		t.Fatal(err)
	}
	r.awaitServing(failed)
}
