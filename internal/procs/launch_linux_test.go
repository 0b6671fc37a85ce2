package procs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLaunch_SocketsAndWatchdogAreMeantForTheAppItself(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		out, w := newLines(t)
		s := r.spec(`echo $$ $LISTEN_PID $WATCHDOG_PID $LISTEN_FDNAMES; sleep 60`)
		s.Env = append(s.Env, "LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=web", "WATCHDOG_USEC=1000000", "WATCHDOG_PID=1")
		s.Stdout, s.Files = w, []*os.File{w}
		g := r.start(s)
		if got, want := out.next(), fmt.Sprintf("%d %[1]d %[1]d web", g.Pid()); got != want {
			t.Errorf("pid, LISTEN_PID, WATCHDOG_PID, LISTEN_FDNAMES are %q, want %q", got, want)
		}
	})
}

func TestLaunch_EnvironmentIsTheGivenOneAndNothingElse(t *testing.T) {
	t.Setenv("OF_THE_SUPERVISOR", "1")
	inBothModes(t, func(t *testing.T, r *rig) {
		out, w := newLines(t)
		s := Spec{Helper: testHelper, Cgroup: r.cgroup, Path: "/usr/bin/env", Args: []string{"env"}, Stdout: w,
			Env: []string{"B=1", "A=first", "EMPTY=", "A=last", "LISTEN_PIDFDID=7"}}
		g := r.start(s)
		await(t, g)
		w.Close()
		want := []string{"B=1", "EMPTY=", "A=last"}
		if r.cgroup == NoCgroup {
			want = append(want, "HOTDEPLOY_GROUP="+g.Record().Mark)
		}
		for _, kv := range want {
			if got := out.next(); got != kv {
				t.Errorf("got %q, want %q", got, kv)
			}
		}
		if more, err := out.r.ReadString('\n'); err == nil {
			t.Errorf("and more: %q", more)
		}
	})
}

func TestLaunch_ChildHasItsFilesInOrderAndNoOthers(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		leaked, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0) // not close-on-exec, like what a careless parent left us
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(leaked)
		dir := t.TempDir()
		var files []*os.File
		want := []string{"/dev/null", "pipe", "/dev/null"}
		for i := range 12 { // enough to cover the numbers that the parent uses itself
			f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			files, want = append(files, f), append(want, f.Name())
		}
		out, w := newLines(t)
		s := r.spec(`echo; kill -STOP $$`) // it is past the files that loading a program opens
		s.Stdout, s.Files = w, files
		g := r.start(s)
		out.next()
		if got := filesOf(t, g.Pid()); !slices.Equal(got, want) {
			t.Errorf("the child has\n%q, want\n%q", got, want)
		}
	})
}

// filesOf is what a process's descriptors 0, 1, ... are, without a gap.
func filesOf(t *testing.T, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range all {
		name, err := os.Readlink(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			t.Fatalf("%v has a gap: %v", all, err)
		}
		if strings.HasPrefix(name, "pipe:") {
			name = "pipe"
		}
		names = append(names, name)
	}
	return names
}

func TestLaunch_BlockingModeOfSocketsIsLeftAlone_OfOutputItIsBlocking(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		f, err := ln.(*net.TCPListener).File() // shares the description with ln, which needs it non-blocking
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_, w := newLines(t)
		s := Spec{Helper: testHelper, Cgroup: r.cgroup, Path: "/bin/sleep", Args: []string{"sleep", "60"}, Files: []*os.File{f}, Stdout: w}
		g := r.start(s)
		if !nonblocking(t, g.Pid(), 3) {
			t.Error("the socket became blocking")
		}
		if nonblocking(t, g.Pid(), 1) {
			t.Error("standard output is non-blocking")
		}
	})
}

func nonblocking(t *testing.T, pid, fd int) bool {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "flags:")
	flags, err := strconv.ParseInt(strings.Fields(after)[0], 8, 64)
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.O_NONBLOCK != 0
}

func TestLaunch_SignalsAreAtTheirDefaults(t *testing.T) {
	signal.Ignore(syscall.SIGHUP, syscall.SIGUSR1)
	defer signal.Reset(syscall.SIGHUP, syscall.SIGUSR1)
	inBothModes(t, func(t *testing.T, r *rig) {
		s := Spec{Helper: testHelper, Cgroup: r.cgroup, Path: "/bin/sleep", Args: []string{"sleep", "60"}}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.start(s).Pid()))
		if err != nil {
			t.Fatal(err)
		}
		for _, set := range []string{"SigBlk", "SigIgn", "SigCgt"} {
			if !bytes.Contains(status, []byte(set+":\t0000000000000000\n")) {
				t.Errorf("%s is not empty:\n%s", set, status)
			}
		}
	})
}

func TestLaunch_MainProcessLeadsItsOwnSessionInItsFolder(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		g, out := r.script(`pwd -P; echo "$@"; sleep 60`, "a b", "c")
		if got, _ := filepath.EvalSymlinks(out.next()); filepath.Base(filepath.Dir(got)) != filepath.Base(filepath.Dir(r.t.TempDir())) {
			t.Errorf("it runs in %s", got)
		}
		if got := out.next(); got != "a b c" {
			t.Errorf("its arguments are %q", got)
		}
		if sid, err := unix.Getsid(g.Pid()); err != nil || sid != g.Pid() {
			t.Errorf("its session is %d, %v", sid, err)
		}
	})
}

func TestLaunch_RefusedExecutionIsToldApart(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	loaderless := strings.ReplaceAll(readString(t, "/bin/true"), "/ld-linux", "/no-linux")
	tests := []struct {
		name, path, dir string
		is              error
		text            string
	}{
		{"missing", filepath.Join(dir, "none"), "", os.ErrNotExist, "none: no such file"},
		{"not executable", put("data", "x", 0o644), "", os.ErrPermission, "data: not executable"},
		{"folder", dir, "", os.ErrPermission, "it is a folder"},
		{"garbage", put("garbage", "\x7fELF is not all", 0o755), "", syscall.ENOEXEC, "garbage: not a program for this machine"},
		{"no interpreter", put("script", "#! /no/such/python -u\n", 0o755), "", os.ErrNotExist, "script: its interpreter /no/such/python is not on this host"},
		{"no loader", put("loaderless", loaderless, 0o755), "", os.ErrNotExist, "loaderless: its interpreter /lib64/no-linux-x86-64.so.2 is not on this host"},
		{"no folder", "/bin/true", filepath.Join(dir, "gone"), os.ErrNotExist, "enter " + filepath.Join(dir, "gone")},
	}
	for _, helper := range [][]string{testHelper, nil} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s/helper=%v", tt.name, helper != nil), func(t *testing.T) {
				if tt.name == "no loader" && !strings.Contains(loaderless, "/lib64/no-linux-x86-64.so.2") {
					t.Skip("/bin/true has another loader on this machine")
				}
				inBothModes(t, func(t *testing.T, r *rig) { // whose cgroup must be empty afterwards
					g, err := Launch(Spec{Helper: helper, Cgroup: r.cgroup, Path: tt.path, Args: []string{"x"}, Dir: tt.dir})
					var exec *ExecError
					if !errors.As(err, &exec) || !errors.Is(err, tt.is) {
						t.Fatalf("got %v, %v", g, err)
					}
					if !strings.Contains(err.Error(), tt.text) {
						t.Errorf("it says %q, want %q in it", err, tt.text)
					}
					if left := mains(); len(left) > 0 {
						t.Errorf("groups are left: %v", left)
					}
				})
			})
		}
	}
}

func readString(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func mains() []int {
	groups.Lock()
	defer groups.Unlock()
	var pids []int
	for pid := range groups.living {
		pids = append(pids, pid)
	}
	return pids
}

func TestLaunch_HelperThatDoesNotExistIsNotTheAppsFault(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		_, err := Launch(Spec{Helper: []string{"/no/such/helper"}, Cgroup: r.cgroup, Path: "/bin/true", Args: []string{"true"}})
		var exec *ExecError
		if err == nil || errors.As(err, &exec) || !strings.Contains(err.Error(), "/no/such/helper") {
			t.Errorf("got %v", err)
		}
	})
}

func TestLaunch_CgroupThatCannotBeEnteredByCloneIsJoinedByTheHelper(t *testing.T) {
	r := &rig{t: t, cgroup: testCgroup(t)}
	dir, err := newCgroup(Spec{Cgroup: r.cgroup, Name: "joined"})
	if err != nil {
		t.Fatal(err)
	}
	g, err := launch(r.spec(`sleep 60 & wait`), &cgroupTree{dir: dir}, 0, dir)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "shell and sleep are in the cgroup", func() bool { return len(g.Pids()) == 2 })
	if err := g.Kill(within(t)); err != nil {
		t.Error(err)
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

func TestLaunch_CgroupThatCannotBeUsedIsNotNeeded(t *testing.T) {
	r := &rig{t: t, cgroup: NoCgroup}
	s := r.spec(`exit 7`)
	s.Cgroup = t.TempDir() // an ordinary folder
	if got := await(t, r.start(s)).String(); got != "exited with status 7" {
		t.Error(got)
	}
}

func TestNewCgroup_NameThatIsTakenGetsANumber(t *testing.T) {
	r := &rig{t: t, cgroup: testCgroup(t)}
	if err := os.Mkdir(filepath.Join(r.cgroup, "test"), 0o755); err != nil { // left by an earlier supervisor: nobody is in it
		t.Fatal(err)
	}
	first, second := r.start(r.spec(`sleep 60`)), r.start(r.spec(`sleep 60`))
	if filepath.Base(first.Cgroup()) != "test" || filepath.Base(second.Cgroup()) != "test.1" {
		t.Errorf("the cgroups are %s and %s", first.Cgroup(), second.Cgroup())
	}
	for _, g := range []*Group{first, second} {
		if !slices.Contains(g.Pids(), g.Pid()) || len(g.Pids()) > 2 {
			t.Errorf("%s holds %v", g.Cgroup(), g.Pids())
		}
	}
}

func TestLaunch_LivesOnWhenTheSupervisorDies(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		out, w := newLines(t)
		s := r.spec("")
		s.Path, s.Args, s.Stdout = "/proc/self/exe", []string{"supervisor"}, w
		s.Env = append(s.Env, "TEST_APP=supervisor")
		g := r.start(s)
		pid := out.pid()
		t.Cleanup(func() { unix.Kill(pid, unix.SIGKILL) }) // nobody else knows it any more
		if got := await(t, g).String(); got != "was killed by signal 9 (killed)" {
			t.Errorf("the supervisor %s", got)
		}
		if !alive(pid) {
			t.Error("the app died with its supervisor")
		}
	})
}

var testApps = map[string]func(){
	"supervisor": func() { // starts an app and is killed
		g, err := Launch(Spec{Helper: testHelper, Cgroup: NoCgroup, Path: "/bin/sleep", Args: []string{"sleep", "60"}})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(g.Pid())
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	},
	"delegated": func() { // says what was delegated to it
		dir, err := Delegated()
		fmt.Println(dir, err)
	},
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(dir, d, "folder"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]fs.FileMode{"a/tool": 0o644, "b/tool": 0o755, "b/folder/x": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"PATH=/nowhere", "PATH=" + dir + "/a:relative::" + dir + "/b"}
	for name, want := range map[string]string{
		"tool":     dir + "/b/tool", // the one in a is not executable
		"folder":   "folder",        // not a file
		"none":     "none",
		"./run.sh": "/release/run.sh",
		"bin/chat": "/release/bin/chat",
		"/bin/sh":  "/bin/sh",
	} {
		if got := Find(name, "/release", env); got != want {
			t.Errorf("Find(%q) = %q, want %q", name, got, want)
		}
	}
}
