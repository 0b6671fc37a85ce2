package supervisor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/internal/failpoint"
	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/systemd"
	"github.com/hotdeploy/hotdeploy/testdata/apps"
)

// daemonSpec is what the test binary must know to be a daemon of a crash rig.
type daemonSpec struct {
	Config     config.Daemon
	Cgroup     string
	Failpoints string        // the file for failpoint.Arm
	Within     time.Duration // that a successor has to prove itself; zero: ReplaceWithin
	Footprint  string        // a socket where it tells what it takes
}

// beDaemon is that daemon.
func beDaemon() {
	var spec daemonSpec
	if err := json.Unmarshal([]byte(os.Getenv("TEST_DAEMON")), &spec); err != nil {
		log.Fatal(err)
	}
	if os.Getenv("LISTEN_FDS") != "" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	passed, err := systemd.Listeners()
	if err != nil {
		log.Fatal(err)
	}
	failpoint.Arm(spec.Failpoints)
	flip, err := NewFlip(cmp.Or(spec.Within, ReplaceWithin))
	if err != nil {
		log.Fatal(err)
	}
	version := "test"
	if b, err := os.ReadFile(filepath.Join(spec.Config.Root, "daemon-version")); err == nil {
		version = string(b)
	}
	if spec.Footprint != "" {
		if err := tellFootprint(spec.Footprint); err != nil {
			log.Fatal(err)
		}
	}
	socks, stored := systemd.Split(passed)
	if flip.Follows() {
		misbehaveAsSuccessor(spec)
		if stored, err = flip.Inherit(); err != nil {
			log.Fatal(err)
		}
	}
	s, err := New(Options{Flip: flip, Config: spec.Config, Version: version, Helper: []string{"/proc/self/exe", "launch"}, Cgroup: spec.Cgroup,
		Sockets: socks, Stored: stored, Environ: []string{"PATH=" + os.Getenv("PATH")}, Output: os.Stderr, Log: log.New(os.Stderr, "", log.Lmicroseconds)})
	if err != nil {
		if flip.Follows() {
			flip.Refuse(err)
		}
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if flip.Follows() {
		if err := flip.TakeOver(ctx, s); err != nil {
			log.Fatal(err)
		}
	}
	if err := s.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// misbehaveAsSuccessor is what a broken binary does; a file says which.
func misbehaveAsSuccessor(spec daemonSpec) {
	how, _ := os.ReadFile(filepath.Join(spec.Config.Root, "break"))
	switch string(how) {
	case "exits":
		os.Exit(3)
	case "hangs":
		select {}
	case "crashes":
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
}

// manager is as much of systemd as a daemon needs that is killed and started again: it keeps descriptors and passes them on.
type manager struct {
	path string
	done chan struct{}

	mu     sync.Mutex // protects stored; a daemon is started under it
	stored map[string]*os.File
}

// crashRig is a rig whose supervisor is a process of its own, to be killed.
type crashRig struct {
	*rig
	spec    daemonSpec
	manager *manager // nil: nobody keeps anything
	cmd     *exec.Cmd
	ended   chan struct{}
	out     *logBuffer
	print   *os.File // where daemons and what they leave write to

	armed     string // the step of the failpoint
	successor int    // pid of the daemon that is to replace the one of cmd, if one is
	serial    int    // of the last version
	over      bool   // everything was ended
}

// crashModes are the ways in which a supervisor can find its generations again.
var crashModes = []string{"fd store and cgroups", "nothing but the ledger"}

func newCrashRig(t testing.TB, mode string, changes ...func(*daemonSpec)) *crashRig {
	t.Helper()
	r := &crashRig{rig: emptyRig(t), out: &logBuffer{}}
	r.log = r.out
	r.app = apps.BuildFailing(t, "wslive")
	r.spec = daemonSpec{Config: r.cfg, Cgroup: procs.NoCgroup, Failpoints: filepath.Join(r.dir, "failpoint")}
	if mode == crashModes[0] {
		r.spec.Cgroup = testCgroup(t)
		r.manager = newManager(t, r.dir)
	}
	for _, c := range changes {
		c(&r.spec)
	}
	printed, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.print = w
	copied := make(chan struct{})
	go func() { defer close(copied); io.Copy(r.out, printed) }()
	t.Cleanup(func() { w.Close(); <-copied; printed.Close() })
	t.Cleanup(r.endAll)
	r.boot()
	return r
}

// testCgroup is one for the generations of a test.
func testCgroup(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(cgroupMount(t), fmt.Sprintf("hotdeploy-test-%d-%d", os.Getpid(), time.Now().UnixNano()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("cgroups cannot be tested here, and CI must: %v", err)
		}
		t.Skipf("##### CGROUPS ARE NOT TESTED: %v #####", err)
	}
	t.Cleanup(func() {
		if err := unix.Rmdir(dir); err != nil {
			t.Errorf("something is left in the cgroup: %v", err)
		}
	})
	return dir
}

func cgroupMount(t testing.TB) string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.Contains(line, " - cgroup2 ") {
			return f[4]
		}
	}
	return "/no/cgroup2"
}

// boot starts the daemon, as systemd would after the one before has ended, and waits until it answers.
func (r *crashRig) boot() {
	r.t.Helper()
	done := r.spawn()
	r.connect(done)
}

func (r *crashRig) spawn() chan error {
	r.t.Helper()
	b, err := json.Marshal(r.spec)
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "daemon")
	cmd.Env = append(os.Environ(), "TEST_DAEMON="+string(b))
	cmd.Stdout, cmd.Stderr = r.print, r.print
	start := cmd.Start
	if r.manager != nil {
		start = func() error { return r.manager.start(cmd) }
	}
	if err := start(); err != nil {
		r.t.Fatal(err)
	}
	done, ended := make(chan error, 1), make(chan struct{})
	go func() {
		err := cmd.Wait()
		done <- fmt.Errorf("the daemon ended: %w", err)
		close(ended)
	}()
	r.cmd, r.ended = cmd, ended
	return done
}

// kill ends the daemon where it stands.
func (r *crashRig) kill() {
	r.t.Helper()
	r.cmd.Process.Kill()
	<-r.ended
	r.client.Close()
}

// endAll stops the daemon in order; that nothing is left is the audit's to find out.
func (r *crashRig) endAll() {
	if r.over {
		return
	}
	r.over = true
	r.disarm()
	select {
	case <-r.ended:
		if r.t.Failed() {
			return
		}
		r.boot()
	default:
	}
	r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.ended:
	case <-time.After(30 * time.Second):
		r.t.Error("the daemon does not end")
		r.cmd.Process.Kill()
		<-r.ended
	}
	r.client.Close()
	if r.manager != nil {
		r.manager.close()
	}
	os.Remove(ledgerPath(r.cfg.RunDir)) // as systemd removes the run directory
	reapSuccessors()
}

// destroy ends what a failed test has left, so that it is not taken for another one's.
func (r *crashRig) destroy() {
	r.over = true
	daemons, others := r.processes()
	r.killAll(slices.Concat(daemons, others))
	dirs, _ := filepath.Glob(filepath.Join(r.spec.Cgroup, generationCgroup+"*"))
	for _, dir := range dirs {
		unix.Rmdir(dir)
	}
	r.client.Close()
	if r.manager != nil {
		r.manager.close()
	}
}

// reapSuccessors reaps daemons that another one started in its place. They come to us when it ends, since the supervisors that other
// tests run in this process made us a child subreaper; procs leaves them alone, as they are of our session.
func reapSuccessors() {
	for pid, err := 1, error(nil); pid > 0 && err == nil; {
		pid, err = unix.Wait4(-1, nil, unix.WNOHANG, nil)
	}
}

func newManager(t testing.TB, dir string) *manager {
	t.Helper()
	m := &manager{path: filepath.Join(dir, "manager.sock"), done: make(chan struct{}), stored: map[string]*os.File{}}
	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	go m.serve(sock)
	t.Cleanup(func() { sock.Close(); <-m.done })
	return m
}

func (m *manager) serve(sock *net.UnixConn) {
	defer close(m.done)
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*16))
	for {
		n, k, _, _, err := sock.ReadMsgUnix(data, oob)
		if err != nil {
			return
		}
		var files []*os.File
		if messages, err := unix.ParseSocketControlMessage(oob[:k]); err == nil && len(messages) > 0 {
			fds, _ := unix.ParseUnixRights(&messages[0])
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), "stored"))
			}
		}
		m.handle(string(data[:n]), files)
	}
}

func (m *manager) handle(text string, files []*os.File) {
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		fields[k] = v
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	name := fields["FDNAME"]
	switch {
	case fields["FDSTORE"] == "1" && len(files) == 1:
		if m.stored[name] != nil {
			m.stored[name].Close()
		}
		m.stored[name] = files[0]
		return
	case fields["FDSTOREREMOVE"] == "1" && m.stored[name] != nil:
		m.stored[name].Close()
		delete(m.stored, name)
	}
	for _, f := range files {
		f.Close()
	}
}

// start starts a daemon with what is kept.
func (m *manager) start(cmd *exec.Cmd) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := slices.Sorted(maps.Keys(m.stored))
	for _, name := range names {
		cmd.ExtraFiles = append(cmd.ExtraFiles, m.stored[name])
	}
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.path)
	if len(names) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	return cmd.Start()
}

func (m *manager) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.stored))
}

// forget is the fd store losing a descriptor.
func (m *manager) forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stored[name].Close()
	delete(m.stored, name)
}

func (m *manager) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.stored {
		f.Close()
	}
	clear(m.stored)
}

// lines of the daemons' output that hold part.
func (r *crashRig) lines(part string) string {
	var b bytes.Buffer
	for line := range strings.Lines(r.out.String()) {
		if strings.Contains(line, part) {
			b.WriteString(line)
		}
	}
	return b.String()
}
