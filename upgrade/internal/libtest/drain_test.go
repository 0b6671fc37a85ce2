package libtest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// wire is a client that says what it likes.
type wire struct {
	net.Conn
	in *bufio.Reader
	t  *testing.T
}

func newWire(t *testing.T, s *site) *wire {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &wire{c, bufio.NewReader(c), t}
}

func (w *wire) say(s string) {
	w.t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		w.t.Fatal(err)
	}
}

// answer is the next one, interim answers left out.
func (w *wire) answer() *http.Response {
	w.t.Helper()
	for {
		res, err := http.ReadResponse(w.in, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		if res.StatusCode == http.StatusSwitchingProtocols || res.StatusCode >= 200 {
			return res
		}
	}
}

// expect checks who answers, and what.
func (w *wire) expect(pid int, text string) {
	w.t.Helper()
	who, got, err := signature(w.answer())
	if who != pid || got != text || err != nil {
		w.t.Errorf("%q by %d, %v; want %q by %d", got, who, err, text, pid)
	}
}

// interim reads what a server says of a request that it works on.
func (w *wire) interim() {
	w.t.Helper()
	if res, err := http.ReadResponse(w.in, nil); err != nil || res.StatusCode/100 != 1 {
		w.t.Fatalf("%v, %v instead of an interim answer", res, err)
	}
}

func (w *wire) line() string {
	w.t.Helper()
	s, err := w.in.ReadString('\n')
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n" }

// TestHTTP_HalfARequest_IsFinishedInTheNextRelease: what has not begun is nobody's yet.
func TestHTTP_HalfARequest_IsFinishedInTheNextRelease(t *testing.T) {
	t.Parallel()
	s := newTestSite(t, "PATIENCE=20s") // all of them must come along
	fresh, used := newWire(t, s), newWire(t, s)
	used.say(get("/"))
	used.expect(s.pid(), "/")
	request := get("/half")
	for _, w := range []*wire{fresh, used} {
		w.say(request[:9])
	}
	settled := newWire(t, s) // whose answer shows that the others were accepted
	settled.say(get("/"))
	settled.expect(s.pid(), "/")
	for i := range 6 {
		m := s.mustDeploy(t, mode(i))
		if m.Moved != 3 {
			t.Errorf("moved %d, kept %v", m.Moved, m.Kept)
		}
		for _, w := range []*wire{fresh, used} {
			w.say(request[9+i : 10+i])
		}
	}
	for _, w := range []*wire{fresh, used} {
		w.say(request[15:])
		w.expect(s.pid(), "/half")
	}
}

// TestHTTP_Pipelined_AnswersComeInOrder: the requests behind one that is under way are answered by the same release; the next ones, by the next.
func TestHTTP_Pipelined_AnswersComeInOrder(t *testing.T) {
	t.Parallel()
	s := newTestSite(t)
	old := s.serving
	w := newWire(t, s)
	w.say(get("/a") + get("/slow") + get("/b") + get("/c")[:10])
	w.expect(s.pid(), "/a")
	w.interim() // the next one is under way: else it is nobody's yet, and moves
	m := s.mustDeploy(t, "rolling")
	if m.Moved != 0 || m.Kept["busy"] != 1 {
		t.Errorf("moved %d, kept %v", m.Moved, m.Kept)
	}
	fmt.Fprintln(old.stdin, "open the gate")
	w.expect(old.cmd.Process.Pid, "slow")
	w.expect(old.cmd.Process.Pid, "/b")
	w.say(get("/c")[10:])
	for who := 0; who != s.pid(); w.say(get("/c")) { // the old release may not have heard yet that it shall end
		var text string
		var err error
		if who, text, err = signature(w.answer()); text != "/c" || err != nil {
			t.Fatalf("%q, %v", text, err)
		}
	}
	w.expect(s.pid(), "/c")
}

// TestHTTP_WhatCannotMove_DrainsAndSaysWhy: server-sent events, long polls and protocols of one's own go on in the old release, for as long as their clients
// want.
func TestHTTP_WhatCannotMove_DrainsAndSaysWhy(t *testing.T) {
	t.Parallel()
	s := newTestSite(t)
	old := s.serving
	pid := old.cmd.Process.Pid
	events, poll, lines := newWire(t, s), newWire(t, s), newWire(t, s)
	events.say(get("/events"))
	body := bufio.NewReader(events.answer().Body)
	poll.say(get("/slow"))
	poll.interim()
	lines.say("GET /lines HTTP/1.1\r\nHost: a\r\nUpgrade: lines\r\nConnection: Upgrade\r\n\r\nhello\n")
	if code := lines.answer().StatusCode; code != 101 {
		t.Fatal(code)
	}
	if got := lines.line(); got != "hello\n" {
		t.Errorf("%q came back", got)
	}
	next := 0
	event := func() {
		t.Helper()
		want := fmt.Sprintf("data: %d %d\n", pid, next)
		got, err := body.ReadString('\n')
		if got != want || err != nil {
			t.Fatalf("event %q, %v; want %q", got, err, want)
		}
		body.ReadString('\n')
		next++
	}
	for range 20 {
		event()
	}
	m := s.mustDeploy(t, "rolling")
	if m.Moved != 0 || m.Kept["busy"] != 2 || m.Kept["unknown protocol"] != 1 || len(m.Kept) != 2 {
		t.Errorf("moved %d, kept %v", m.Moved, m.Kept)
	}
	s.mustDeploy(t, "rolling")
	for i := range 200 {
		event()
		line := fmt.Sprintf("line %d\n", i)
		lines.say(line)
		if got := lines.line(); got != line {
			t.Fatalf("%q came back, not %q", got, line)
		}
	}
	fmt.Fprintln(old.stdin, "open the gate")
	poll.expect(pid, "slow")
	select {
	case <-old.exited:
		t.Error("the old release has ended")
	default:
	}
	events.Close()
	lines.Close() // and now it does: see newTestSite
}
