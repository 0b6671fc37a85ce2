package apps

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come.
const patience = time.Minute

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// filer is a socket that can be passed on.
type filer interface{ File() (*os.File, error) }

// launch is how a test starts an app, as a supervisor would.
type launch struct {
	command []string // with arguments
	env     []string
	sockets []filer
	names   string // LISTEN_FDNAMES
	pid     string // LISTEN_PID; "": the app's own
}

// process is a running app. The test's cleanup ends it if it still runs, and
// shows its standard error if the test failed.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	notify *net.UnixConn
	stdin  io.Closer
	stderr string // file
	exited chan struct{}
}

// start runs the app with the sockets from fd 3 on. The shell sets LISTEN_PID,
// since only after the fork it is known.
func start(t *testing.T, l launch) *process {
	t.Helper()
	dir := t.TempDir()
	p := &process{t: t, stderr: filepath.Join(dir, "stderr"), exited: make(chan struct{})}
	socket := filepath.Join(dir, "notify")
	var err error
	if p.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	pid := l.pid
	if pid == "" {
		pid = "$$"
	}
	p.cmd = exec.Command("sh", append([]string{"-c", "LISTEN_PID=" + pid + ` exec "$@"`, "sh"}, l.command...)...)
	p.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket,
		"LISTEN_FDS="+strconv.Itoa(len(l.sockets)), "LISTEN_FDNAMES="+l.names)
	p.cmd.Env = append(p.cmd.Env, l.env...)
	p.run(l.sockets)
	return p
}

func (p *process) run(sockets []filer) {
	p.t.Helper()
	for _, s := range sockets {
		f, err := s.File()
		if err != nil {
			p.t.Fatal(err)
		}
		defer f.Close()
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, f)
	}
	log, err := os.Create(p.stderr)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	p.cmd.Stderr = log
	// The app's standard input ends with this process, see -until-eof.
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.exited)
	}()
	p.t.Cleanup(p.cleanup)
}

func (p *process) cleanup() {
	p.cmd.Process.Kill()
	<-p.exited
	p.notify.Close()
	if p.t.Failed() {
		p.t.Logf("standard error of %s:\n%s", p.cmd.Args[4], p.log())
	}
}

func (p *process) log() string {
	text, err := os.ReadFile(p.stderr)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4096):])
}

// awaitNotify waits for a notification with this line.
func (p *process) awaitNotify(line string) {
	p.t.Helper()
	if err := p.notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	// An app that exits instead says nothing more.
	dead := make(chan struct{})
	defer close(dead)
	go func() {
		select {
		case <-p.exited:
			p.notify.SetReadDeadline(time.Now().Add(time.Second)) // not the past: what it said last is still in the queue
		case <-dead:
		}
	}()
	buf := make([]byte, 4096)
	for {
		n, err := p.notify.Read(buf)
		if err != nil {
			p.t.Fatalf("waiting for %s: %v", line, err)
		}
		for _, got := range strings.Split(string(buf[:n]), "\n") {
			if got == line {
				return
			}
		}
	}
}

func (p *process) terminate() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
}

// status waits for the exit.
func (p *process) status() int {
	p.t.Helper()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode()
	case <-patient(p.t).Done():
		p.t.Fatal("it did not exit")
		return 0
	}
}

func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

// get makes a new connection for one request.
func get(t *testing.T, ln net.Listener, path string) (*http.Response, string) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + ln.Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	return resp, string(body)
}

// echoes is one WebSocket and what its next answer must be.
type echoes struct {
	t    *testing.T
	conn *websocket.Conn
	n    int
}

func dialEcho(t *testing.T, ln net.Listener) *echoes {
	t.Helper()
	conn, _, err := websocket.DefaultDialer.Dial("ws://"+ln.Addr().String()+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &echoes{t: t, conn: conn}
}

// say sends text and checks the answer to it.
func (e *echoes) say(text, version string, pid int) {
	e.t.Helper()
	e.n++
	e.conn.SetReadDeadline(time.Now().Add(patience))
	if err := e.conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		e.t.Fatal(err)
	}
	_, frame, err := e.conn.ReadMessage()
	if err != nil {
		e.t.Fatal(err)
	}
	var got struct {
		N    int
		V    string
		Pid  int
		Echo string
	}
	if err := json.Unmarshal(frame, &got); err != nil {
		e.t.Fatalf("%v in %.200q", err, frame)
	}
	if got.N != e.n || got.V != version || got.Pid != pid || got.Echo != text {
		e.t.Fatalf("answer to message %d: %.200q, want version %s and pid %d", e.n, frame, version, pid)
	}
}

// queueLength is how many connections may wait to be accepted.
func queueLength(t *testing.T, ln *net.TCPListener) uint32 {
	t.Helper()
	raw, err := ln.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	var infoErr error
	if err := raw.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil {
		t.Fatal(err)
	}
	if infoErr != nil {
		t.Fatal(infoErr)
	}
	return info.Sacked // of a listening socket: its backlog
}

// ping checks that a ping comes back as a pong, with what it carried.
func (e *echoes) ping() {
	e.t.Helper()
	got := ""
	e.conn.SetPongHandler(func(data string) error { got = data; return nil })
	if err := e.conn.WriteControl(websocket.PingMessage, []byte("are you there"), time.Now().Add(patience)); err != nil {
		e.t.Fatal(err)
	}
	// The reader meets the pong on its way to the answer.
	e.sayAny()
	if got != "are you there" {
		e.t.Errorf("pong: %q", got)
	}
}

func (e *echoes) sayAny() {
	e.t.Helper()
	e.n++
	if err := e.conn.WriteMessage(websocket.TextMessage, []byte("after a ping")); err != nil {
		e.t.Fatal(err)
	}
	if _, frame, err := e.conn.ReadMessage(); err != nil || !strings.Contains(string(frame), "after a ping") {
		e.t.Fatalf("%q, %v", frame, err)
	}
}

// bye closes with a close frame and waits for the server's.
func (e *echoes) bye() {
	e.t.Helper()
	msg := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	if err := e.conn.WriteControl(websocket.CloseMessage, msg, time.Now().Add(patience)); err != nil {
		e.t.Fatal(err)
	}
	if _, _, err := e.conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		e.t.Errorf("the close was not answered: %v", err)
	}
	e.conn.Close()
}

func want(t *testing.T, what string, got, wanted any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(wanted) {
		t.Errorf("%s: got %v, want %v", what, got, wanted)
	}
}
