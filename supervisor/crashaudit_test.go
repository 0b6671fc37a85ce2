package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/failpoint"
)

// arm lets the next daemon that comes to a step be stopped or killed there.
func (r *crashRig) arm(step, action string) {
	r.t.Helper()
	r.disarm()
	temp := r.spec.Failpoints + ".new"
	if err := os.WriteFile(temp, []byte(step+"="+action), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(temp, r.spec.Failpoints); err != nil {
		r.t.Fatal(err)
	}
	r.armed = step
}

func (r *crashRig) disarm() {
	files, _ := filepath.Glob(r.spec.Failpoints + "*")
	for _, f := range files {
		os.Remove(f)
	}
}

// struck waits until a daemon stands still at its step, and returns its pid. A step that nobody comes to proves nothing.
func (r *crashRig) struck(c *issued) int {
	r.t.Helper()
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); <-time.After(2 * time.Millisecond) {
		files, _ := filepath.Glob(r.spec.Failpoints + ".[0-9]*")
		if len(files) == 0 {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Ext(files[0]), "."))
		if err != nil || files[0] != failpoint.Struck(r.spec.Failpoints, pid) {
			r.t.Fatalf("%s", files[0])
		}
		if stat(pid) == "T" {
			return pid
		}
	}
	select {
	case <-c.ended:
		r.t.Fatalf("nobody came to %q; the command ended: %v", r.armed, c.err)
	default:
		r.t.Fatalf("nobody came to %q", r.armed)
	}
	return 0
}

// stat is the state of a process; "": it has gone.
func stat(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if _, after, ok := bytes.Cut(b, []byte(") ")); ok && len(after) > 0 {
		return string(after[:1])
	}
	return ""
}

// victims are the processes to be killed, standing still, and how many connections are in them.
func (r *crashRig) victims(v victim, serving, stopped int, c *issued) (pids []int, held int) {
	r.t.Helper()
	old, others := r.generations(serving)
	daemon := r.cmd.Process.Pid
	switch v {
	case theSupervisor:
		pids = []int{daemon}
	case theCommand:
		pids = []int{c.process.Pid}
	case theOld, oldToo:
		pids = old
	case theNew, newToo:
		if pids = others; len(pids) == 0 && v == theNew {
			pids = r.otherDaemons()
		}
	}
	if len(pids) > 0 && v != theSupervisor && v != theCommand {
		held = r.connections(pids)
	}
	if v == oldToo || v == newToo {
		pids = append(pids, daemon)
	}
	return pids, held
}

// generations are the processes of the generation that has served, and of all others.
func (r *crashRig) generations(serving int) (old, others []int) {
	r.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(r.spec.Cgroup, generationCgroup+"*"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, dir := range dirs {
		b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, field := range strings.Fields(string(b)) {
			pid, _ := strconv.Atoi(field)
			if filepath.Base(dir) == generationCgroup+strconv.Itoa(serving) {
				old = append(old, pid)
			} else {
				others = append(others, pid)
			}
		}
	}
	return old, others
}

// connections counts those in processes that do nothing from now on.
func (r *crashRig) connections(pids []int) int {
	r.t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
			r.t.Fatal(err)
		}
		for s := stat(pid); s != "T" && s != "Z" && s != ""; s = stat(pid) {
			<-time.After(time.Millisecond)
		}
	}
	_, port, _ := net.SplitHostPort(r.addr)
	number, _ := strconv.Atoi(port)
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		r.t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(table)) {
		const local, state, inode, established = 1, 3, 9, "01"
		f := strings.Fields(line)
		if !strings.HasSuffix(f[local], fmt.Sprintf(":%04X", number)) || f[state] != established {
			continue
		}
		if slices.ContainsFunc(pids, func(pid int) bool { return descriptors(pid)["socket:["+f[inode]+"]"] > 0 }) {
			n++
		}
	}
	return n
}

// killAll returns when they are dead.
func (r *crashRig) killAll(pids []int) {
	r.t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			r.t.Fatal(err)
		}
	}
	for _, pid := range pids {
		for !hasEnded(pid) { // not only its first thread
			<-time.After(time.Millisecond)
		}
	}
}

// asSystemd starts a daemon if there is none.
func (r *crashRig) asSystemd() {
	r.t.Helper()
	select {
	case <-r.ended:
		r.client.Close()
		if r.successor == 0 || !isAlive(r.successor) {
			r.spawn()
		}
	default:
	}
}

// processes are those of this service.
func (r *crashRig) processes() (daemons, others []int) {
	r.t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, name := range dirs {
		environ, _ := os.ReadFile(name)
		if !bytes.Contains(environ, []byte(r.dir+"/")) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		argv, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "cmdline"))
		switch {
		case !isAlive(pid):
		case bytes.HasSuffix(argv, []byte("\x00daemon\x00")):
			daemons = append(daemons, pid)
		default:
			others = append(others, pid)
		}
	}
	return daemons, others
}

func (r *crashRig) otherDaemons() []int {
	daemons, _ := r.processes()
	return slices.DeleteFunc(daemons, func(pid int) bool { return pid == r.cmd.Process.Pid })
}

// consistent is the audit: that version is committed, current and alone, nothing is half there, and nobody runs who should not.
func (r *crashRig) consistent(version string) {
	r.t.Helper()
	var st api.Status
	var wrong []string
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); <-time.After(5 * time.Millisecond) {
		st = r.status() // the last word of a generation, and the removal of a release that never served, come by themselves
		if wrong = r.leftovers(st); len(wrong) == 0 {
			break
		}
	}
	for _, what := range wrong {
		r.t.Errorf("in the end: %s", what)
	}
	if st.State != api.StateServing || st.Committed.Version != version || st.Generations[0].Release.Version != version {
		r.t.Errorf("%s; committed %v, generations %+v", st.Text, st.Committed, st.Generations)
	}
	if !r.serves(version) {
		r.t.Errorf("%s does not serve", version)
	}
	if to, err := os.Readlink(filepath.Join(r.cfg.Root, "current")); err != nil || to != "releases/"+version {
		r.t.Errorf("current points to %q, %v", to, err)
	}
}

// leftovers is what is not as it should be when one generation serves.
func (r *crashRig) leftovers(st api.Status) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if st.Upgrade != nil || len(st.Generations) != 1 {
		say("upgrade %+v, generations %+v", st.Upgrade, st.Generations)
		return wrong
	}
	g := st.Generations[0]
	for _, pattern := range []string{"state/.hotdeploy-*", "releases/.hotdeploy-*", "incoming/.hotdeploy-*", "incoming/*/.hotdeploy-*", "incoming/*/parts/.hotdeploy-*", ".hotdeploy-*", "../run/*.new"} {
		found, _ := filepath.Glob(filepath.Join(r.cfg.Root, pattern))
		for _, f := range found {
			say("left: %s", f)
		}
	}
	whole, _ := filepath.Glob(filepath.Join(r.cfg.Root, "releases/*/manifest.json"))
	if entries, _ := os.ReadDir(filepath.Join(r.cfg.Root, "releases")); len(entries) != len(whole) {
		say("%d releases, %d of them whole", len(entries), len(whole))
	}
	want := []string{fmt.Sprintf("control.%d", g.Number), "listener.1", "notify.sock", fmt.Sprintf("process.%d", g.Number)}
	if got := r.manager.names(); !slices.Equal(got, want) {
		say("the fd store holds %s, want %s", got, want)
	}
	if dirs, _ := filepath.Glob(filepath.Join(r.spec.Cgroup, "*/cgroup.procs")); len(dirs) != 1 {
		say("cgroups: %q", dirs)
	}
	if len(wrong) > 0 { // what follows looks at every process of this machine
		return wrong
	}
	daemons, others := r.processes()
	if !slices.Equal(daemons, []int{st.Daemon.PID}) || !slices.Equal(others, []int{g.PID}) {
		say("processes: daemons %v, others %v; want %d and %d", daemons, others, st.Daemon.PID, g.PID)
	}
	kinds := map[string]int{}
	for what, n := range descriptors(st.Daemon.PID) {
		kind, _, _ := strings.Cut(what, "[")
		kinds[kind] += n
	}
	for kind, most := range mostOpen {
		if kinds[kind] > most {
			say("the daemon has open: %v", kinds)
		}
	}
	return wrong
}

// mostOpen is what a daemon may have open when one generation serves: where it takes commands and notifications, the listener and the control channel,
// its line to a successor, and whoever asks it; the output and tableflip's pipes; the app's process.
var mostOpen = map[string]int{"socket:": 9, "pipe:": 6, "anon_inode:": 3}

// descriptors is what a process has open, and how often.
func descriptors(pid int) map[string]int {
	open := map[string]int{}
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, name := range names {
		to, _ := os.Readlink(name)
		open[to]++
	}
	return open
}
