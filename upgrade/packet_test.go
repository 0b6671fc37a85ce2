package upgrade_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/testdata/apps"
	"github.com/hotdeploy/hotdeploy/upgrade/control"
)

// datagramWindow is how many datagrams wait for an answer at a time: few enough for any socket buffer.
const datagramWindow = 32

// sprayer sends numbered datagrams and counts the answers to each.
type sprayer struct {
	conn     net.Conn
	stop     chan struct{}
	answered chan int // gets the number of different processes that answered, when all is counted
}

// spray begins; the client's own address must be one to answer to.
func spray(t *testing.T, conn net.Conn) *sprayer {
	s := &sprayer{conn: conn, stop: make(chan struct{}), answered: make(chan int, 1)}
	t.Cleanup(func() { conn.Close() })
	free := make(chan struct{}, datagramWindow)
	sent := make(chan int, 1)
	go func() {
		n := 0
		for {
			select {
			case free <- struct{}{}:
				if _, err := fmt.Fprintf(conn, "%d", n); err != nil {
					t.Errorf("datagram %d: %v", n, err)
				}
				n++
			case <-s.stop:
				sent <- n
				fmt.Fprint(conn, "-1") // so that the reader looks once more
				return
			}
		}
	}()
	go s.count(t, free, sent)
	return s
}

// count reads until every datagram that was sent has its answer.
func (s *sprayer) count(t *testing.T, free <-chan struct{}, sent <-chan int) {
	seen, pids, total := map[int]bool{}, map[string]bool{}, -1
	b := make([]byte, 1000)
	for total < 0 || len(seen) < total {
		select {
		case total = <-sent:
			continue
		default:
		}
		s.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := s.conn.Read(b)
		if err != nil {
			t.Errorf("after %d answers to %d datagrams: %v", len(seen), total, err)
			break
		}
		pid, text, _ := bytes.Cut(b[:n], []byte(" "))
		number, err := strconv.Atoi(string(text))
		if err != nil || seen[number] {
			t.Errorf("answer %q, seen before: %v, %v", b[:n], seen[number], err)
		}
		if number < 0 {
			continue
		}
		seen[number], pids[string(pid)] = true, true
		select {
		case <-free:
		default:
		}
	}
	t.Logf("%d datagrams, answered by %d processes", len(seen), len(pids))
	s.answered <- len(pids)
}

// end says by how many processes the datagrams were answered.
func (s *sprayer) end() int {
	close(s.stop)
	return <-s.answered
}

// dialUnixgram gives the client a path of its own.
func dialUnixgram(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.DialUnix("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "c"), Net: "unixgram"}, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func dialUDP(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// freePacketAddress is a udp address that nobody uses.
func freePacketAddress(t *testing.T) string {
	t.Helper()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return p.LocalAddr().String()
}

func TestAlone_UnixSocketsAndDatagrams_NothingIsLost(t *testing.T) {
	for _, stream := range []string{"path", "abstract"} {
		t.Run(stream, func(t *testing.T) {
			dir := t.TempDir()
			address, gram, udp := filepath.Join(dir, "s"), filepath.Join(dir, "g"), freePacketAddress(t)
			if stream == "abstract" {
				address, gram = "@"+address, "@"+gram
			}
			l := startLone(t, "WSLIVE_ADDRESS="+address, "WSLIVE_PACKET_WORK=10ms", "WSLIVE_PACKETS=udp "+udp+",unixgram "+gram)
			d := l.load(30, 20)
			a, b := spray(t, dialUDP(t, udp)), spray(t, dialUnixgram(t, gram))
			for range 10 {
				l.upgrade()
			}
			l.suffer("alone.ready=kill")
			l.fail()
			l.suffer("")
			l.beat(d)
			for network, n := range map[string]int{"udp": a.end(), "unixgram": b.end()} {
				if n < 3 {
					t.Errorf("%s was answered by %d processes", network, n)
				}
			}
			r := l.stop(d)
			if err := r.Err(); err != nil || r.Changed != 30 {
				t.Errorf("%d of 30 changed process: %v", r.Changed, err)
			}
			l.signal(l.readPID(), syscall.SIGTERM)
			<-l.out.ended
			if stream == "path" {
				if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
					t.Errorf("left behind: %q", left)
				}
			}
		})
	}
}

// generation is a process of the app under a supervisor, which the test is.
type generation struct {
	cmd  *exec.Cmd
	line *control.Conn
}

// startGeneration passes sockets as the supervisor does.
func startGeneration(t *testing.T, binary string, out *os.File, sockets []*os.File, set ...string) *generation {
	t.Helper()
	line, theirs, err := control.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	g := &generation{cmd: exec.Command(binary), line: line}
	g.cmd.Env = append(append(cleanEnviron(), set...), "LISTEN_FDS="+strconv.Itoa(len(sockets)), "LISTEN_FDNAMES=web:udp:gram", control.Env+"="+strconv.Itoa(3+len(sockets)))
	g.cmd.ExtraFiles = append(append([]*os.File(nil), sockets...), theirs)
	g.cmd.Stdout, g.cmd.Stderr = out, out
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.cmd.Process.Kill()
		g.cmd.Wait()
		line.Close()
	})
	if m := g.hear(t); m.Type != control.Hello {
		t.Fatalf("the app says %+v", m)
	}
	return g
}

func (g *generation) hear(t *testing.T) control.Message {
	t.Helper()
	m, _, err := g.line.ReceiveBy(time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// handOver moves everything to another generation and ends this one.
func (g *generation) handOver(t *testing.T, to *generation) control.Message {
	t.Helper()
	gives, takes, err := control.HandoffPair()
	if err != nil {
		t.Fatal(err)
	}
	defer gives.Close()
	defer takes.Close()
	if err := to.line.Send(control.Message{Type: control.Take, TimeoutMS: 30_000}, takes, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := g.line.Send(control.Message{Type: control.Give, TimeoutMS: 30_000}, gives, time.Minute); err != nil {
		t.Fatal(err)
	}
	gives.Close()
	takes.Close()
	return g.hear(t)
}

func TestSupervised_UnixSocketsAndDatagrams_NothingIsLost(t *testing.T) {
	dir := t.TempDir()
	stream, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	gram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "g"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer gram.Close()
	var sockets []*os.File
	for _, s := range []interface{ File() (*os.File, error) }{stream, udp.(*net.UDPConn), gram} {
		f, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		sockets = append(sockets, f)
	}
	l := &lone{t: t, network: "unix", address: filepath.Join(dir, "s"), out: newOutput()}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go l.out.read(r)
	defer w.Close()
	defer func() {
		if t.Failed() {
			t.Logf("what the app said:\n%s", l.out)
		}
	}()
	start := func() *generation {
		return startGeneration(t, apps.BuildFailing(t, "wslive"), w, sockets, "WSLIVE_NETWORK=unix", "WSLIVE_ADDRESS="+l.address, "WSLIVE_PACKET_WORK=10ms",
			"WSLIVE_PACKETS=udp "+udp.LocalAddr().String()+",unixgram "+gram.LocalAddr().String())
	}
	g := start()
	d := l.load(30, 20)
	a, b := spray(t, dialUDP(t, udp.LocalAddr().String())), spray(t, dialUnixgram(t, gram.LocalAddr().String()))
	for range 10 {
		next := start()
		if m := g.handOver(t, next); m.Moved < 30 || m.Error != "" {
			t.Fatalf("the handoff came to %+v", m)
		}
		g.cmd.Process.Signal(syscall.SIGTERM)
		g.cmd.Wait()
		g = next
	}
	l.beat(d)
	for network, n := range map[string]int{"udp": a.end(), "unixgram": b.end()} {
		if n < 3 {
			t.Errorf("%s was answered by %d processes", network, n)
		}
	}
	l.unnoticed(d)
	if _, err := os.Stat(l.address); err != nil {
		t.Errorf("the socket's path: %v", err)
	}
}
