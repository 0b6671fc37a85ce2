package upgrade_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/apps"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// lone is an app that nobody supervises, in as many processes as it takes.
type lone struct {
	t       testing.TB
	binary  string
	pidFile string
	trouble string // what the next process is to suffer from
	network string
	address string
	out     *output
	cmd     *exec.Cmd
	waited  chan struct{}
	waitErr error // of the first process; read after waited
}

// startLone starts wslive with PIDFile; set are variables NAME=value.
func startLone(t testing.TB, set ...string) *lone {
	l := prepareLone(t, set...)
	l.start()
	return l
}

func prepareLone(t testing.TB, set ...string) *lone {
	dir := t.TempDir()
	l := &lone{t: t, binary: filepath.Join(dir, "wslive"), pidFile: filepath.Join(dir, "pid"), trouble: filepath.Join(dir, "trouble"), out: newOutput(), network: "tcp"}
	l.install(apps.BuildFailing(t, "wslive"))
	l.address = freeAddress(t)
	for _, s := range set {
		if a, ok := strings.CutPrefix(s, "WSLIVE_ADDRESS="); ok {
			l.network, l.address = "unix", a
		}
	}
	l.cmd = exec.Command(l.binary)
	l.cmd.Env = append(cleanEnviron(), "WSLIVE_NETWORK="+l.network, "WSLIVE_ADDRESS="+l.address, "WSLIVE_PIDFILE="+l.pidFile, "UPGRADE_FAILPOINT=@"+l.trouble)
	l.cmd.Env = append(l.cmd.Env, set...)
	if slices.Contains(set, "CONTAINER=1") {
		l.cmd.SysProcAttr = container()
	}
	return l
}

// cleanEnviron is ours without what a service manager may have put there.
func cleanEnviron() (env []string) {
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "LISTEN_") && !strings.HasPrefix(v, "NOTIFY_SOCKET=") && !strings.HasPrefix(v, "HOTDEPLOY_") {
			env = append(env, v)
		}
	}
	return env
}

// start starts the first process. All of them write to a pipe, whose end is the end of the last one.
func (l *lone) start() {
	r, w, err := os.Pipe()
	if err != nil {
		l.t.Fatal(err)
	}
	l.cmd.Stdout, l.cmd.Stderr = w, w
	if err := l.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	w.Close()
	go l.out.read(r)
	l.waited = make(chan struct{})
	go func() {
		l.waitErr = l.cmd.Wait()
		close(l.waited)
	}()
	l.t.Cleanup(func() {
		select {
		case <-l.waited:
			l.t.Logf("its first process has ended: %v", l.waitErr)
		default:
		}
		l.killAll()
		if l.t.Failed() || os.Getenv("SAY") != "" {
			l.t.Logf("what the app said:\n%s", l.out)
		}
	})
	l.out.await(l.t, "serving on")
	l.await("a pid file", func() bool { return l.readPID() != 0 })
}

// killAll ends whatever processes there are, by the descriptor of their output.
func (l *lone) killAll() {
	for range 100 {
		pids := l.pids()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		select {
		case <-l.out.ended:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// pids are the processes of this app that live, found by the environment that they share.
func (l *lone) pids() (list []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		env, err := os.ReadFile(d + "/environ")
		if err != nil || !bytes.Contains(env, []byte("WSLIVE_PIDFILE="+l.pidFile+"\x00")) {
			continue
		}
		if pid, _ := strconv.Atoi(filepath.Base(d)); lives(pid) {
			list = append(list, pid)
		}
	}
	return list
}

// lives says that a process is there and not waiting for somebody to ask how it ended: init may take its time.
func lives(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := bytes.LastIndexByte(stat, ')')
	return i > 0 && len(stat) > i+2 && stat[i+2] != 'Z'
}

// install puts a binary into place as one should: the name is replaced, not the file written to.
func (l *lone) install(from string) {
	l.t.Helper()
	tmp := l.binary + ".new"
	if text, err := exec.Command("cp", from, tmp).CombinedOutput(); err != nil {
		l.t.Fatalf("cp: %v: %s", err, text)
	}
	if err := os.Rename(tmp, l.binary); err != nil {
		l.t.Fatal(err)
	}
}

// suffer makes the processes that start from now on fail; "" ends it.
func (l *lone) suffer(failpoint string) {
	l.t.Helper()
	tmp := l.trouble + ".new"
	if err := os.WriteFile(tmp, []byte(failpoint), 0o600); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(tmp, l.trouble); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lone) readPID() int {
	b, _ := os.ReadFile(l.pidFile)
	pid, _ := strconv.Atoi(string(b))
	return pid
}

func (l *lone) signal(pid int, sig syscall.Signal) {
	l.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		l.t.Fatalf("signal %v to %d: %v", sig, pid, err)
	}
}

// upgrade asks for a new process and waits until it serves and the old one has ended.
func (l *lone) upgrade() {
	l.t.Helper()
	old := l.readPID()
	l.signal(old, syscall.SIGHUP)
	l.await("another pid", func() bool { return l.readPID() != old })
	l.awaitEnd(old)
}

// fail asks for a new process and waits until the old one says that it has failed.
func (l *lone) fail() string {
	l.t.Helper()
	old := l.readPID()
	from := l.out.len()
	l.signal(old, syscall.SIGHUP)
	line := l.out.awaitFrom(l.t, from, "upgrade failed.*")
	if pid := l.readPID(); pid != old {
		l.t.Errorf("the pid file says %d, not %d", pid, old)
	}
	return line
}

func (l *lone) awaitEnd(pid int) {
	l.t.Helper()
	l.await(fmt.Sprintf("the end of pid %d", pid), func() bool { return !lives(pid) })
}

// await asks again and again, since files and processes of others make no events.
func (l *lone) await(what string, ok func() bool) {
	l.t.Helper()
	for by := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(by) {
			l.t.Fatalf("no %s; the app said:\n%s", what, l.out)
		}
	}
}

// load holds WebSockets that may move.
func (l *lone) load(websockets, perSecond int) *load.Load {
	l.t.Helper()
	o := load.Options{Addr: "127.0.0.1:1", WebSockets: websockets, NewConnsPerSecond: perSecond, MessageInterval: 20 * time.Millisecond, Held: load.MayMove,
		RequestTimeout: 30 * time.Second}
	o.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, l.network, l.address)
	}
	d, err := load.Start(l.t.Context(), o)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { d.Stop(context.Background()) })
	if err := d.Ready(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
	return d
}

// beat waits until every WebSocket that lives has had echoes since now.
func (l *lone) beat(d *load.Load) {
	l.t.Helper()
	r := d.Snapshot()
	want := r.MessagesEchoed + int64(5*r.Kept)
	l.await("echoes", func() bool { return d.Snapshot().MessagesEchoed >= want })
}

func (l *lone) stop(d *load.Load) load.Report {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r := d.Stop(ctx)
	l.t.Logf("%v; %d messages", r, r.MessagesEchoed)
	return r
}

// unnoticed checks that the clients have noticed nothing.
func (l *lone) unnoticed(d *load.Load) {
	l.t.Helper()
	if err := l.stop(d).Err(); err != nil {
		l.t.Error(err)
	}
}

// get asks for a page on a connection of its own.
func (l *lone) get(path string) string {
	l.t.Helper()
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, l.network, l.address)
	}}}
	res, err := client.Get("http://app" + path)
	if err != nil {
		l.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(b)
}

// freeAddress is one that nobody listens on in this moment, and that the kernel gives to nobody who does not ask for it.
func freeAddress(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// output is what processes said, as it comes.
type output struct {
	ended chan struct{}

	mu      sync.Mutex // protects what follows
	text    []byte
	changed chan struct{}
}

func newOutput() *output { return &output{ended: make(chan struct{}), changed: make(chan struct{})} }

func (o *output) read(r *os.File) {
	defer close(o.ended)
	defer r.Close()
	b := make([]byte, 4096)
	for {
		n, err := r.Read(b)
		o.mu.Lock()
		o.text = append(o.text, b[:n]...)
		close(o.changed)
		o.changed = make(chan struct{})
		o.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (o *output) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.text)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

func (o *output) await(t testing.TB, pattern string) string {
	t.Helper()
	return o.awaitFrom(t, 0, pattern)
}

// awaitFrom waits for a text that matches, behind the first bytes.
func (o *output) awaitFrom(t testing.TB, from int, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.After(time.Minute)
	for {
		o.mu.Lock()
		found, changed := re.Find(o.text[from:]), o.changed
		o.mu.Unlock()
		if found != nil {
			return string(found)
		}
		select {
		case <-changed:
		case <-o.ended:
			t.Fatalf("nobody said %q, but:\n%s", pattern, o)
		case <-limit:
			t.Fatalf("nobody says %q, but:\n%s", pattern, o)
		}
	}
}

// crashedWith is how many connections had moved before an upgrade failed.
func crashedWith(t *testing.T, line string) int {
	t.Helper()
	n, err := strconv.Atoi(line[strings.LastIndexByte(line, ' ')+1:])
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return n
}

func TestAlone_TwentyUpgrades_NobodyNotices(t *testing.T) {
	for _, mode := range []string{"rolling", "barrier"} {
		t.Run(mode, func(t *testing.T) {
			l := startLone(t, "WSLIVE_MODE="+mode, "WSLIVE_PATIENCE=20s")
			d := l.load(100, 50)
			for range 20 {
				l.upgrade()
			}
			l.beat(d)
			r := l.stop(d)
			if err := r.Err(); err != nil {
				t.Error(err)
			}
			if r.Changed != 100 {
				t.Errorf("%d of 100 changed process", r.Changed)
			}
		})
	}
}

func TestAlone_NewProcessFails_OldGoesOn(t *testing.T) {
	for _, tc := range []struct{ failpoint, says string }{
		{"alone.new=kill", "killed"},
		{"alone.new=stop", "timed out"},
		{"alone.ready=kill", "killed"},
		{"alone.ready=stop", "timed out"},
		{"alone.knocked=kill", "killed"},
		{"alone.commit=kill", "killed"},
		{"take.begin=kill", "killed"},
		{"take.begin=stop", "killed|timed out"},
		{"take.offer=kill", "killed"},
		{"take.offer=stop", "killed|timed out"},
		{"take.adopted=kill", "killed"},
		{"take.accepted=kill", "killed"},
		{"take.accepted=stop", "killed|timed out"},
	} {
		for _, mode := range []string{"rolling", "barrier"} {
			t.Run(tc.failpoint+", "+mode, func(t *testing.T) {
				t.Parallel()
				set := []string{"WSLIVE_MODE=" + mode}
				switch tc.failpoint {
				case "alone.new=stop", "alone.ready=stop": // nothing else ends these
					set = append(set, "WSLIVE_UPGRADE_TIMEOUT=20s")
				}
				l := startLone(t, set...)
				d := l.load(30, 0)
				l.suffer(tc.failpoint)
				line := l.fail()
				t.Log(line)
				if ok, _ := regexp.MatchString(tc.says, line); !ok {
					t.Errorf("it says %q, not %q", line, tc.says)
				}
				l.suffer("")
				crashed := crashedWith(t, line)
				l.await("ends of connections", func() bool { return d.Snapshot().Closed >= crashed })
				l.beat(d)
				l.get("/version") // it accepts
				l.upgrade()       // and once more it works
				l.beat(d)
				r := l.stop(d)
				if sooner := !strings.HasPrefix(tc.failpoint, "alone.commit") && (mode == "barrier" || !strings.HasPrefix(tc.failpoint, "take.accepted")); sooner && crashed > 0 {
					t.Errorf("%d had moved", crashed)
				}
				if r.Kept+crashed != 30 || r.Doubled+r.Reordered+r.Miscounted+r.Wrong > 0 || r.MessagesLost > 0 && crashed == 0 {
					t.Errorf("%d have crashed with the new process, and the rest: %v", crashed, r.Err())
				}
			})
		}
	}
}

// In barrier mode nothing has moved before all has: 20 upgrades, every other one of which is broken somewhere.
func TestAlone_EveryOtherUpgradeDies_NobodyNotices(t *testing.T) {
	l := startLone(t, "WSLIVE_MODE=barrier", "WSLIVE_PATIENCE=20s")
	d := l.load(100, 0)
	for _, name := range []string{"alone.new", "alone.ready", "alone.knocked", "take.begin", "take.offer", "take.adopted", "take.accepted", "alone.new", "take.offer", "alone.ready"} {
		l.suffer(name + "=kill")
		if n := crashedWith(t, l.fail()); n > 0 {
			t.Errorf("%s: %d had moved", name, n)
		}
		l.suffer("")
		l.upgrade()
		l.beat(d)
	}
	r := l.stop(d)
	if err := r.Err(); err != nil || r.Changed != 100 {
		t.Errorf("%d of 100 changed process: %v", r.Changed, err)
	}
}

func TestAlone_ManyHangupsAtOnce_EveryOneCounts(t *testing.T) {
	l := startLone(t)
	d := l.load(50, 50)
	for range 5 {
		first := l.readPID()
		for range 20 {
			l.signal(first, syscall.SIGHUP)
		}
		l.awaitEnd(first)
		l.await("one process", func() bool { return len(l.pids()) == 1 })
	}
	l.beat(d)
	l.upgrade()
	l.unnoticed(d)
}

func TestAlone_HangupDuringAnUpgrade_ComesAfterIt(t *testing.T) {
	l := startLone(t)
	d := l.load(20, 0)
	l.suffer("alone.new=stop")
	from := l.out.len()
	old := l.readPID()
	l.signal(old, syscall.SIGHUP)
	l.out.awaitFrom(t, from, "failpoint alone.new: stop")
	l.suffer("")
	l.signal(old, syscall.SIGHUP) // while the new process hangs
	for _, pid := range l.pids() {
		if pid != old {
			l.signal(pid, syscall.SIGKILL)
		}
	}
	l.out.awaitFrom(t, from, "upgrade failed")
	l.awaitEnd(old)
	l.beat(d)
	l.unnoticed(d)
}

func TestAlone_TheBinaryIsReplaced(t *testing.T) {
	l := startLone(t)
	d := l.load(20, 20)
	l.install(apps.BuildMarked(t, "wslive", "", "", "two"))
	l.upgrade()
	if v := l.get("/version"); v != "two" {
		t.Errorf("version %q serves", v)
	}
	for name, broken := range map[string]string{"no program": "this is no program", "empty": "", "a script that fails": "#!/bin/sh\nexit 3\n"} {
		file := filepath.Join(t.TempDir(), "broken")
		if err := os.WriteFile(file, []byte(broken), 0o755); err != nil {
			t.Fatal(err)
		}
		l.install(file)
		t.Logf("%s: %s", name, l.fail())
	}
	if err := os.Remove(l.binary); err != nil {
		t.Fatal(err)
	}
	t.Logf("removed: %s", l.fail())
	l.install(apps.BuildMarked(t, "wslive", "", "", "three"))
	l.upgrade()
	if v := l.get("/version"); v != "three" {
		t.Errorf("version %q serves", v)
	}
	l.beat(d)
	l.unnoticed(d)
}

func TestAlone_TermEndsIt(t *testing.T) {
	l := startLone(t)
	l.upgrade()
	pid := l.readPID()
	l.signal(pid, syscall.SIGTERM)
	<-l.out.ended
	if c, err := net.Dial(l.network, l.address); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
}

func TestAlone_TermDuringAnUpgrade_EndsBoth(t *testing.T) {
	l := startLone(t)
	d := l.load(10, 0)
	l.suffer("alone.new=stop")
	from := l.out.len()
	l.signal(l.readPID(), syscall.SIGHUP)
	l.out.awaitFrom(t, from, "failpoint alone.new: stop")
	l.signal(l.readPID(), syscall.SIGTERM)
	l.await("the end of the new process", func() bool { return len(l.pids()) == 1 })
	l.beat(d) // it drains
	l.unnoticed(d)
	<-l.out.ended
}

func TestAlone_OldProcessDies_NewGoesOn(t *testing.T) {
	for _, failpoint := range []string{"give.confirm=kill", "give.confirmed=kill", "alone.given=kill"} {
		t.Run(failpoint, func(t *testing.T) {
			l := startLone(t, "WSLIVE_MODE=barrier", "UPGRADE_FAILPOINT="+failpoint)
			d := l.load(30, 0)
			old := l.readPID()
			l.signal(old, syscall.SIGHUP)
			l.awaitEnd(old)
			l.await("another pid", func() bool { return l.readPID() != old })
			l.beat(d)
			l.unnoticed(d)
		})
	}
}

// An answer that has not ended keeps the old process; the next upgrade waits for it.
func TestAlone_OldProcessDrains_NextUpgradeWaits(t *testing.T) {
	l := startLone(t)
	d := l.load(20, 20)
	old := l.readPID()
	events := l.events()
	l.signal(old, syscall.SIGHUP)
	l.await("another pid", func() bool { return l.readPID() != old })
	second := l.readPID()
	l.signal(old, syscall.SIGHUP) // to the old one, which passes it on
	l.out.await(t, fmt.Sprintf(`waiting until the process before this one \(pid %d\) has nothing left`, old))
	if pid := l.readPID(); pid != second || !lives(old) {
		t.Errorf("pid %d serves, not %d; the old process lives: %t", pid, second, lives(old))
	}
	events.Close()
	l.awaitEnd(old)
	l.awaitEnd(second)
	l.beat(d)
	l.unnoticed(d)
}

// An idle keep-alive connection moves; an answer that does not end stays, and ends only with its client.
func TestAlone_KeepAliveMoves_EventsStay(t *testing.T) {
	l := startLone(t)
	old := l.readPID()
	quiet, events := l.dial(), l.dial()
	if pid := quiet.ask("GET /version HTTP/1.1\r\nHost: app\r\n\r\n").Header.Get("X-Pid"); pid != strconv.Itoa(old) {
		t.Errorf("pid %s answers, not %d", pid, old)
	}
	stream := events.ask("GET /live HTTP/1.1\r\nHost: app\r\nAccept: text/event-stream\r\n\r\n").Body
	l.signal(old, syscall.SIGHUP)
	l.await("another pid", func() bool { return l.readPID() != old })
	if pid := quiet.ask("GET /version HTTP/1.1\r\nHost: app\r\n\r\n").Header.Get("X-Pid"); pid != strconv.Itoa(l.readPID()) {
		t.Errorf("pid %s answers on the connection that was idle, not %d", pid, l.readPID())
	}
	lines := bufio.NewScanner(stream)
	for n := 1; n <= 100; n++ { // most of them come from a process that has been followed
		if lines.Scan(); !strings.HasPrefix(lines.Text(), fmt.Sprintf("data: {\"n\": %d,", n)) {
			t.Fatalf("event %d is %q (%v)", n, lines.Text(), lines.Err())
		}
		lines.Scan()
	}
	if !lives(old) {
		t.Error("the old process has ended before its client")
	}
	events.Close()
	l.awaitEnd(old)
}

// line is one connection of a client.
type line struct {
	net.Conn
	t  testing.TB
	in *bufio.Reader
}

func (l *lone) dial() *line {
	l.t.Helper()
	c, err := net.Dial(l.network, l.address)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return &line{c, l.t, bufio.NewReader(c)}
}

// ask returns the answer; an endless one is left to the caller to read.
func (c *line) ask(request string) *http.Response {
	c.t.Helper()
	io.WriteString(c, request)
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if res.ContentLength >= 0 {
		io.Copy(io.Discard, res.Body)
	}
	return res
}

// slow is a client whose request has been accepted, and takes so long.
func (l *lone) slow(d time.Duration) *line {
	l.t.Helper()
	c := l.dial()
	fmt.Fprintf(c, "GET /slow?for=%s HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n", d)
	l.get("/version")
	return c
}

// events is a client to whom an answer that does not end has begun.
func (l *lone) events() *line {
	l.t.Helper()
	c := l.dial()
	stream := bufio.NewReader(c.ask("GET /live HTTP/1.1\r\nHost: app\r\nAccept: text/event-stream\r\n\r\n").Body)
	if event, err := stream.ReadString('\n'); err != nil || !strings.HasPrefix(event, "data: ") {
		l.t.Fatalf("the first event is %q (%v)", event, err)
	}
	return c
}

// Somebody who never leaves can be made to.
func TestAlone_TermToTheOldProcess_EndsWhatItHas(t *testing.T) {
	l := startLone(t)
	old := l.readPID()
	l.slow(time.Minute)
	l.signal(old, syscall.SIGHUP)
	l.await("another pid", func() bool { return l.readPID() != old })
	l.signal(old, syscall.SIGTERM)
	l.awaitEnd(old)
	l.upgrade()
}
