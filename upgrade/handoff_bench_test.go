package upgrade

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runs is how often a handoff is measured. The figures are medians.
const runs = 5

// BenchmarkHandoff is whole handoffs between processes: from the supervisor's word to the giver's answer. The clients are in this
// process, most of them idle, some of them busy: what these see is the pause. Each taker is a process that has just been started. The
// CPU time of both, for one connection, is what is left of the figures on a machine that has other work; beside it, what a client costs that is new, with its
// first message: that is the price of the app's libraries.
func BenchmarkHandoff(b *testing.B) {
	for _, role := range []string{"http", "lines"} {
		for _, mode := range []Mode{Rolling, Barrier} {
			for _, n := range []int{10_000, 18_000} {
				b.Run(fmt.Sprintf("%s/%s/%d", role, mode, n), func(b *testing.B) { benchHandoff(b, role, mode, n) })
			}
		}
	}
}

func benchHandoff(b *testing.B, role string, mode Mode, n int) {
	s := newService(b)
	env := "UPGRADE_TEST_MODE=" + string(mode)
	old := s.start(role, env)
	fresh := old.cpu()
	c := dialCrowd(b, s.ln.Addr().String(), role, n, busyOnes)
	fresh = old.cpu() - fresh
	var took, gave, taken, told, seen []time.Duration
	profileParts(old) // it has taken nothing
	profileParts(old)
	for range runs {
		next := s.start(role, env)
		usedOld, usedNext := old.cpu(), next.cpu()
		c.worst()
		profileParts(old, next)
		began := time.Now()
		m := s.move(old, next)
		took = append(took, time.Since(began))
		profileParts(old, next)
		gave, taken = append(gave, old.cpu()-usedOld), append(taken, next.cpu()-usedNext)
		told = append(told, time.Duration(m.LongestPauseUS)*time.Microsecond)
		seen = append(seen, c.worst())
		if m.Moved != n {
			b.Fatalf("%+v", m)
		}
		old.term(b)
		old = next
		c.talk(b)
	}
	c.close(b)
	for b.Loop() { // which would forget what was reported before
	}
	per := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(n) }
	b.ReportMetric(medianOf(took).Seconds()*1000, "ms")
	b.ReportMetric(per(medianOf(took)), "us/conn")
	b.ReportMetric(per(fresh), "new-client-cpu-us/conn")
	b.ReportMetric(per(medianOf(gave)), "giver-cpu-us/conn")
	b.ReportMetric(per(medianOf(taken)), "taker-cpu-us/conn")
	b.ReportMetric(medianOf(told).Seconds()*1000, "pause-ms")
	b.ReportMetric(medianOf(seen).Seconds()*1000, "seen-ms")
	b.ReportMetric(0, "ns/op")
	b.Logf("wall %v, CPU of the giver %v and of the taker %v, longest pause %v, as a client saw it %v", took, gave, taken, told, seen)
}

func medianOf(list []time.Duration) time.Duration {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}

// crowd is many clients of one service.
type crowd struct {
	role  string
	list  []*caller
	quiet int // index of the first that is not busy
	stop  chan struct{}
	busy  sync.WaitGroup
	mu    sync.Mutex // protects what follows
	slow  time.Duration
	err   error
}

// caller is one of them. Each answer must bear the number of the message.
type caller struct {
	net.Conn
	in *bufio.Reader
	n  int
}

// busyOnes is how many clients wait for each answer and go on a moment after it.
const (
	busyOnes = 20
	think    = 4 * time.Millisecond
)

func dialCrowd(t testing.TB, addr, role string, n, busy int) *crowd {
	c := &crowd{role: role, quiet: busy, stop: make(chan struct{})}
	for range n {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		x := &caller{Conn: conn, in: bufio.NewReaderSize(conn, 16)}
		if role == "http" {
			io.WriteString(conn, browserRequest)
			head := bufio.NewReader(conn)
			for line := "x"; line != "\r\n"; {
				if line, err = head.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.list = append(c.list, x)
	}
	c.talk(t)
	for _, x := range c.list[:busy] {
		c.busy.Go(func() { c.chat(x) })
	}
	return c
}

// browserRequest is an opening as browsers send it.
var browserRequest = strings.Join([]string{
	"GET /chat?room=7 HTTP/1.1", "Host: chat.example.org", "Connection: Upgrade", "Pragma: no-cache", "Cache-Control: no-cache",
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
	"Upgrade: websocket", "Origin: http://chat.example.org", "Sec-WebSocket-Version: 13", "Accept-Encoding: gzip, deflate, br",
	"Accept-Language: en-US,en;q=0.9", "Cookie: session=0123456789abcdef0123456789abcdef", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
	"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", "", ""}, "\r\n")

// worst returns the longest time that a busy client has waited since it was asked last.
func (c *crowd) worst() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.slow
	c.slow = 0
	return d
}

func (c *crowd) chat(x *caller) {
	for {
		began := time.Now()
		err := c.ask(x)
		if err == nil {
			err = c.answered(x)
		}
		took := time.Since(began)
		c.mu.Lock()
		c.slow = max(c.slow, took)
		if err != nil && c.err == nil {
			c.err = err
		}
		c.mu.Unlock()
		select {
		case <-c.stop:
			return
		case <-time.After(think):
		}
		if err != nil {
			return
		}
	}
}

// ask sends one message.
func (c *crowd) ask(x *caller) error {
	if c.role == "lines" {
		_, err := io.WriteString(x, "hello\n")
		return err
	}
	_, err := x.Write([]byte{0x81, 0x85, 0, 0, 0, 0, 'h', 'e', 'l', 'l', 'o'})
	return err
}

// answered reads and checks the answer.
func (c *crowd) answered(x *caller) error {
	x.n++
	want := fmt.Sprintf("%d hello\n", x.n)
	if c.role == "http" {
		text := fmt.Sprintf("%d hello", x.n)
		want = "\x81" + string(rune(len(text))) + text
	}
	b := make([]byte, len(want))
	if _, err := io.ReadFull(x.in, b); err != nil || string(b) != want {
		return fmt.Errorf("the answer is %q, %v; want %q", b, err, want)
	}
	return nil
}

// talk lets the idle ones say something, and checks the answers.
func (c *crowd) talk(t testing.TB) {
	t.Helper()
	idle := c.list[c.quiet:]
	for _, x := range idle {
		x.SetDeadline(time.Now().Add(patience))
		if err := c.ask(x); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range idle {
		if err := c.answered(x); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *crowd) close(t testing.TB) {
	t.Helper()
	close(c.stop)
	c.busy.Wait()
	if c.err != nil {
		t.Error(c.err)
	}
	for _, x := range c.list {
		x.Close()
	}
}

// BenchmarkKernel is what the kernel allows: descriptors of connections go over in messages of 128 and enter the poller of the process that gets
// them; the sender closes its own.
func BenchmarkKernel(b *testing.B) {
	const n = 8000
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	var per, cpu []time.Duration
	for range runs {
		conns := make([]net.Conn, 0, 2*n)
		for range n {
			client, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			c, err := ln.Accept()
			if err != nil {
				b.Fatal(err)
			}
			conns = append(conns, client, c)
		}
		used := ownCPU()
		per = append(per, passAll(b, conns)/n)
		cpu = append(cpu, (ownCPU()-used)/n)
		for _, c := range conns {
			c.Close()
		}
	}
	for b.Loop() {
	}
	b.ReportMetric(float64(medianOf(per).Nanoseconds())/1000, "us/conn")
	b.ReportMetric(float64(medianOf(cpu).Nanoseconds())/1000, "cpu-us/conn")
	b.ReportMetric(0, "ns/op")
}

// ownCPU is the CPU time that this process has had.
func ownCPU() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// passAll passes every other connection through a socket pair.
func passAll(b *testing.B, conns []net.Conn) time.Duration {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	began := time.Now()
	oob := make([]byte, unix.CmsgSpace(4*maxBatch))
	for i := 1; i < len(conns); {
		var fds []int
		first := i
		for ; i < len(conns) && len(fds) < maxBatch; i += 2 {
			raw, _ := conns[i].(*net.TCPConn).SyscallConn()
			raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) })
		}
		if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fds...), nil, 0); err != nil {
			b.Fatal(err)
		}
		_, k, _, _, err := unix.Recvmsg(pair[1], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			b.Fatal(err)
		}
		for _, fd := range rightsOf(oob[:k]) {
			defer os.NewFile(uintptr(fd), "").Close()
		}
		for ; first < i; first += 2 {
			conns[first].Close()
		}
	}
	return time.Since(began)
}
