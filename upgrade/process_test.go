package upgrade

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	gorilla "github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
	points "github.com/hotdeploy/hotdeploy/upgrade/internal/failpoint"
)

// This file runs generations as real processes: the test binary starts itself again, with a role.

const roleEnv = "UPGRADE_TEST_ROLE"

// roles are what such a process may be.
var roles = map[string]func(){
	"lines": func() { runApp(Lines(), serveLines) },
	"http":  func() { runApp(HTTP(), serveSockets) },
}

func TestMain(m *testing.M) {
	if role := roles[os.Getenv(roleEnv)]; role != nil {
		role()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runApp is main of an app that ends with its test, whose end of standard input that is.
func runApp(p Protocol, serve func(net.Listener)) {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	profile()
	tellMemory()
	failpoint = heldUp(points.FromEnv())
	limited()
	up, err := New(Options{States: []uint32{1}, Mode: Mode(os.Getenv("UPGRADE_TEST_MODE")), Patience: patience, Log: log.Printf})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := up.Listen("tcp", "127.0.0.1:0", p, Named("test"))
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		d, _ := time.ParseDuration(os.Getenv("UPGRADE_TEST_SLOW"))
		time.Sleep(d) // an app that is long to look
		serve(ln)
	}()
	if err := up.Ready(); err != nil {
		log.Fatal(err)
	}
	<-up.Exit()
}

// heldUp is failpoint in a process that reads no OFFER before somebody opens its fifo for writing.
func heldUp(failpoint func(string)) func(string) {
	fifo := os.Getenv("UPGRADE_TEST_GATE")
	return func(name string) {
		if fifo != "" && name == "take.offer" {
			f, err := os.Open(fifo)
			if err != nil {
				log.Fatal(err)
			}
			f.Close()
		}
		failpoint(name)
	}
}

// limited makes the process another than it is: an SDK of other versions, or one with few descriptors.
func limited() {
	if list := os.Getenv("UPGRADE_TEST_PROTOCOLS"); list != "" {
		protocols = numbers(list)
	}
	if list := os.Getenv("UPGRADE_TEST_RECORDS"); list != "" {
		records = numbers(list)
	}
	if n, err := strconv.ParseUint(os.Getenv("UPGRADE_TEST_NOFILE"), 10, 64); err == nil {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			log.Fatal(err)
		}
	}
}

func numbers(text string) (list []int) {
	for field := range strings.SplitSeq(text, ",") {
		n, _ := strconv.Atoi(field)
		list = append(list, n)
	}
	return list
}

// serveLines echoes lines, each with its number on this connection before it.
func serveLines(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if errors.Is(err, unix.EMFILE) {
			time.Sleep(5 * time.Millisecond) // as net/http does
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer c.Close()
			n := uint64(0)
			s := SessionOfConn(c)
			if _, state := s.State(); state != nil {
				n = binary.BigEndian.Uint64(state)
			}
			s.Save(1, func() ([]byte, error) { return binary.BigEndian.AppendUint64(nil, n), nil })
			in := bufio.NewReaderSize(c, 512)
			for {
				line, err := in.ReadSlice('\n')
				if err != nil {
					return
				}
				n++
				fmt.Fprintf(c, "%d %s", n, line)
			}
		}()
	}
}

// serveSockets does the same over WebSockets, as people write it.
func serveSockets(ln net.Listener) {
	var upgrader gorilla.Upgrader
	log.Fatal(http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := uint64(0)
		s := SessionOf(r.Context())
		if _, state := s.State(); state != nil {
			n = binary.BigEndian.Uint64(state)
		}
		s.Save(1, func() ([]byte, error) { return binary.BigEndian.AppendUint64(nil, n), nil })
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, text, err := c.ReadMessage()
			if err != nil {
				return
			}
			n++
			if c.WriteMessage(kind, append(strconv.AppendUint(nil, n, 10), " "+string(text)...)) != nil {
				return
			}
		}
	})))
}

// process is one generation; the test is its supervisor.
type process struct {
	cmd   *exec.Cmd
	line  *ctl.Conn
	hello ctl.Message
	done  chan struct{} // closed when it has ended
	log   safeBuffer
}

// service is the listening socket that all generations get.
type service struct {
	t  testing.TB
	ln *net.TCPListener
	f  *os.File
	id int
}

func newService(t testing.TB) *service {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close(); f.Close() })
	return &service{t: t, ln: ln.(*net.TCPListener), f: f}
}

// start runs a generation until the test ends, and waits until it is ready.
func (s *service) start(role string, env ...string) *process {
	s.t.Helper()
	return s.startProgram(os.Args[0], role, env...)
}

func (s *service) startProgram(program, role string, env ...string) *process {
	s.t.Helper()
	line, theirs, err := ctl.Pair()
	if err != nil {
		s.t.Fatal(err)
	}
	defer theirs.Close()
	p := &process{cmd: exec.Command(program), line: line, done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), roleEnv+"="+role, "LISTEN_FDS=1", "LISTEN_FDNAMES=test", ctl.Env+"=4")
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.ExtraFiles = []*os.File{s.f, theirs}
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	leash, err := p.cmd.StdinPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	s.t.Cleanup(func() {
		leash.Close()
		<-p.done
		line.Close()
		if s.t.Failed() {
			s.t.Logf("process %d (%s):\n%s", p.cmd.Process.Pid, p.cmd.ProcessState, p.log.String())
		}
	})
	if p.hello, _, err = line.ReceiveBy(time.Now().Add(patience)); err != nil {
		s.t.Fatalf("no hello: %v\n%s", err, p.log.String())
	}
	return p
}

// order tells from to give everything to to. The answer comes on from's line.
func (s *service) order(from, to *process, within time.Duration) {
	s.t.Helper()
	gives, takes, err := ctl.HandoffPair()
	if err != nil {
		s.t.Fatal(err)
	}
	defer gives.Close()
	defer takes.Close()
	s.id++
	m := ctl.Message{Type: ctl.Take, ID: s.id, TimeoutMS: within.Milliseconds()}
	if err := to.line.Send(m, takes, time.Second); err != nil {
		s.t.Fatal(err)
	}
	m.Type = ctl.Give
	if err := from.line.Send(m, gives, time.Second); err != nil {
		s.t.Fatal(err)
	}
}

// given waits for the answer.
func (s *service) given(from *process) ctl.Message {
	s.t.Helper()
	for {
		m, _, err := from.line.ReceiveBy(time.Now().Add(patience))
		if err != nil {
			s.t.Fatalf("no answer: %v\n%s", err, from.log.String())
		}
		if m.Type == ctl.Given && m.ID == s.id {
			return m
		}
	}
}

func (s *service) move(from, to *process) ctl.Message {
	s.t.Helper()
	s.order(from, to, patience)
	return s.given(from)
}

// proceed ends the handoff that is open.
func (s *service) proceed(p *process) {
	s.t.Helper()
	if err := p.line.Send(ctl.Message{Type: ctl.Proceed}, nil, time.Second); err != nil {
		s.t.Fatal(err)
	}
}

// await waits until the process has said something.
func (p *process) await(t testing.TB, text string) {
	t.Helper()
	for by := time.Now().Add(patience); !strings.Contains(p.log.String(), text); {
		select {
		case <-p.done:
		case <-time.After(5 * time.Millisecond): // nothing tells
		}
		if time.Now().After(by) {
			t.Fatalf("the process does not say %q\n%s", text, p.log.String())
		}
	}
}

// term tells a process that it has been replaced, and waits for its end.
func (p *process) term(t testing.TB) {
	t.Helper()
	p.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("process %d does not end\n%s", p.cmd.Process.Pid, p.log.String())
	}
}

// ticks is the CPU time that a process has had.
func (p *process) cpu() time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// safeBuffer is what a process says.
type safeBuffer struct {
	mu sync.Mutex // protects b
	b  []byte
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b = append(s.b, p...)
	return len(p), nil
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.b)
}
