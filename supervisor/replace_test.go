package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/supervisor/store"
)

// follows waits until another process than pid commands, and returns its pid.
func (r *crashRig) follows(pid int) int {
	r.t.Helper()
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); <-time.After(5 * time.Millisecond) {
		if st, err := r.client.Status(r.ctx()); err == nil && st.Daemon.PID != pid {
			return st.Daemon.PID
		}
	}
	r.t.Fatal("no other supervisor takes over")
	return 0
}

func TestReplace_UnderLoad_NobodyNotices(t *testing.T) {
	r := newCrashRig(t, crashModes[0])
	r.push("1")
	l := startMoving(t, r.rig, 50, 50)
	before := r.status()
	pid := before.Daemon.PID
	for range 5 {
		if _, err := r.client.Replace(r.ctx(), "tester"); err != nil {
			t.Fatal(err)
		}
		pid = r.follows(pid)
	}
	st := r.status()
	if was, is := before.Generations[0], st.Generations[0]; is.Number != was.Number || is.PID != was.PID || len(st.Generations) != 1 {
		t.Errorf("it was %+v, is %+v", was, st.Generations)
	}
	if a := st.Daemon.Adopted; len(a) != 1 || !strings.Contains(a[0], "generation 1 (1, serving), 1 listener") {
		t.Errorf("it tells %q", a)
	}
	allMoved(t, r.push("2").Handoff, 50)
	r.endAfterReplacing(pid)
	if err := l.Stop(r.ctx()).Err(); err != nil && !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
}

// endAfterReplacing ends a supervisor that is not our child, and waits for that.
func (r *crashRig) endAfterReplacing(pid int) {
	r.t.Helper()
	<-r.ended
	p, err := os.FindProcess(pid)
	if err != nil {
		r.t.Fatal(err)
	}
	p.Kill()
	for isAlive(pid) {
		<-time.After(time.Millisecond)
	}
	for { // the one before it may still be about to end
		lock, err := store.Lock(filepath.Join(r.cfg.Root, "state/lock"))
		if err == nil {
			lock.Close()
			break
		}
		if !errors.Is(err, store.ErrLocked) {
			r.t.Fatal(err)
		}
		<-time.After(time.Millisecond)
	}
	r.boot() // the audit wants one that it can end in order
}

func TestReplace_BrokenSuccessor_NothingChanges(t *testing.T) {
	const soon = 1500 * time.Millisecond
	for how, want := range map[string]string{"exits": "exit status 3", "crashes": "signal: killed", "hangs": "it proved nothing within 1.5s",
		"newer": "newer hotdeployd", "damaged": "damaged"} {
		t.Run(how, func(t *testing.T) {
			r := newCrashRig(t, crashModes[0], func(s *daemonSpec) {
				if how == "hangs" {
					s.Within = soon
				}
			})
			r.push("1")
			l := startMoving(t, r.rig, 20, 20)
			before := r.status()
			var undo func()
			switch how {
			case "newer", "damaged":
				state := filepath.Join(r.cfg.Root, "state/supervisor.json")
				good, err := os.ReadFile(state)
				if err != nil {
					t.Fatal(err)
				}
				bad := []byte("{")
				if how == "newer" {
					bad = []byte(strings.Replace(string(good), `"format":1`, `"format":9`, 1))
				}
				undo = func() { os.WriteFile(state, good, 0o600) }
				if err := os.WriteFile(state, bad, 0o600); err != nil {
					t.Fatal(err)
				}
			default:
				name := filepath.Join(r.cfg.Root, "break")
				undo = func() { os.Remove(name) }
				if err := os.WriteFile(name, []byte(how), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if _, err := r.client.Replace(r.ctx(), "tester"); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v, want %q in it", err, want)
				}
			}
			st := r.status()
			if st.Daemon.PID != before.Daemon.PID || fmt.Sprint(st.Generations[0].PID) != fmt.Sprint(before.Generations[0].PID) {
				t.Errorf("%+v", st)
			}
			if daemons, _ := r.processes(); len(daemons) != 1 {
				t.Errorf("daemons %v are left", daemons)
			}
			undo()
			r.push("2")
			if err := l.Stop(r.ctx()).Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Versions are not compared: what counts is that the formats of what is written down can be read.
func TestReplace_ByAnOlderVersion_AndBack(t *testing.T) {
	r := newCrashRig(t, crashModes[0])
	r.push("1")
	pid := r.status().Daemon.PID
	for _, version := range []string{"0.1", "9.0"} {
		if err := os.WriteFile(filepath.Join(r.cfg.Root, "daemon-version"), []byte(version), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := r.client.Replace(r.ctx(), "tester"); err != nil {
			t.Fatal(err)
		}
		pid = r.follows(pid)
		if st := r.status(); st.Daemon.Version != version || len(st.Generations) != 1 || st.Generations[0].Number != 1 {
			t.Errorf("%+v, %+v", st.Daemon, st.Generations)
		}
	}
	r.endAfterReplacing(pid)
}
