package apps

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// echo starts wsecho with one TCP listener and what env adds.
func echo(t *testing.T, ln filer, env ...string) *process {
	t.Helper()
	return start(t, launch{command: []string{Build(t, "wsecho", "", ""), "-until-eof"}, sockets: []filer{ln}, env: env})
}

func TestWsecho_ExitsWhenToldTo(t *testing.T) {
	taken := listen(t).Addr().String()
	for _, c := range []struct {
		name, env string
		ready     bool
		status    int
		said      string
	}{
		{"at the start", "WSECHO_EXIT_AT_START=1", false, 3, "start line 3: fatal: the database said no"},
		{"when ready", "WSECHO_EXIT_WHEN_READY=17", true, 17, "told to exit with 17"},
		{"when ready, as if all were well", "WSECHO_EXIT_WHEN_READY=0", true, 0, "told to exit with 0"},
		{"after a while", "WSECHO_EXIT_AFTER=10ms", true, 1, "told to exit with 1"},
		{"by a value that makes no sense", "WSECHO_EXIT_AFTER=soon", false, 2, `WSECHO_EXIT_AFTER="soon"`},
		{"where a port is taken", "WSECHO_ALSO_LISTEN=" + taken, false, 1, "address already in use"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := echo(t, listen(t), c.env)
			want(t, "status", p.status(), c.status)
			if !strings.Contains(p.log(), c.said) {
				t.Errorf("standard error %q does not say %q", p.log(), c.said)
			}
			if c.ready {
				p.awaitNotify("READY=1")
			} else {
				p.silent()
			}
		})
	}
}

// silent checks that a process that is gone has said nothing.
func (p *process) silent() {
	p.t.Helper()
	p.notify.SetReadDeadline(time.Now().Add(time.Millisecond))
	buf := make([]byte, 4096)
	if n, err := p.notify.Read(buf); err == nil {
		p.t.Errorf("it said %q", buf[:n])
	}
}

func TestWsecho_NeverReady_AcceptsNothingAndGoesAtSIGTERM(t *testing.T) {
	ln := listen(t)
	p := echo(t, ln, "WSECHO_NEVER_READY=1")
	p.awaitLog("told to be never ready")
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ln.SetDeadline(time.Now().Add(patience))
	conn, err := ln.Accept() // ours, since it leaves the queue alone
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	p.terminate()
	want(t, "status", p.status(), 0)
	p.silent()
}

// awaitLog waits until standard error says text.
func (p *process) awaitLog(text string) {
	p.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for ctx := patient(p.t); !strings.Contains(p.log(), text); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			p.t.Fatalf("standard error never says %q", text)
		}
	}
}

func TestWsecho_Unhealthy_AnswersOtherwise(t *testing.T) {
	ln := listen(t)
	p := echo(t, ln, "WSECHO_UNHEALTHY=true", "HOTDEPLOY_VERSION=3")
	p.awaitNotify("READY=1")
	resp, _ := get(t, ln, "/healthz")
	want(t, "health", resp.StatusCode, 503)
	_, version := get(t, ln, "/version")
	want(t, "version", version, "3")
}

func TestWsecho_UnhealthyAfterAWhile(t *testing.T) {
	ln := listen(t)
	p := echo(t, ln, "WSECHO_UNHEALTHY_AFTER=20ms")
	p.awaitNotify("READY=1")
	for ctx := patient(t); ; {
		if resp, _ := get(t, ln, "/healthz"); resp.StatusCode == 503 {
			return
		}
		if ctx.Err() != nil {
			t.Fatal("it never became unhealthy")
		}
	}
}

func TestWsecho_SlowStart_IsReadyInTheEnd(t *testing.T) {
	p := echo(t, listen(t), "WSECHO_SLOW_START=50ms")
	p.awaitLog("the start takes 50ms")
	p.awaitNotify("READY=1")
}

func TestWsecho_IgnoresSIGTERMWhenToldTo(t *testing.T) {
	ln := listen(t)
	p := echo(t, ln, "WSECHO_IGNORE_SIGTERM=1")
	p.awaitNotify("READY=1")
	p.terminate()
	p.awaitLog("told to ignore SIGTERM")
	get(t, ln, "/version") // it still accepts: nobody else does
}

func TestWsecho_Abrupt_DropsItsConnections(t *testing.T) {
	ln := listen(t)
	p := echo(t, ln, "WSECHO_ABRUPT=1", "HOTDEPLOY_VERSION=1")
	p.awaitNotify("READY=1")
	ws := dialEcho(t, ln)
	ws.say("hello", "1", p.cmd.Process.Pid)
	p.terminate()
	want(t, "status", p.status(), 0)
	if _, _, err := ws.conn.ReadMessage(); err == nil {
		t.Error("the connection lives on")
	}
}

func TestWsecho_AlsoListens(t *testing.T) {
	free := listen(t)
	free.Close()
	p := echo(t, listen(t), "WSECHO_ALSO_LISTEN="+free.Addr().String())
	p.awaitNotify("READY=1")
	get(t, free, "/version")
}

func TestWsecho_TakesMemoryAndFloodsStandardError(t *testing.T) {
	p := echo(t, listen(t), "WSECHO_ALLOCATE_MIB=64", "WSECHO_FLOOD_STDERR_MIB=2")
	p.awaitNotify("READY=1")
	if kib := residentKiB(t, p.cmd.Process.Pid); kib < 64<<10 {
		t.Errorf("resident: %d KiB", kib)
	}
	for ctx := patient(t); ; {
		info, err := os.Stat(p.stderr)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() >= 2<<20 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("standard error: %d bytes", info.Size())
		}
	}
}

func residentKiB(t *testing.T, pid int) (kib int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	fmt.Sscan(rest, &kib)
	return kib
}

func TestWsecho_SIGTERM_ARequestInTheMiddleOfItsWorkIsFinished(t *testing.T) {
	ln := listen(t)
	p := echo(t, ln)
	p.awaitNotify("READY=1")
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /slow?for=300ms HTTP/1.1\r\nHost: test\r\n\r\n")
	get(t, ln, "/version") // so that the one before is accepted
	p.terminate()
	want(t, "status", p.status(), 0)
	first, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(first, "HTTP/1.1 200") {
		t.Errorf("answer %q, %v", first, err)
	}
}

func TestWsecho_EchoesDatagramsAndLinesOnSocketsPassedForThem(t *testing.T) {
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	path := filepath.Join(t.TempDir(), "lines")
	unixLn, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer unixLn.Close()
	tcp := listen(t)
	p := start(t, launch{command: []string{Build(t, "wsecho", "", ""), "-until-eof"},
		sockets: []filer{tcp, udp, unixLn}, names: "http:dgram:lines"})
	p.awaitNotify("READY=1")

	get(t, tcp, "/version")
	datagrams := dial(t, "udp", udp.LocalAddr().String())
	exchange(t, datagrams, "a datagram")
	lines := dial(t, "unix", path)
	exchange(t, lines, "one line\n")

	p.terminate()
	p.awaitNotify("STOPPING=1")
	exchange(t, lines, "another line\n")
	lines.Close()
	want(t, "status", p.status(), 0)
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the socket of the next generation is gone: %v", err)
	}
}

func dial(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func exchange(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil || string(buf[:n]) != text {
		t.Errorf("echo of %q: %q, %v", text, buf[:n], err)
	}
}

func TestWsecho_ShowsItsPageAndItsMark(t *testing.T) {
	ln := listen(t)
	p := start(t, launch{command: []string{BuildMarked(t, "wsecho", "", "", "two"), "-until-eof"}, sockets: []filer{ln}})
	p.awaitNotify("READY=1")
	resp, page := get(t, ln, "/")
	want(t, "mark", resp.Header.Get("X-Build-Mark"), "two")
	if !strings.Contains(page, "new WebSocket") {
		t.Errorf("page: %.200q", page)
	}
}

func TestWsecho_GoesWithTheTestThatStartedIt(t *testing.T) {
	p := echo(t, listen(t))
	p.awaitNotify("READY=1")
	p.stdin.Close()
	want(t, "status", p.status(), 1)
}
