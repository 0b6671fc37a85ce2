package procs

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the launch helper, and a few apps.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "launch" {
		LaunchMain(os.Args[2:])
	}
	if app := os.Getenv("TEST_APP"); app != "" {
		testApps[app]()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var testHelper = []string{"/proc/self/exe", "launch"}

// inBothModes runs a story with a cgroup and without one.
func inBothModes(t *testing.T, story func(t *testing.T, r *rig)) {
	t.Run("cgroup", func(t *testing.T) { story(t, &rig{t: t, cgroup: testCgroup(t)}) })
	t.Run("session", func(t *testing.T) { story(t, &rig{t: t, cgroup: NoCgroup}) })
}

// testCgroup makes a cgroup to work in. It takes root and a cgroup2 mount, which a CI machine must have.
func testCgroup(t *testing.T) string {
	mounts, err := cgroupMounts()
	if err != nil || len(mounts) == 0 {
		missing(t, "no cgroup2 mount")
	}
	dir := filepath.Join(mounts[0].point, fmt.Sprintf("hotdeploy-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		missing(t, err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Rmdir(dir); err != nil {
			t.Errorf("something is left in the test's cgroup: %v", err)
		}
	})
	return dir
}

func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("cgroups cannot be tested here, and CI must: %s", what)
	}
	t.Skipf("##### CGROUPS ARE NOT TESTED: %s #####", what)
}

// rig starts groups and sees to it that nothing of them is left.
type rig struct {
	t      *testing.T
	cgroup string
}

// spec is one that runs a shell script.
func (r *rig) spec(script string, args ...string) Spec {
	return Spec{Helper: testHelper, Name: "test", Cgroup: r.cgroup, Path: "/bin/sh", Args: append([]string{"sh", "-c", script, "sh"}, args...),
		Env: []string{"PATH=" + os.Getenv("PATH")}, Dir: r.t.TempDir()}
}

// start launches s. When the test ends the group is ended too.
func (r *rig) start(s Spec) *Group {
	r.t.Helper()
	g, err := Launch(s)
	if err != nil {
		r.t.Fatal(err)
	}
	if (g.Cgroup() == "") != (r.cgroup == NoCgroup) {
		r.t.Errorf("its cgroup is %q", g.Cgroup())
	}
	r.t.Cleanup(func() {
		if err := g.Kill(within(r.t)); err != nil {
			r.t.Error(err)
		}
		if err := g.Remove(); err != nil {
			r.t.Error(err)
		}
		if groups.living[g.Pid()] == g {
			r.t.Error("it is still known after Remove")
		}
	})
	return g
}

// script starts a shell script; lines is what it prints.
func (r *rig) script(text string, args ...string) (g *Group, lines *lines) {
	r.t.Helper()
	lines, w := newLines(r.t)
	s := r.spec(text, args...)
	s.Stdout = w
	g = r.start(s)
	w.Close()
	return g, lines
}

// within bounds a wait that should be short; it is no measurement.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// lines are what processes print, as they print it.
type lines struct {
	t *testing.T
	r *bufio.Reader
}

func newLines(t *testing.T) (*lines, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.SetReadDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { r.Close() })
	return &lines{t, bufio.NewReader(r)}, w
}

func (l *lines) next() string {
	l.t.Helper()
	s, err := l.r.ReadString('\n')
	if err != nil {
		l.t.Fatalf("after %q: %v", s, err)
	}
	return strings.TrimSpace(s)
}

func (l *lines) pid() int {
	l.t.Helper()
	pid, err := strconv.Atoi(l.next())
	if err != nil {
		l.t.Fatal(err)
	}
	return pid
}

func await(t *testing.T, g *Group) Exit {
	t.Helper()
	select {
	case <-g.Done():
	case <-within(t).Done():
		t.Fatal("it did not end")
	}
	return g.Exit()
}

func alive(pid int) bool {
	s, ok := readStat(pid)
	return ok && s.alive()
}

// eventually looks at the kernel's state again and again: nothing tells when an init process has reaped an orphan.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in a minute: " + what)
		}
	}
}
