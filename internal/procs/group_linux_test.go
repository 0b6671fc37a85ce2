package procs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestGroup_SaysHowTheMainProcessEnded(t *testing.T) {
	tests := map[string]string{
		`exit 0`:                     "exited with status 0",
		`exit 3`:                     "exited with status 3",
		`kill -9 $$`:                 "was killed by signal 9 (killed)",
		`kill -TERM $$`:              "was killed by signal 15 (terminated)",
		`ulimit -c 0; kill -SEGV $$`: "was killed by signal 11 (segmentation fault)",
	}
	inBothModes(t, func(t *testing.T, r *rig) {
		for script, want := range tests {
			if got := await(t, r.start(r.spec(script))).String(); got != want {
				t.Errorf("%s: it %s, want %s", script, got, want)
			}
		}
		if got := r.start(r.spec(`sleep 60`)).Exit().String(); got != "is running" {
			t.Errorf("a living one %s", got)
		}
	})
}

// Whoever knows by other means that it is dead must not be told that it runs.
func TestGroup_EndedIsWhatTheKernelSays(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		for range 20 {
			g := r.start(r.spec(`sleep 60`))
			if g.Ended() {
				t.Fatal("a living one has ended")
			}
			if err := g.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			for alive(g.Pid()) {
			}
			if !g.Ended() {
				t.Fatal("it is dead, and has not ended")
			}
		}
	})
}

func TestGroup_SignalReachesTheMainProcessOnly_SignalAllEveryOne(t *testing.T) {
	const script = `trap 'echo main' USR1; sh -c 'trap "echo child" USR1; echo ready; while :; do sleep 0.01; done' & while :; do wait; done`
	inBothModes(t, func(t *testing.T, r *rig) {
		g, out := r.script(script)
		out.next()
		if err := g.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if got := out.next(); got != "main" {
			t.Errorf("Signal reached %s", got)
		}
		// The sleeps of the child end by the signal: that is what they are for.
		if err := g.SignalAll(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if got := []string{out.next(), out.next()}; !slices.Contains(got, "main") || !slices.Contains(got, "child") {
			t.Errorf("SignalAll reached %s", got)
		}
	})
}

func TestGroup_MainProcessKeepsItsPidUntilRemove(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		g, err := Launch(r.spec(`exit 0`))
		if err != nil {
			t.Fatal(err)
		}
		await(t, g)
		if s, ok := readStat(g.Pid()); !ok || s.alive() {
			t.Errorf("it is no zombie: %v %v", s, ok)
		}
		if err := g.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("signal an ended process: %v", err)
		}
		if got := g.Pids(); len(got) > 0 {
			t.Errorf("a zombie counts as alive: %v", got)
		}
		if !g.Contains(g.Pid()) {
			t.Error("what it said last, before it ended, would be a stranger's word")
		}
		for range 2 { // the second time it has nothing to do
			if err := g.Remove(); err != nil {
				t.Error(err)
			}
		}
		if _, ok := readStat(g.Pid()); ok {
			t.Error("it is not reaped")
		}
		if err := g.Kill(within(t)); err != nil || len(g.Pids()) > 0 || g.RSS() != 0 || g.Contains(g.Pid()) {
			t.Errorf("after Remove: Kill %v, Pids %v", err, g.Pids())
		}
		if err := g.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("signal a removed one: %v", err)
		}
	})
}

// family prints the pids of: a child, a child of a subshell that ended, and two daemons that left the session; none heeds SIGTERM.
const family = `
trap '' TERM
sh -c 'echo $$; sleep 60' &
(sh -c 'echo $$; sleep 60' &)
(setsid sh -c 'echo $$; sleep 60' &)
(setsid sh -c 'sh -c "echo \$\$; sleep 60" & exit' &)
`

func TestGroup_TreeThatIgnoresSIGTERMIsKilled(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		g, out := r.script(family + `sleep 60`)
		pids := []int{g.Pid(), out.pid(), out.pid(), out.pid(), out.pid()}
		if err := g.SignalAll(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		checkKill(t, g, pids)
	})
}

func TestGroup_OrphansOfAnEndedMainProcessAreFoundAndKilled(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		g, out := r.script(family + `exit 0`)
		pids := []int{out.pid(), out.pid(), out.pid(), out.pid()}
		await(t, g)
		if err := g.Remove(); !errors.Is(err, ErrNotEmpty) {
			t.Errorf("Remove with living processes: %v", err)
		}
		checkKill(t, g, pids)
	})
}

// checkKill: g has pids, and whatever they sleep with, until they are killed.
func checkKill(t *testing.T, g *Group, pids []int) {
	t.Helper()
	got := g.Pids()
	for _, pid := range pids {
		if !alive(pid) || !g.Contains(pid) || !slices.Contains(got, pid) {
			t.Errorf("process %d: alive %v, contained %v, among %v", pid, alive(pid), g.Contains(pid), got)
		}
	}
	if err := g.Kill(within(t)); err != nil {
		t.Fatal(err)
	}
	for _, pid := range got {
		if alive(pid) || (pid != g.Pid() && g.Contains(pid)) {
			t.Errorf("process %d is left", pid)
		}
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

func TestGroup_ForkingWithoutEndDoesNotOutrunKill(t *testing.T) {
	for name, script := range map[string]string{
		"children": `while :; do sleep 60 & echo; done`,
		"daemons":  `while :; do setsid sleep 60 & echo; done`,
		"chain":    `f() { echo; (f &); }; f`,
	} {
		t.Run(name, func(t *testing.T) {
			inBothModes(t, func(t *testing.T, r *rig) {
				g, out := r.script(script)
				for range 20 {
					out.next()
				}
				if err := g.Kill(within(t)); err != nil {
					t.Fatal(err)
				}
				if got := g.Pids(); len(got) > 0 {
					t.Errorf("%v are left", got)
				}
			})
		})
	}
}

func TestGroup_EmptyWaitsForTheLastProcess(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		g, out := r.script(`(setsid sh -c 'echo $$; exec sleep 60' &) ; exit 0`)
		pid := out.pid()
		await(t, g)
		canceled, cancel := context.WithCancelCause(context.Background())
		why := errors.New("no longer wanted")
		cancel(why)
		if err := g.Empty(canceled); !errors.Is(err, why) {
			t.Errorf("with a daemon left: %v", err)
		}
		empty := make(chan error, 1)
		ctx := within(t)
		go func() { empty <- g.Empty(ctx) }()
		select {
		case err := <-empty:
			t.Fatalf("with a daemon left: %v", err)
		default:
		}
		unix.Kill(pid, unix.SIGKILL)
		if err := <-empty; err != nil {
			t.Error(err)
		}
	})
}

func TestGroup_EachKnowsItsOwn(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		a, outA := r.script(family + `sleep 60`)
		b, outB := r.script(family + `exit 0`)
		for range 4 {
			pidA, pidB := outA.pid(), outB.pid()
			if !a.Contains(pidA) || a.Contains(pidB) || b.Contains(pidA) || !b.Contains(pidB) {
				t.Errorf("%d of a: in a %v, in b %v; %d of b: in a %v, in b %v", pidA, a.Contains(pidA), b.Contains(pidA), pidB, a.Contains(pidB), b.Contains(pidB))
			}
		}
		if a.Contains(os.Getpid()) || a.Contains(1) || a.Contains(os.Getppid()) {
			t.Error("it claims strangers")
		}
		if err := b.Kill(within(t)); err != nil {
			t.Fatal(err)
		}
		if !alive(a.Pid()) || len(a.Pids()) < 5 {
			t.Errorf("killing b hurt a: %v", a.Pids())
		}
	})
}

func TestSession_DaemonThatWipesItsEnvironmentIsKnownWhenSeenBefore(t *testing.T) {
	r := &rig{t: t, cgroup: NoCgroup}
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	in.Fd() // which makes it blocking, as the shell's read needs it
	s := r.spec(`(setsid sh -c 'echo $$; read x <&3; exec env -i /bin/sleep 60' &)`)
	out, stdout := newLines(t)
	s.Stdout, s.Files = stdout, []*os.File{in}
	g := r.start(s)
	pid := out.pid()
	await(t, g)
	if !slices.Contains(g.Pids(), pid) {
		t.Fatal("the daemon is not found")
	}
	w.Close() // it wipes its environment
	eventually(t, "the daemon sleeps", func() bool { return alive(pid) && !hasEnv(pid, g.tree.(*sessionTree).mark) })
	if !g.Contains(pid) || !slices.Contains(g.Pids(), pid) {
		t.Error("it is forgotten")
	}
}

func TestSession_OrphansAreReaped(t *testing.T) {
	r := &rig{t: t, cgroup: NoCgroup}
	g, out := r.script(`(setsid sh -c 'echo $$' &); (sh -c 'echo $$' &); sleep 60`)
	for range 2 {
		pid := out.pid()
		eventually(t, "the orphan is reaped", func() bool { _, ok := readStat(pid); return !ok })
	}
	if !alive(g.Pid()) {
		t.Error("the main process is gone too")
	}
}

func TestSession_ProcessesOfOthersAreNotReaped(t *testing.T) {
	r := &rig{t: t, cgroup: NoCgroup}
	r.start(r.spec(`sleep 60`)) // somebody who makes us reap
	for range 20 {
		p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "exit 5"}, &os.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		reapOrphans()
		if st, err := p.Wait(); err != nil || st.ExitCode() != 5 {
			t.Fatalf("%v, %v", st, err)
		}
	}
}

func TestGroup_MemoryOfATreeCountsSharedPagesOnce(t *testing.T) {
	inBothModes(t, func(t *testing.T, r *rig) {
		one := r.start(r.spec(`exec sleep 60`))
		if got, want := one.RSS(), ResidentBytes(one.Pid()); got <= 0 || want <= 0 {
			t.Errorf("RSS is %d, of its only process %d", got, want)
		}
		many, out := r.script(`for i in 1 2 3 4 5 6 7 8; do (echo; read x < /dev/zero) & done; wait`)
		for range 8 {
			out.next()
		}
		var sum int64
		for _, pid := range many.Pids() {
			sum += ResidentBytes(pid)
		}
		if got := many.RSS(); got <= 0 || got >= sum {
			t.Errorf("nine processes that share nearly everything have %d, one by one %d", got, sum)
		}
	})
	if got := ResidentBytes(1 << 30); got != 0 {
		t.Errorf("nobody has %d bytes", got)
	}
}

func TestDelegated(t *testing.T) {
	r := &rig{t: t, cgroup: testCgroup(t)}
	says := func(prepare func(dir string)) string {
		out, w := newLines(t)
		s := r.spec("")
		s.Path, s.Args, s.Stdout, s.Env = "/proc/self/exe", []string{"x"}, w, []string{"TEST_APP=delegated", "GORACE=atexit_sleep_ms=0"}
		s.Cgroup, s.Name = r.cgroup, "unit"
		dir := filepath.Join(r.cgroup, "unit")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		prepare(dir)
		g, err := launch(s, &cgroupTree{dir: dir}, 0, dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			await(t, g)
			if err := g.Remove(); err != nil {
				t.Error(err)
			}
		}()
		return out.next()
	}
	if got, want := says(func(string) {}), fmt.Sprintf(" no cgroup is delegated to us (Delegate=yes): %s/unit is not marked as such", r.cgroup); os.Getuid() == 0 && got != want[1:] {
		t.Errorf("without a mark: %q", got)
	}
	got := says(func(dir string) {
		if err := unix.Setxattr(dir, "user.delegate", []byte("1"), 0); err != nil {
			t.Skipf("##### NOT TESTED: attributes of cgroups: %v #####", err)
		}
	})
	if want := filepath.Join(r.cgroup, "unit") + " <nil>"; got != want {
		t.Errorf("with a mark: %q, want %q", got, want)
	}
}

func TestParseStat(t *testing.T) {
	const rest = " 1000 900 800 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 9"
	tests := map[string]struct {
		in   string
		want stat
		ok   bool
	}{
		"ordinary":     {"42 (sh) S" + rest, stat{'S', 1000, 800, 123456}, true},
		"nasty name":   {"42 (a) Z 1 1 1 (b) R" + rest, stat{'R', 1000, 800, 123456}, true},
		"empty":        {"", stat{}, false},
		"cut off":      {"42 (sh) S 1000 900", stat{}, false},
		"not a number": {"42 (sh) S x" + rest[5:], stat{}, false},
	}
	for name, tt := range tests {
		got, ok := parseStat([]byte(tt.in))
		if ok != tt.ok || (ok && got != tt.want) {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
	self, ok := readStat(os.Getpid())
	if !ok || self.parent != os.Getppid() || !self.alive() {
		t.Errorf("we are %+v", self)
	}
}

func TestCgroupMounts(t *testing.T) {
	const mountinfo = `22 27 0:21 / /proc rw,relatime - proc proc rw
36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices
41 31 0:38 /unit /sys/fs/my\040cgroup rw,relatime shared:7 - cgroup2 cgroup2 rw
42 31 0:38 / /sys/fs/cgroup ro,relatime - cgroup2 cgroup2 rw
`
	l := parseMounts(mountinfo)
	for path, want := range map[string]string{
		"/unit/generation-1": "/sys/fs/my cgroup/generation-1",
		"/unit":              "/sys/fs/my cgroup",
		"/units":             "/sys/fs/cgroup/units",
		"/":                  "/sys/fs/cgroup",
	} {
		if got, err := l.dir(path); err != nil || got != want {
			t.Errorf("%s is at %q, %v", path, got, err)
		}
	}
	if _, err := l[:1].dir("/other"); err == nil {
		t.Error("what is not mounted was found")
	}
}

func TestChildren_WithAndWithoutHelpOfTheKernel(t *testing.T) {
	r := &rig{t: t, cgroup: NoCgroup}
	g := r.start(r.spec(`sleep 60`))
	for name, list := range map[string]func() []int{"children": children, "stat": childrenByStat} {
		if got := list(); !slices.Contains(got, g.Pid()) || slices.Contains(got, os.Getpid()) {
			t.Errorf("%s: %v are our children, without %s", name, got, strconv.Itoa(g.Pid()))
		}
	}
}
