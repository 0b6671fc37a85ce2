package supervisor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
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

// issueReplace asks for a replacement, and returns when whoever comes to that step stands still.
func (r *crashRig) issueReplace(step string) (c *issued, stopped int) {
	r.t.Helper()
	r.arm(step, "stop")
	c = r.issue(&order{RunDir: r.cfg.RunDir, Replace: true}, false)
	return c, r.struck(c)
}

// A stop is carried out by whoever is there: the old one until it has left, then the new one.
func TestReplace_StopMeanwhile_EverythingEnds(t *testing.T) {
	for _, step := range []string{"replace", "proved", "main pid", "gone"} {
		t.Run(step, func(t *testing.T) {
			r := newCrashRig(t, crashModes[0])
			r.push("1")
			c, old := r.issueReplace(step)
			defer c.stop()
			if err := errors.Join(syscall.Kill(old, syscall.SIGTERM), syscall.Kill(old, syscall.SIGCONT)); err != nil {
				t.Fatal(err)
			}
			<-r.ended
			var daemons, others []int
			for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); <-time.After(5 * time.Millisecond) {
				if daemons, others = r.processes(); len(daemons)+len(others) == 0 {
					return
				}
			}
			t.Errorf("daemons %v and %v run on", daemons, others)
			r.destroy()
		})
	}
}

// Whoever asks while a daemon begins is answered as soon as it serves, and by then it can be replaced.
func TestReplace_AskedWhileTheDaemonBegins(t *testing.T) {
	r := newCrashRig(t, crashModes[0])
	r.kill()
	r.arm("resumed", "stop")
	done := r.spawn()
	pid := r.struck(nil)
	conn := r.dialControl()
	body := `{"by":"tester"}`
	if _, err := fmt.Fprintf(conn, "POST /daemon/replace HTTP/1.1\r\nHost: hotdeploy\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK {
		t.Errorf("%s: %s", answer.Status, b)
	}
	r.connect(done)
	r.endAfterReplacing(r.follows(pid))
}

func TestReplace_SystemdCannotBeTold_TheOldOneGoesOn(t *testing.T) {
	r := newCrashRig(t, crashModes[0])
	r.push("1")
	l := startMoving(t, r.rig, 10, 0)
	c, old := r.issueReplace("proved")
	defer c.stop()
	var limit unix.Rlimit
	none := unix.Rlimit{Cur: 3}
	if err := unix.Prlimit(old, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	none.Max = limit.Max
	if err := errors.Join(unix.Prlimit(old, unix.RLIMIT_NOFILE, &none, nil), syscall.Kill(old, syscall.SIGCONT)); err != nil {
		t.Fatal(err)
	}
	if <-c.ended; c.err == nil {
		t.Fatal("it was replaced")
	}
	for ctx := r.ctx(); r.lines("was not replaced") == ""; <-time.After(5 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("it does not say so; whoever asked heard %v", c.err)
		}
	}
	if err := unix.Prlimit(old, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	for daemons, _ := r.processes(); len(daemons) != 1; daemons, _ = r.processes() {
		<-time.After(5 * time.Millisecond)
	}
	if st := r.status(); st.Daemon.PID != old {
		t.Errorf("%d took over from %d", st.Daemon.PID, old)
	}
	r.push("2")
	if err := l.Stop(r.ctx()).Err(); err != nil {
		t.Error(err)
	}
}

// What the old one had lost before is no reason against the new one.
func TestReplace_SomethingWasLostBefore_ItIsReplaced(t *testing.T) {
	r := newCrashRig(t, crashModes[0])
	r.push("1")
	r.manager.forget(controlName(1))
	r.kill()
	r.boot()
	before := r.status().Daemon
	if len(before.Adopted) != 2 || !strings.HasPrefix(before.Adopted[1], "lost: the control channel") {
		t.Fatalf("it tells %q", before.Adopted)
	}
	pid := before.PID
	for range 2 {
		if _, err := r.client.Replace(r.ctx(), "tester"); err != nil {
			t.Fatal(err)
		}
		pid = r.follows(pid)
	}
	r.push("2")
	r.endAfterReplacing(pid)
}

// An upload may be under way in the very moment: what the other one has read must stay true.
func TestReplace_WhoHasLeft_WritesNoState(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(r.cfg.Root, "state/supervisor.json")
	arrive := func(digest string) error { return r.s.arrives(strings.Repeat(digest, 64)) }
	if err := arrive("a"); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r.s.do(func() { r.s.successor = os.Getpid() })
	defer r.s.do(func() { r.s.successor = 0 })
	err = arrive("b")
	after, readErr := os.ReadFile(file)
	if !errors.Is(err, api.ErrStopping) || readErr != nil || string(after) != string(before) {
		t.Errorf("%v; %v:\n%s\nbefore:\n%s", err, readErr, after, before)
	}
}
