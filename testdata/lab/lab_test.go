package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func TestMain(m *testing.M) {
	if os.Getenv("LAB_TEST_ABANDON") != "" {
		abandon()
	}
	os.Exit(m.Run())
}

func TestMachine_AnswersSSHAsRootAndDeploy(t *testing.T) {
	l := New(t, 2)
	ctx := t.Context()
	for _, m := range l.Machines {
		if out := run(t, m, "hostname; id -un; ulimit -Hn"); out != m.Name+"\nroot\n20000\n" {
			t.Errorf("%s says %q", m.Name, out)
		}
		out, err := l.Command(ctx, "ssh", "-F", l.SSHConfig(), m.Name+"-deploy", "id -un; sudo id -un").Output()
		if err != nil || string(out) != "deploy\nroot\n" {
			t.Errorf("deploy on %s: %q, %v", m.Name, out, err)
		}
		if out := enter(t, m, "systemctl is-system-running"); out != "running\n" {
			t.Errorf("%s: system state %q\n%s", m.Name, out, enter(t, m, "systemctl --failed"))
		}
	}
	_, err := l.Machine(1).Run(ctx, "echo no such luck >&2; exit 7")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("a failing command gave %v", err)
	}
}

func TestMachine_DoesNotSeeTheHostsHomesAndServices(t *testing.T) {
	m := New(t, 1).Machine(1)
	if out := enter(t, m, "ls -A /root /usr/local /srv /var/tmp | grep -v -e : -e '^$' -e .ssh -e bin -e systemd-private"); out != "" {
		t.Errorf("the machine sees %q", out)
	}
}

func TestMachine_DiskSurvivesRebootAndPowerCut(t *testing.T) {
	m := New(t, 1).Machine(1)
	ctx := t.Context()
	must(t, m.WriteFile(ctx, "/srv/app/big", []byte(strings.Repeat("x", 1<<20)), 0o640))
	enter(t, m, "sync -f /srv/app/big")
	for name, cycle := range map[string]func(context.Context) error{
		"reboot": m.Reboot,
		"crash":  func(ctx context.Context) error { return errors.Join(m.Crash(ctx), m.Start(ctx)) },
		"stop":   func(ctx context.Context) error { return errors.Join(m.Stop(ctx), m.Start(ctx)) },
	} {
		before := enter(t, m, "cat /proc/sys/kernel/random/boot_id")
		must(t, cycle(ctx))
		if after := enter(t, m, "cat /proc/sys/kernel/random/boot_id"); after == before {
			t.Errorf("%s: same boot id", name)
		}
		data, err := m.ReadFile(ctx, "/srv/app/big")
		if err != nil || len(data) != 1<<20 {
			t.Errorf("after %s: %d bytes, %v", name, len(data), err)
		}
	}
	if out := enter(t, m, "stat -c %a /srv/app/big"); out != "640\n" {
		t.Errorf("mode %q", out)
	}
	if boots := strings.Count(m.Journal("ssh"), "Server listening on 0.0.0.0"); boots != 4 {
		t.Errorf("the journal shows %d boots, want 4", boots)
	}
}

func TestCrash_IsSilentOnTheLineAndEndsWhatRuns(t *testing.T) {
	l := New(t, 1)
	m := l.Machine(1)
	ctx := t.Context()
	server := startEcho(t, m, 7000)
	conn := dial(t, l, m.Addr(7000))
	echo(t, conn)

	must(t, m.Crash(ctx))
	if err := server.Wait(); err == nil {
		t.Error("the command in the machine ended well")
	}
	if _, err := m.Enter(ctx, "true"); !errors.Is(err, ErrDown) {
		t.Errorf("enter a dead machine: %v", err)
	}
	must(t, m.Start(ctx))
	// Only now, with the machine back, is there someone who knows nothing of the connection.
	if _, err := conn.Write([]byte("still there?\n")); err != nil {
		t.Errorf("write before the peer could tell us: %v", err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read gave %v, want a reset", err)
	}
}

func TestDialContext_OpensThousandsOfConnections(t *testing.T) {
	l := New(t, 1)
	m := l.Machine(1)
	startEcho(t, m, 7000)
	var wg sync.WaitGroup
	conns := make([]net.Conn, 2000)
	for i := range conns {
		wg.Go(func() {
			c, err := l.DialContext(t.Context(), "tcp", "vm1:7000")
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			conns[i] = c
		})
	}
	wg.Wait()
	for _, c := range conns {
		if c == nil {
			t.FailNow()
		}
		echo(t, c)
		must(t, c.Close())
	}
}

func TestDialContext_Refused_Cancelled_Closed(t *testing.T) {
	l := New(t, 1)
	if _, err := l.DialContext(t.Context(), "tcp", "vm1:9"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens: %v", err)
	}
	must(t, l.Machine(1).Crash(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := l.DialContext(ctx, "tcp", "vm1:22"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody answers: %v", err)
	}
	must(t, l.Close())
	if _, err := l.DialContext(t.Context(), "tcp", "vm1:22"); !errors.Is(err, errClosed) {
		t.Errorf("closed lab: %v", err)
	}
}

func TestListen_IsReachedFromAMachine(t *testing.T) {
	l := New(t, 1)
	ln, err := l.Listen("tcp", l.HostIP()+":0")
	must(t, err)
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	sent := make(chan error, 1)
	go func() {
		_, err := l.Machine(1).Enter(t.Context(), "echo hello | bash -c 'cat >/dev/tcp/"+l.HostIP()+"/"+port+"'")
		sent <- err
	}()
	c, err := ln.Accept()
	must(t, err)
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "hello\n" {
		t.Errorf("got %q, %v", got, err)
	}
	must(t, <-sent)
}

func TestLink_DelaysEachWayAndSurvivesAPowerCut(t *testing.T) {
	const delay = 40 * time.Millisecond
	l := New(t, 1)
	m := l.Machine(1)
	ctx := t.Context()
	plain := roundTrip(t, l, m)
	must(t, m.Link(ctx, Link{Delay: delay}))
	atLeast := func(when string) {
		t.Helper()
		if rtt := roundTrip(t, l, m); rtt < 2*delay {
			t.Errorf("%s: a round trip takes %v, want at least %v", when, rtt, 2*delay)
		}
	}
	atLeast("delayed")
	must(t, m.Crash(ctx))
	must(t, m.Start(ctx))
	atLeast("after a crash")
	must(t, m.Reboot(ctx))
	atLeast("after a reboot")
	must(t, m.Link(ctx, Link{}))
	t.Logf("plain line: %v before, %v after", plain, roundTrip(t, l, m))
	// The best of many round trips: only a line that still delays keeps all of them this long.
	if rtt := roundTrip(t, l, m); rtt >= 2*delay {
		t.Errorf("the delay is off but a round trip takes %v", rtt)
	}
}

func TestLimitDisk_IsFullWhenFullAndSurvivesAPowerCut(t *testing.T) {
	m := New(t, 1).Machine(1)
	ctx := t.Context()
	must(t, m.LimitDisk(ctx, "/srv", "1m"))
	must(t, m.WriteFile(ctx, "/srv/small", []byte("kept"), 0o644))
	if err := m.WriteFile(ctx, "/srv/large", make([]byte, 2<<20), 0o644); err == nil || !strings.Contains(err.Error(), "No space left") {
		t.Errorf("2 MB on a disk of 1 MB: %v", err)
	}
	must(t, m.Crash(ctx))
	must(t, m.Start(ctx))
	if data, err := m.ReadFile(ctx, "/srv/small"); err != nil || string(data) != "kept" {
		t.Errorf("after a crash: %q, %v", data, err)
	}
}

func TestForbidSocketForwarding_SSHDRefuses(t *testing.T) {
	l := New(t, 1)
	m := l.Machine(1)
	forward := func() error {
		c, err := sshClient(t, l, m).Dial("unix", "/run/dbus/system_bus_socket")
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	if err := forward(); err != nil {
		t.Errorf("as it comes: %v", err)
	}
	must(t, m.ForbidSocketForwarding(t.Context(), true))
	var refused *ssh.OpenChannelError
	if err := forward(); !errors.As(err, &refused) {
		t.Errorf("forbidden: %v", err)
	}
	must(t, m.ForbidSocketForwarding(t.Context(), false))
	if err := forward(); err != nil {
		t.Errorf("allowed again: %v", err)
	}
}

func sshClient(t *testing.T, l *Lab, m *Machine) *ssh.Client {
	t.Helper()
	pem, err := os.ReadFile(l.KeyFile())
	must(t, err)
	key, err := ssh.ParsePrivateKey(pem)
	must(t, err)
	known, err := knownhosts.New(l.KnownHosts())
	must(t, err)
	conn, chans, reqs, err := ssh.NewClientConn(dial(t, l, m.Addr(22)), m.Addr(22), &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: known,
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
	})
	must(t, err)
	c := ssh.NewClient(conn, chans, reqs)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestLabs_RunSideBySide(t *testing.T) {
	a, b := New(t, 1), New(t, 1)
	run(t, a.Machine(1), "touch /root/of-a")
	if out := run(t, b.Machine(1), "ls /root"); out != "" {
		t.Errorf("lab b sees %q", out)
	}
	if a.Machine(1).IP == b.Machine(1).IP {
		t.Error("both labs use the same addresses")
	}
}

// abandon is the other process of the test below: it opens a lab and waits to be killed.
func abandon() {
	l, err := Open(context.Background(), 1)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Dir(), l.ns.path, l.cgroup, l.guard.Process.Pid)
	select {}
}

func TestOpen_OwnerKilled_LabIsGone(t *testing.T) {
	Need(t)
	for _, guarded := range []bool{true, false} {
		t.Run(fmt.Sprintf("guarded=%v", guarded), func(t *testing.T) {
			owner := exec.Command(os.Args[0])
			owner.Env = append(os.Environ(), "LAB_TEST_ABANDON=1")
			owner.Stderr = os.Stderr
			stdout, err := owner.StdoutPipe()
			must(t, err)
			must(t, owner.Start())
			var dir, netns, cgroup string
			var guard int
			if _, err := fmt.Fscan(stdout, &dir, &netns, &cgroup, &guard); err != nil {
				t.Fatalf("the other process did not open a lab: %v", err)
			}
			if !guarded {
				p, err := os.FindProcess(guard)
				must(t, err)
				must(t, p.Kill())
			}
			must(t, owner.Process.Kill())
			_ = owner.Wait()
			if !guarded { // then the next lab cleans up
				script, err := findScript()
				must(t, err)
				must(t, removeStale(t.Context(), script))
			}
			for _, path := range []string{filepath.Join(dir, "vms"), netns, cgroup} {
				untilGone(t, path)
			}
		})
	}
}

// untilGone polls, since a vanishing cgroup or mount gives no event.
func untilGone(t *testing.T, path string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 6000 { // a minute, so that the failure is ours and not the test runner's
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			return
		}
		<-tick.C
	}
	t.Fatalf("%s is still there", path)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, m *Machine, cmd string) string {
	t.Helper()
	out, err := m.Run(t.Context(), cmd)
	must(t, err)
	return out
}

func enter(t *testing.T, m *Machine, cmd string) string {
	t.Helper()
	out, err := m.Enter(t.Context(), cmd)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out
}

// startEcho starts a server in m that sends back what it gets. It ends with the machine at the latest.
func startEcho(t *testing.T, m *Machine, port int) *exec.Cmd {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "echo")
	build := exec.Command("go", "build", "-o", bin, "./testecho")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the echo server: %v\n%s", err, out)
	}
	program, err := os.ReadFile(bin)
	must(t, err)
	must(t, m.WriteFile(t.Context(), "/usr/local/bin/echoserver", program, 0o755))
	c, err := m.EnterCommand(t.Context(), "/usr/local/bin/echoserver", fmt.Sprintf(":%d", port))
	must(t, err)
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("the echo server does not listen: %q, %v", line, err)
	}
	return c
}

func dial(t *testing.T, l *Lab, addr string) net.Conn {
	t.Helper()
	c, err := l.DialContext(t.Context(), "tcp", addr)
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func echo(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("ping\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
}

// roundTrip is the shortest of several: what the line takes, without what the computer takes.
func roundTrip(t *testing.T, l *Lab, m *Machine) time.Duration {
	t.Helper()
	best := time.Hour
	for range 5 {
		start := time.Now()
		c := dial(t, l, m.Addr(22))
		best = min(best, time.Since(start))
		_ = c.Close()
	}
	return best
}
