package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"
)

const quick = 5 * time.Millisecond

func TestLoad_HonestServer_NothingIsNoticed(t *testing.T) {
	addr := serve(t, func() replies { return honest }, versionOne)
	l := start(t, Options{Addr: addr, WebSockets: 20, MessageInterval: quick, NewConnsPerSecond: 200})
	if err := l.Ready(patient(t)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	beats(t, l, 5)
	r := l.Stop(patient(t))
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if r.Kept != 20 || r.Total != 20 || r.MessagesSent < 6*20 || r.MessagesEchoed != r.MessagesSent || r.RequestsOK < 5 {
		t.Errorf("report: %+v", r)
	}
	if r.Versions["1"] != 20 || r.RequestVersions["1"] != r.RequestsOK || int64(r.Latency.Count) != r.RequestsOK {
		t.Errorf("report: %+v", r)
	}
	if part := l.Latency(began, time.Now()); part.Count < 5 || part.Count > r.Latency.Count || part.Slowest < part.P50 {
		t.Errorf("latency of a part: %+v of %+v", part, r.Latency)
	}
	if want := "connections kept 20/20 · messages lost 0 · requests failed 0"; r.String() != want {
		t.Errorf("in one line: %s", r)
	}
}

// The faults strike at the third message, when all is under way.
func TestLoad_EachFaultOfAWebSocketIsNoticed(t *testing.T) {
	at := func(third int64, do func(*websocket.Conn, answer) []answer) func() replies {
		return func() replies {
			return func(conn *websocket.Conn, n int64, a answer) []answer {
				if n == third {
					return do(conn, a)
				}
				return []answer{a}
			}
		}
	}
	for _, c := range []struct {
		name    string
		perConn func() replies
		counted func(Report) int64
		said    string
	}{
		{"drops a message", at(3, func(*websocket.Conn, answer) []answer { return nil }),
			func(r Report) int64 { return r.MessagesLost }, "no echo of message 3"},
		{"doubles a message", at(3, func(_ *websocket.Conn, a answer) []answer { return []answer{a, a} }),
			func(r Report) int64 { return r.Doubled }, "message 3 came twice"},
		{"reorders two messages", reorders,
			func(r Report) int64 { return r.Reordered }, "message 3 came late"},
		{"changes the text", at(3, func(_ *websocket.Conn, a answer) []answer { a.Echo += "!"; return []answer{a} }),
			func(r Report) int64 { return r.Wrong }, "never sent"},
		{"counts wrongly", at(3, func(_ *websocket.Conn, a answer) []answer { a.N++; return []answer{a} }),
			func(r Report) int64 { return r.Miscounted }, "from 2 to 4"},
		{"answers from another process", at(3, func(_ *websocket.Conn, a answer) []answer { a.Pid++; return []answer{a} }),
			func(r Report) int64 { return int64(r.Changed) }, "moved from version"},
		{"closes with a close frame", at(3, func(conn *websocket.Conn, _ answer) []answer {
			conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, ""))
			conn.Close()
			return nil
		}), func(r Report) int64 { return int64(r.Closed) }, "closed by the server"},
		{"cuts the connection", at(3, func(conn *websocket.Conn, _ answer) []answer { conn.Close(); return nil }),
			func(r Report) int64 { return int64(r.Closed) }, "connection ended"},
		{"resets the connection", at(3, func(conn *websocket.Conn, _ answer) []answer {
			conn.NetConn().(*net.TCPConn).SetLinger(0)
			conn.Close()
			return nil
		}), func(r Report) int64 { return int64(r.Closed) }, "reset"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := start(t, Options{Addr: serve(t, c.perConn, versionOne), WebSockets: 2, MessageInterval: quick})
			if err := l.Ready(patient(t)); err != nil {
				t.Fatal(err)
			}
			beats(t, l, 6)
			red(t, l.Stop(cutOff(t)), c.counted, c.said)
		})
	}
}

// reorders keeps back the answer to message 3 until message 4.
func reorders() replies {
	var kept answer
	return func(_ *websocket.Conn, n int64, a answer) []answer {
		switch n {
		case 3:
			kept = a
			return nil
		case 4:
			return []answer{a, kept}
		}
		return []answer{a}
	}
}

// cutOff is for faults that leave a message due for ever.
func cutOff(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func red(t *testing.T, r Report, counted func(Report) int64, said string) {
	t.Helper()
	if counted(r) == 0 {
		t.Errorf("not counted: %+v", r)
	}
	err := r.Err()
	if err == nil {
		t.Fatal("the report is not red")
	}
	if !strings.Contains(err.Error(), said) {
		t.Errorf("the report does not say %q: %v", said, err)
	}
}

func TestLoad_EachFaultOfANewConnectionIsNoticed(t *testing.T) {
	for _, c := range []struct{ name, addr, reason string }{
		{"nobody listens", deaf(t), refused},
		{"reset at once", raw(t, func(conn *net.TCPConn) { conn.SetLinger(0); conn.Close() }), reset},
		{"closed without an answer", raw(t, func(conn *net.TCPConn) { afterRequest(conn, "") }), cut},
		{"half an answer", raw(t, func(conn *net.TCPConn) {
			afterRequest(conn, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
		}), cut},
		{"reset after the answer", raw(t, func(conn *net.TCPConn) {
			conn.SetLinger(0)
			afterRequest(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
		}), reset},
		{"never answered", raw(t, func(conn *net.TCPConn) { io.Copy(io.Discard, conn); conn.Close() }), timedOut},
		{"answered with 500", serve(t, nil, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "broken", http.StatusInternalServerError)
		}), badStatus},
	} {
		t.Run(c.name, func(t *testing.T) {
			limit := patience
			if c.reason == timedOut {
				limit = 500 * time.Millisecond
			}
			l := start(t, Options{Addr: c.addr, NewConnsPerSecond: 200, RequestTimeout: limit})
			beats(t, l, 3)
			red(t, l.Stop(patient(t)), func(r Report) int64 { return r.RequestFailures[c.reason] }, "request: "+c.reason)
		})
	}
}

// deaf is an address that is taken, so that nobody else listens there, and
// where nobody listens.
func deaf(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.CloseOnExec(fd)
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", addr.(*unix.SockaddrInet4).Port)
}

// afterRequest reads the request, since closing with unread bytes is a reset.
func afterRequest(conn *net.TCPConn, answer string) {
	defer conn.Close()
	if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
		io.WriteString(conn, answer)
	}
}

// Nothing is answered before many are waiting: a driver that waited for answers
// before asking again would wait for ever.
func TestLoad_NewConnectionsDoNotWaitForEarlierAnswers(t *testing.T) {
	const many = 30
	var waiting sync.WaitGroup
	waiting.Add(many)
	arrivals := make(chan struct{}, many)
	for range many {
		arrivals <- struct{}{}
	}
	addr := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-arrivals:
			waiting.Done()
		default:
		}
		waiting.Wait()
		versionOne(w, r)
	})
	l := start(t, Options{Addr: addr, NewConnsPerSecond: 200, RequestTimeout: patience})
	beats(t, l, 1)
	if err := l.Stop(patient(t)).Err(); err != nil {
		t.Error(err)
	}
}

// The server is slow in answering; it does answer.
func TestLoad_StopWaitsForWhatIsDue(t *testing.T) {
	slow := func() replies {
		return func(_ *websocket.Conn, _ int64, a answer) []answer {
			<-time.After(30 * time.Millisecond)
			return []answer{a}
		}
	}
	l := start(t, Options{Addr: serve(t, slow, versionOne), WebSockets: 5, MessageInterval: quick})
	if err := l.Ready(patient(t)); err != nil {
		t.Fatal(err)
	}
	beats(t, l, 1)
	if s := l.Snapshot(); s.MessagesDue == 0 || s.MessagesLost != 0 {
		t.Errorf("a slow server owes messages: due %d, lost %d", s.MessagesDue, s.MessagesLost)
	}
	r := l.Stop(patient(t))
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	if r.MessagesSkipped == 0 && r.MessagesSent > 5*window*10 {
		t.Error("more than a window of messages was under way")
	}
}

func TestLoad_WhatIsStillDueWhenStopIsCutOffIsNotLost(t *testing.T) {
	stuck := func() replies {
		return func(_ *websocket.Conn, n int64, a answer) []answer {
			if n > 1 {
				return nil
			}
			return []answer{a}
		}
	}
	block := make(chan struct{})
	defer close(block)
	asked := make(chan struct{}, 1)
	addr := serve(t, stuck, func(http.ResponseWriter, *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-block
	})
	l := start(t, Options{Addr: addr, WebSockets: 1, MessageInterval: quick, NewConnsPerSecond: 100, RequestTimeout: patience})
	if err := l.Ready(patient(t)); err != nil {
		t.Fatal(err)
	}
	<-asked
	sent(t, l, 2)
	r := l.Stop(cutOff(t))
	if r.MessagesDue == 0 || r.MessagesLost != 0 || r.RequestsDue == 0 || r.RequestsFailed != 0 || r.Kept != 1 {
		t.Errorf("report: %+v", r)
	}
	red(t, r, func(r Report) int64 { return r.MessagesDue }, "messages without an echo in time")
	red(t, r, func(r Report) int64 { return r.RequestsDue }, "requests without an answer in time")
}

// sent waits until n messages have gone out, for servers that give no beat.
func sent(t *testing.T, l *Load, n int64) {
	t.Helper()
	tick := time.NewTicker(quick)
	defer tick.Stop()
	for ctx := patient(t); l.Snapshot().MessagesSent < n; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waiting for %d messages: %+v", n, l.Snapshot())
		}
	}
}

func TestLoad_AWebSocketThatCannotOpenIsNotKept(t *testing.T) {
	addr := raw(t, func(conn *net.TCPConn) { conn.SetLinger(0); conn.Close() })
	l := start(t, Options{Addr: addr, WebSockets: 3})
	if err := l.Ready(patient(t)); err == nil {
		t.Error("ready without a connection")
	}
	red(t, l.Stop(patient(t)), func(r Report) int64 { return int64(r.Unopened) }, "3 of 3 connections not kept")
}

func TestLoad_AMovedConnectionIsAllowedWhereItMayMove(t *testing.T) {
	moves := func() replies {
		return func(_ *websocket.Conn, n int64, a answer) []answer {
			if n > 2 {
				a.V, a.Pid = "2", 8
			}
			return []answer{a}
		}
	}
	l := start(t, Options{Addr: serve(t, moves, versionOne), WebSockets: 2, MessageInterval: quick, Held: MayMove})
	beats(t, l, 4)
	r := l.Stop(patient(t))
	if err := r.Err(); err != nil || r.Changed != 2 || r.Versions["2"] != 2 {
		t.Errorf("err %v, report %+v", err, r)
	}
}

func TestLoad_TheEndOfItsContextTearsItDownAndSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addr := serve(t, func() replies { return honest }, versionOne)
	l, err := Start(ctx, Options{Addr: addr, WebSockets: 3, MessageInterval: quick, NewConnsPerSecond: 50})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Ready(patient(t)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := l.Beat(patient(t)); !errors.Is(err, errStopped) {
		t.Errorf("beat after the end: %v", err)
	}
	for _, s := range l.sockets {
		<-s.ended
	}
	if r := l.Stop(t.Context()); r.Aborted == "" || r.Err() == nil {
		t.Errorf("report: %+v", r)
	}
}

func TestLoad_NoLoadIsNoProof(t *testing.T) {
	l := start(t, Options{Addr: "127.0.0.1:1"})
	if err := l.Stop(patient(t)).Err(); !errors.Is(err, errNoLoad) {
		t.Errorf("got %v", err)
	}
}

func TestStart_RefusesOptionsThatMakeNoSense(t *testing.T) {
	for _, o := range []Options{
		{}, {Addr: "nohost"}, {Addr: "h:1", WebSockets: -1}, {Addr: "h:1", NewConnsPerSecond: 10_000_000},
		{Addr: "h:1", MessageInterval: -1},
	} {
		if l, err := Start(t.Context(), o); err == nil {
			l.Stop(t.Context())
			t.Errorf("%+v was accepted", o)
		}
	}
}
