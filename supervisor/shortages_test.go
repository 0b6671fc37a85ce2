package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// want is something that the machine of a daemon may run out of.
type want struct {
	name   string
	code   *api.Error
	says   string
	strike func(t *testing.T, r *crashRig) (relieve func())
}

var wants = []want{
	{"room on the disk", api.ErrDiskSpace, "no room", func(t *testing.T, r *crashRig) func() { return fillUp(t, filepath.Join(r.cfg.Root, "shared")) }},
	{"room in the run directory", api.ErrDiskSpace, "no room", func(t *testing.T, r *crashRig) func() { return fillUp(t, r.cfg.RunDir) }},
	{"a disk that can be written to", api.ErrReadOnly, "read-only", makeReadOnly},
	{"a state folder that can be written to", api.ErrReadOnly, "read-only", makeStateReadOnly},
	{"descriptors", api.ErrLimit, "file descriptor", func(t *testing.T, r *crashRig) func() { return leaveDescriptors(t, r, 0) }},
	{"processes", api.ErrLimit, "process", noMoreProcesses},
}

// TestShortage_OldServes_AndWhenItIsOverTheSameCommandWorks lets a daemon run out of each of them, for real, under load: pushes and
// rollbacks fail and say of what, and when there is some again the same commands work.
func TestShortage_OldServes_AndWhenItIsOverTheSameCommandWorks(t *testing.T) {
	if !inNamespaces(t, 0) {
		return
	}
	for _, w := range wants {
		t.Run(w.name, func(t *testing.T) { runOutOf(t, w) })
	}
}

func runOutOf(t *testing.T, w want) {
	r := newCrashRig(t, crashModes[0])
	r.kill()
	mountFolders(t, r)
	r.boot()
	r.push("1", quick)
	r.push("2", quick)
	l := startMoving(t, r.rig, 20, 20)
	for _, command := range []struct{ kind, version string }{{api.KindPush, "3"}, {api.KindRollback, ""}} {
		before := r.version()
		relieve := w.strike(t, r)
		for range 3 { // also again and again
			err := r.attempt(command.kind, command.version)
			if !errors.Is(err, w.code) || !strings.Contains(err.Error(), w.says) {
				t.Errorf("%s: %v", command.kind, err)
			}
			t.Log(err)
		}
		if st := r.status(); st.State != api.StateServing || st.Generations[0].Release.Version != before {
			t.Errorf("%s; it was %s", st.Text, before)
		}
		if !r.serves(before) {
			t.Errorf("%s does not serve any more", before)
		}
		relieve()
		if list, err := r.client.Releases(r.ctx()); err != nil || command.kind == api.KindPush && len(list) != 2 {
			t.Errorf("%v, %v: a push that failed left something", list, err)
		}
		if err := r.attempt(command.kind, command.version); err != nil {
			t.Fatalf("%s when it is over: %v", command.kind, err)
		}
	}
	if err := r.tryInstall("4", quick); err != nil {
		t.Error(err)
	}
	r.push("5", quick)
	r.consistent("5")
	if err := l.Stop(r.ctx()).Err(); err != nil {
		t.Error(err)
	}
}

func quick(s *release.Spec) { s.Soak.Duration = release.Duration(20 * time.Millisecond) }

// TestShortage_DescriptorsRunOutAtEachStep leaves one more each time, until a push works.
func TestShortage_DescriptorsRunOutAtEachStep(t *testing.T) {
	r := newCrashRig(t, crashModes[0])
	r.push("1", quick)
	l := startMoving(t, r.rig, 20, 20)
	for more := uint64(0); ; more++ {
		if more > 100 {
			t.Fatal("it never works again")
		}
		relieve := leaveDescriptors(t, r, more)
		err := r.attempt(api.KindPush, "2")
		relieve()
		if err == nil {
			t.Logf("it takes %d", more)
			break
		}
		if t.Log(err); !errors.Is(err, api.ErrLimit) {
			t.Errorf("with %d left: %v", more, err)
		}
		r.consistent("1")
	}
	r.consistent("2")
	if err := l.Stop(r.ctx()).Err(); err != nil {
		t.Error(err)
	}
}

// A generation that ends while there are no descriptors cannot be taken out of the fd store in that moment.
func TestShortage_NoDescriptors_WhatEndsMeanwhileIsForgottenLater(t *testing.T) {
	r := newCrashRig(t, crashModes[0])
	r.app = "" // its connections stay with it
	r.push("1")
	l := startLoad(t, r.addr, 3, 0)
	defer l.Stop(r.ctx())
	r.push("2")
	old := r.status().Generations[1]
	relieve := leaveDescriptors(t, r, 0)
	if err := unix.Kill(old.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.awaitText("was killed by signal 9")
	relieve()
	r.push("3")
	r.consistent("3")
}

// attempt is a push or a rollback as an operator makes it, and returns why it failed.
func (r *crashRig) attempt(kind, version string) error {
	if kind == api.KindPush {
		if err := r.tryInstall(version, quick); err != nil {
			return err
		}
	}
	u, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: kind, Version: version, By: "tester"})
	if err != nil {
		return err
	}
	u = r.outcome(u.ID)
	if u.Outcome == api.Done {
		return nil
	}
	if u.Outcome != api.NothingChanged || u.Error.State == "" || u.Error.Hint == "" {
		r.t.Errorf("%s: %s: %+v", kind, u.Outcome, u.Error)
	}
	return u.Error
}

// mountFolders puts a disk of its own under the root and another under the run directory.
func mountFolders(t *testing.T, r *crashRig) {
	t.Helper()
	entries, err := os.ReadDir(r.cfg.RunDir)
	if err != nil || len(entries) > 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	for dir, size := range map[string]string{r.cfg.Root: "128m", r.cfg.RunDir: "1m"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	}
	for _, dir := range []string{r.cfg.Root, filepath.Join(r.cfg.Root, "state")} { // so that each can become read-only alone
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	}
}

func fillUp(t *testing.T, dir string) (relieve func()) {
	t.Helper()
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	return func() {
		if err := os.Remove(filler); err != nil {
			t.Error(err)
		}
	}
}

// makeReadOnly does what a disk with errors does. The kernel refuses it to a mount with a file that is open for writing, which the
// daemon's lock is: so its folder is covered by a mount of the same.
func makeReadOnly(t *testing.T, r *crashRig) (relieve func()) {
	t.Helper()
	uncover := makeStateReadOnly(t, r)
	remount(t, r.cfg.Root, unix.MS_RDONLY)
	return func() {
		remount(t, r.cfg.Root, 0)
		uncover()
	}
}

func makeStateReadOnly(t *testing.T, r *crashRig) (relieve func()) {
	t.Helper()
	state := filepath.Join(r.cfg.Root, "state")
	if err := unix.Mount(state, state, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	remount(t, state, unix.MS_RDONLY)
	return func() {
		if err := unix.Unmount(state, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
}

func remount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
}

// limit lowers one of the daemon's limits while it runs.
func limit(t *testing.T, r *crashRig, resource int, to uint64) (relieve func()) {
	t.Helper()
	var old unix.Rlimit
	pid := r.cmd.Process.Pid
	if err := unix.Prlimit(pid, resource, nil, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: to, Max: old.Max}, nil); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Prlimit(pid, resource, &old, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// leaveDescriptors limits those that the daemon may have to so many more than it has while nobody asks it anything.
func leaveDescriptors(t *testing.T, r *crashRig, more uint64) (relieve func()) {
	t.Helper()
	r.client.Close()
	for r.connected(t) > 0 || r.nulls(t) <= maxKept { // standard input is one, too
		<-time.After(time.Millisecond) // nobody tells when the daemon has seen it, and keeps some again
	}
	return limit(t, r, unix.RLIMIT_NOFILE, lowestFree(t, r.cmd.Process.Pid)+more)
}

// connected is how many are on the control socket, as the kernel sees it (/proc/net/unix: one that was accepted has its path, and is not the listener).
func (r *crashRig) connected(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 8 && f[7] == ControlSocket(r.cfg.RunDir) && f[3] == "00000000" {
			n++
		}
	}
	return n
}

// nulls is how often the daemon has /dev/null open.
func (r *crashRig) nulls(t *testing.T) (n int) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", r.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == os.DevNull {
			n++
		}
	}
	return n
}

// lowestFree is the number that the next descriptor of a process gets.
func lowestFree(t *testing.T, pid int) uint64 {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	for _, e := range entries {
		n, _ := strconv.Atoi(e.Name())
		fds = append(fds, n)
	}
	slices.Sort(fds)
	for i, fd := range fds {
		if i != fd {
			return uint64(i)
		}
	}
	return uint64(len(fds))
}

// noMoreProcesses limits those of the daemon and its generations to what there are, as an app does that takes all that its unit may have.
func noMoreProcesses(t *testing.T, r *crashRig) (relieve func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		return limit(t, r, unix.RLIMIT_NPROC, 1)
	}
	if threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", r.cmd.Process.Pid)); err != nil || len(threads) < reservedThreads {
		t.Errorf("%d threads, %v: it will die when it needs another one", len(threads), err)
	}
	dir, _ := controlled(t, "pids")
	set(t, filepath.Join(dir, "cgroup.procs"), r.cmd.Process.Pid)
	set(t, filepath.Join(dir, "pids.max"), 1) // what there is stays
	return func() { set(t, filepath.Join(filepath.Dir(dir), "cgroup.procs"), r.cmd.Process.Pid) }
}

func set(t *testing.T, path string, value int) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strconv.Itoa(value)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// controlled makes a cgroup in which the number of processes (pids) or the memory can be limited. It must be empty at the end.
func controlled(t *testing.T, controller string) (dir string, unified bool) {
	t.Helper()
	parent, unified, err := hierarchyOf(controller)
	if err == nil {
		dir, err = os.MkdirTemp(parent, "hotdeploy-test-")
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI must not skip: %v", err)
		}
		t.Skipf("##### SKIPPED, NOT TESTED: %v #####", err)
	}
	t.Cleanup(func() {
		if err := unix.Rmdir(dir); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
	})
	return dir, unified
}

// hierarchyOf is where cgroups can have that controller.
func hierarchyOf(controller string) (dir string, unified bool, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false, err
	}
	for line := range strings.Lines(string(b)) {
		mount, kind, _ := strings.Cut(strings.TrimSpace(line), " - ")
		point := strings.Fields(mount)[4]
		if strings.HasPrefix(kind, "cgroup ") && slices.Contains(strings.Split(kind[strings.LastIndex(kind, " ")+1:], ","), controller) {
			return point, false, nil
		}
		if strings.HasPrefix(kind, "cgroup2 ") {
			if on, err := os.ReadFile(filepath.Join(point, "cgroup.subtree_control")); err == nil && slices.Contains(strings.Fields(string(on)), controller) {
				return point, true, nil
			}
		}
	}
	return "", false, fmt.Errorf("no cgroup hierarchy here has the controller %s", controller)
}

func init() {
	selves["needs memory"] = func() {
		if err := os.WriteFile(filepath.Join(os.Getenv("MEMORY_CGROUP"), "cgroup.procs"), []byte("0"), 0o644); err != nil {
			panic(err)
		}
		b := make([]byte, 64<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		notify("READY=1")
		untilSIGTERM()
		runtime.KeepAlive(b)
	}
}

// TestShortage_NoMemoryForAProcess_IsToldApart has the kernel kill a new generation for want of memory.
func TestShortage_NoMemoryForAProcess_IsToldApart(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("only root can limit memory, and CI must")
		}
		t.Skip("##### SKIPPED, NOT TESTED: only root can limit memory #####")
	}
	dir, unified := controlled(t, "memory")
	most, swap := "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	if unified {
		most, swap = "memory.max", "memory.swap.max"
	}
	set(t, filepath.Join(dir, most), 16<<20)
	if _, err := os.Stat(filepath.Join(dir, swap)); err == nil {
		set(t, filepath.Join(dir, swap), 16<<20)
	}
	r := newRig(t)
	r.push("1")
	push := func() api.Upgrade {
		r.install("2", self("needs memory"), env("MEMORY_CGROUP", dir))
		return r.upgrade(api.KindPush, "2")
	}
	for range 2 {
		if u := push(); u.Outcome != api.NothingChanged || !errors.Is(u.Error, api.ErrMemory) || !strings.Contains(u.Error.Message, "for want of memory") || !r.serves("1") {
			t.Errorf("%s: %+v", u.Outcome, u.Error)
		}
	}
	if unified {
		set(t, filepath.Join(dir, most), 1<<30)
	} else {
		if _, err := os.Stat(filepath.Join(dir, swap)); err == nil {
			set(t, filepath.Join(dir, swap), 1<<30)
		}
		set(t, filepath.Join(dir, most), 1<<30)
	}
	if u := push(); u.Outcome != api.Done {
		t.Errorf("when there is some: %s: %+v", u.Outcome, u.Error)
	}
	r.stop()
}
