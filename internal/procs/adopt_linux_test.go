package procs

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// launched is what the app "launcher" tells of what it launched.
type launched struct {
	Record Record
	Inner  int // a process of the group
}

func init() {
	testApps["launcher"] = func() {
		var said launched
		out, w, _ := os.Pipe()
		g, err := Launch(Spec{Helper: testHelper, Name: "test", Cgroup: os.Getenv("TEST_CGROUP"), Path: "/bin/sh", Env: []string{"PATH=" + os.Getenv("PATH")},
			Args: []string{"sh", "-c", os.Getenv("TEST_SCRIPT")}, Stdout: w, Born: func(g *Group) error {
				if os.Getenv("TEST_DIES") != "" {
					json.NewEncoder(os.Stdout).Encode(launched{Record: g.Record()})
					syscall.Kill(os.Getpid(), syscall.SIGKILL)
				}
				return nil
			}})
		if err != nil {
			panic(err)
		}
		fmt.Fscan(out, &said.Inner)
		said.Record = g.Record()
		json.NewEncoder(os.Stdout).Encode(said)
		select {}
	}
}

// abandoned launches a script by way of another program, which is then killed.
func (r *rig) abandoned(script string, extra ...string) launched {
	r.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), append(extra, "TEST_APP=launcher", "TEST_CGROUP="+r.cgroup, "TEST_SCRIPT="+script)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var l launched
	if jsonErr := json.Unmarshal([]byte(line), &l); jsonErr != nil {
		r.t.Fatalf("%q: %v, %v", line, err, jsonErr)
	}
	cmd.Process.Kill()
	cmd.Wait()
	return l
}

func (r *rig) adopt(rec Record, pidfd *os.File) *Group {
	r.t.Helper()
	g, err := Adopt(rec, pidfd)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := errors.Join(g.Kill(within(r.t)), g.Remove()); err != nil {
			r.t.Error(err)
		}
	})
	return g
}

func TestAdopt_KnowsAndEndsTheWholeTree(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		l := r.abandoned(`setsid sleep 1000 & sleep 1000 & echo $!; wait; sleep 1000`)
		g := r.adopt(l.Record, nil)
		if g.Exit().String() != "is running" || !g.Contains(l.Record.Pid) || !g.Contains(l.Inner) || g.Contains(os.Getpid()) {
			t.Errorf("%v, contains main %v, inner %v, us %v", g.Exit(), g.Contains(l.Record.Pid), g.Contains(l.Inner), g.Contains(os.Getpid()))
		}
		if pids := g.Pids(); len(pids) != 3 {
			t.Errorf("processes %v, want 3", pids)
		}
		if again := g.Record(); again != l.Record {
			t.Errorf("its record is %+v, was %+v", again, l.Record)
		}
		if err := g.Kill(within(t)); err != nil {
			t.Fatal(err)
		}
		if alive(l.Record.Pid) || alive(l.Inner) || len(g.Pids()) > 0 || g.Contains(l.Record.Pid) {
			t.Errorf("left: %v", g.Pids())
		}
		if e := g.Exit(); e.Signal != syscall.SIGKILL {
			t.Errorf("exit: %v", e)
		}
	})
}

func TestAdopt_TellsHowItEnded(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		for script, want := range map[string]string{"exit 7": "exited with status 7", `kill -KILL \$\$`: "was killed by signal 9 (killed)"} {
			for _, when := range []string{"before", "after"} {
				l := r.abandoned("sleep 1000 & trap \"kill $!; " + script + "\" TERM; echo 1; wait")
				fd, err := unix.PidfdOpen(l.Record.Pid, 0)
				if err != nil {
					t.Fatal(err)
				}
				f := os.NewFile(uintptr(fd), "pidfd")
				end := func() {
					unix.Kill(l.Record.Pid, unix.SIGTERM)
					eventually(t, "it has ended", func() bool { return !alive(l.Record.Pid) })
				}
				if when == "before" {
					end()
				}
				g := r.adopt(l.Record, f)
				f.Close()
				if when == "after" {
					end()
				}
				if got := await(t, g).String(); got != want {
					t.Errorf("%s it was adopted: %s, want %s", when, got, want)
				}
				if err := errors.Join(g.Kill(within(t)), g.Remove()); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

func TestAdopt_SomebodyElseHasTheNumber(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		l := r.abandoned("echo 1; exec sleep 1000")
		g := r.adopt(l.Record, nil)
		other := l.Record
		other.Started++
		if r.cgroup == NoCgroup {
			other.Mark = "another"
		} else {
			other.Cgroup += ".another"
		}
		stranger := r.adopt(other, nil)
		if got := await(t, stranger).String(); got != "ended in an unknown way" {
			t.Errorf("%s", got)
		}
		if err := errors.Join(stranger.Signal(syscall.SIGKILL), stranger.Kill(within(t)), stranger.Remove()); err != nil {
			t.Error(err)
		}
		if !alive(l.Record.Pid) || g.Exit().String() != "is running" {
			t.Error("the process that has the number was killed")
		}
	})
}

func TestLaunch_DiesBeforeItHasWrittenDownWhatItLaunched_NothingRuns(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		file := t.TempDir() + "/it-ran"
		l := r.abandoned("touch "+file, "TEST_DIES=1")
		eventually(t, "the helper has ended", func() bool { return !alive(l.Record.Pid) })
		if _, err := os.Stat(file); err == nil {
			t.Error("the app ran all the same")
		}
		if r.cgroup == NoCgroup {
			return
		}
		strays := Strays(r.cgroup, "test", nil)
		if len(strays) != 0 { // only generation-N are ours
			t.Errorf("strays: %v", strays)
		}
		if err := errors.Join(Stray(l.Record.Cgroup).Kill(within(t)), Stray(l.Record.Cgroup).Remove()); err != nil {
			t.Error(err)
		}
	})
}

func TestLaunch_RefusedByBorn_NothingRuns(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		file := t.TempDir() + "/it-ran"
		s := r.spec("touch " + file)
		times, no := 0, errors.New("no room to write it down")
		s.Born = func(*Group) error { times++; return no }
		if _, err := Launch(s); !errors.Is(err, no) || times != 1 {
			t.Errorf("asked %d times: %v", times, err)
		}
		if _, err := os.Stat(file); err == nil {
			t.Error("the app ran all the same")
		}
	})
}
