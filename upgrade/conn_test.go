package upgrade

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must happen. Nothing is expected to take long.
const patience = 20 * time.Second

func newTestListener(t testing.TB, p Protocol) *listener {
	base, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(base.(*net.TCPListener), "test", p)
	t.Cleanup(func() { l.Close() })
	return l
}

// pair returns a client and the connection that was accepted for it.
func pair(t testing.TB, l *listener) (*net.TCPConn, *conn) {
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client.SetDeadline(time.Now().Add(patience))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); c.Close(); c.Close() })
	return client.(*net.TCPConn), c.(*conn)
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// mustSeal is begin, a Read that says ErrHandoff, and Close.
func mustSeal(t testing.TB, c *conn) *record {
	t.Helper()
	o := c.begin()
	if n, err := c.Read(make([]byte, 4096)); n != 0 || err != ErrHandoff {
		t.Fatalf("Read gave %d, %v, want ErrHandoff", n, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	r, why := o.seal(within(t))
	if why != "" {
		t.Fatalf("the connection stays: %s", why)
	}
	return r
}

// dup gives the descriptor as another process would get it.
func dup(t testing.TB, c *conn) (fd int) {
	c.control(func(s uintptr) {
		var err error
		if fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Error(err)
		}
	})
	return fd
}

// adopted gives a sealed connection to another listener; it is not open yet.
func adopted(t testing.TB, l *listener, c *conn, r *record) *conn {
	t.Helper()
	r, err := parseRecord(r.append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.adopt(r, dup(t, c)); err != nil {
		t.Fatal(err)
	}
	next, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.Close(); next.Close() })
	return next.(*conn)
}

// look is a Read that comes back at once: to a connection without an opening it says that the app has accepted.
func look(c *conn) {
	c.SetReadDeadline(past)
	c.Read(make([]byte, 1))
	c.SetReadDeadline(time.Time{})
}

// verdictOf waits for it.
func verdictOf(t testing.TB, c *conn) Reason {
	t.Helper()
	select {
	case why := <-c.verdict():
		return why
	case <-time.After(patience):
		t.Fatal("no verdict")
		return ""
	}
}

func expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b, err, want)
	}
}

func say(t testing.TB, w io.Writer, s string) {
	t.Helper()
	if n, err := io.WriteString(w, s); n != len(s) || err != nil {
		t.Fatalf("write %q: %d, %v", s, n, err)
	}
}

func TestRead_NeverSpansMessages(t *testing.T) {
	client, c := pair(t, newTestListener(t, partLines()))
	say(t, client, "one\ntwo\nthr")
	buf := make([]byte, 100)
	for _, want := range []string{"one\n", "two\n", "thr"} {
		if n, err := c.Read(buf); string(buf[:n]) != want {
			t.Fatalf("got %q, %v; want %q", buf[:n], err, want)
		}
	}
	if r := mustSeal(t, c); string(r.kept) != "thr" {
		t.Errorf("kept %q", r.kept)
	}
}

func TestHandoff_WakesTheRead_AndKeepsTheRest(t *testing.T) {
	l, l2 := newTestListener(t, partLines()), newTestListener(t, partLines())
	client, c := pair(t, l)
	say(t, client, "hel")
	expect(t, c, "hel")
	woken := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 10)); woken <- err }()
	o := c.begin()
	err := <-woken
	if ne, ok := err.(net.Error); !errors.Is(err, ErrHandoff) || ok {
		t.Fatalf("Read was woken by %v, as a net.Error %v", err, ne)
	}
	say(t, c, "until the seal writes go out\n")
	c.Close()
	r, why := o.seal(within(t))
	if why != "" {
		t.Fatal(why)
	}
	if _, err := c.Write([]byte("x")); err != ErrHandoff {
		t.Errorf("Write after the seal: %v", err)
	}
	next := adopted(t, l2, c, r)
	say(t, client, "lo\n")
	got := make(chan string)
	go func() { s, _ := bufio.NewReader(next).ReadString('\n'); got <- s }()
	if why := verdictOf(t, next); why != "" {
		t.Fatal(why)
	}
	c.confirm()
	next.open()
	if s := <-got; s != "hello\n" {
		t.Errorf("the new owner read %q", s)
	}
	say(t, next, "ok\n")
	expect(t, client, "until the seal writes go out\nok\n")
}

func TestAdopted_TouchesNothingBeforeItIsOpen(t *testing.T) {
	l, l2 := newTestListener(t, partLines()), newTestListener(t, partLines())
	client, c := pair(t, l)
	r := mustSeal(t, c)
	next := adopted(t, l2, c, r)
	say(t, client, "a\n")
	next.SetReadDeadline(past) // of the app; the connection itself does not come back before it is open
	if n, err := next.Read(make([]byte, 10)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Read before open: %d, %v", n, err)
	}
	say(t, next, "too early\n")
	next.abandon()
	again := c.resume(r)
	expect(t, again, "a\n")
	say(t, again, "back\n")
	expect(t, client, "back\n")
}

// TestUnsent_MovesTwice: a client that reads nothing has megabytes waiting while its connection moves, and moves again while they
// flow.
func TestUnsent_MovesTwice(t *testing.T) {
	client, c := pair(t, newTestListener(t, partLines()))
	c.sock.(*net.TCPConn).SetWriteBuffer(4096)
	sum := sha256.New()
	part := func(letter byte) []byte {
		p := bytes.Repeat([]byte{letter}, 900<<10)
		sum.Write(p)
		return p
	}
	written := make(chan error, 1)
	first := part('a')
	go func() { _, err := c.Write(first); written <- err }()
	for blocked := false; !blocked; {
		c.mu.Lock()
		blocked = c.inWrite
		c.mu.Unlock()
	}
	for i := range 3 {
		c.begin()
		if i == 0 {
			if err := <-written; err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Write(part('b' + byte(i))); err != nil {
			t.Fatal(err)
		}
		r := mustSeal(t, c)
		t.Logf("%d bytes unsent", len(r.unsent))
		if len(r.unsent) < (i+1)*300<<10 {
			t.Fatalf("move %d carries %d unsent bytes", i, len(r.unsent))
		}
		next := adopted(t, newTestListener(t, partLines()), c, r)
		look(next)
		c.confirm()
		next.open()
		c = next
	}
	c.Close() // and what is unsent still reaches the client
	got := sha256.New()
	if n, err := io.Copy(got, client); err != nil || n != 4*900<<10 {
		t.Fatalf("the client got %d bytes, %v", n, err)
	}
	if !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
		t.Error("the client got other bytes")
	}
}

func TestLongMessage_IsWaitedFor(t *testing.T) {
	p, _ := LengthPrefixed(Prefix{})
	client, c := pair(t, newTestListener(t, p))
	go client.Write(append([]byte{0, 0x20, 0, 0}, make([]byte, 1<<20)...))
	if _, err := io.ReadFull(c, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	c.begin()
	go client.Write(make([]byte, 1<<20+5)) // the rest, and the start of the next
	n, err := io.Copy(io.Discard, readerOnly{c})
	if n != 1<<20+4 || err != ErrHandoff {
		t.Fatalf("after begin came %d bytes and %v", n, err)
	}
}

type readerOnly struct{ io.Reader }

func TestDeadlines_AreTheAppsOwn(t *testing.T) {
	client, c := pair(t, newTestListener(t, partLines()))
	c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	_, err := c.Read(make([]byte, 9))
	if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
		t.Fatalf("Read after its deadline: %v", err)
	}
	c.SetReadDeadline(time.Now().Add(time.Hour))
	woken := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 9)); woken <- err }()
	o := c.begin()
	c.SetReadDeadline(time.Time{}) // must not undo ours
	if err := <-woken; err != ErrHandoff {
		t.Fatal(err)
	}
	c.SetDeadline(past) // must not leak
	c.Close()
	r, _ := o.seal(within(t))
	next := c.resume(r)
	say(t, client, "a\n")
	expect(t, next, "a\n")
	say(t, next, "b\n")
}

func TestStays(t *testing.T) {
	for _, x := range []struct {
		name, said string
		protocol   Protocol
		why        Reason
	}{
		{"tls", "\x16\x03\x01\x00\x05hello", HTTP(), ReasonTLS},
		{"http/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP(), ReasonHTTP2},
		{"noise", "\x00\x01", HTTP(), ReasonUnknown},
		{"none", "a", None(), ReasonUnknown},
		{"mqtt, not a connect", "\xc0\x00", MQTT(), ReasonUnknown},
	} {
		t.Run(x.name, func(t *testing.T) {
			client, c := pair(t, newTestListener(t, x.protocol))
			say(t, client, x.said)
			expect(t, c, x.said)
			o := c.begin()
			if _, why := o.seal(within(t)); why != x.why {
				t.Errorf("stays because of %q, want %q", why, x.why)
			}
			say(t, client, "more")
			expect(t, c, "more")
		})
	}
}

func TestStuckHandler_GetsItsConnectionBackWhenItCloses(t *testing.T) {
	l := newTestListener(t, partLines())
	client, c := pair(t, l)
	o := c.begin()
	if _, err := c.Read(make([]byte, 9)); err != ErrHandoff {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, why := o.seal(ctx); why != ReasonStuck {
		t.Fatalf("stays because of %q", why)
	}
	c.Close()
	again, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	say(t, client, "still here\n")
	expect(t, again, "still here\n")
	if !SessionOfConn(again).Resumed() {
		t.Error("not resumed for the app")
	}
}

func TestBusyReader_GoesOnAfterTheAttempt(t *testing.T) {
	client, c := pair(t, newTestListener(t, partLines()))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	o := c.begin()
	if _, why := o.seal(ctx); why != ReasonBusy {
		t.Fatalf("stays because of %q", why)
	}
	say(t, client, "a\n")
	expect(t, c, "a\n")
}

func TestPark_WaitsWithoutTellingTheApp(t *testing.T) {
	client, c := pair(t, newTestListener(t, partLines()))
	got := make(chan error, 1)
	go func() {
		b := make([]byte, 2)
		_, err := io.ReadFull(c, b)
		got <- err
	}()
	c.park()
	if err := c.atRest(within(t)); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(past) // rests too
	c.SetReadDeadline(time.Time{})
	say(t, client, "a\n")
	say(t, c, "out\n")
	expect(t, client, "out\n")
	select {
	case err := <-got:
		t.Fatalf("Read returned while parked: %v", err)
	default:
	}
	c.unpark()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func TestSession_StateTravels_AndOnIfNobodyTakesIt(t *testing.T) {
	_, c := pair(t, newTestListener(t, partLines()))
	SessionOfConn(c).Save(3, func() ([]byte, error) { return []byte("seven"), nil })
	for range 2 {
		next := c.resume(mustSeal(t, c))
		if v, s := SessionOfConn(next).State(); v != 3 || string(s) != "seven" {
			t.Fatalf("state %d %q", v, s)
		}
		c = next
	}
	SessionOfConn(c).Save(4, func() ([]byte, error) { panic("oh") })
	o := c.begin()
	c.Read(make([]byte, 1))
	c.Close()
	if _, why := o.seal(within(t)); why != ReasonState {
		t.Errorf("a state that cannot be saved: %q", why)
	}
}

const upgradeRequest = "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: a, b\r\n\r\n"

const switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: b\r\n\r\n"

// webSocket opens one on a connection that has served a request before.
func webSocket(t testing.TB, client net.Conn, c *conn) {
	t.Helper()
	say(t, client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	expect(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	say(t, c, "HTTP/1.1 204 No Content\r\n\r\n")
	say(t, client, upgradeRequest+"\x81\x80mask") // a client in a hurry
	expect(t, c, upgradeRequest)
	say(t, c, switching)
	expect(t, c, "\x81\x80mask")
	expect(t, client, "HTTP/1.1 204 No Content\r\n\r\n"+switching)
}

func TestWebSocket_ReplaysTheRequestThatGotThe101(t *testing.T) {
	l2 := newTestListener(t, HTTP())
	client, c := pair(t, newTestListener(t, HTTP()))
	webSocket(t, client, c)
	o := c.begin()
	if _, err := c.Read(make([]byte, 2)); err != ErrHandoff {
		t.Fatal(err)
	}
	say(t, c, "\x88\x02\x03\xe8") // what gws does: held back
	c.Close()
	r, why := o.seal(within(t))
	if why != "" {
		t.Fatal(why)
	}
	next := adopted(t, l2, c, r)
	opening, err := http.ReadRequest(bufio.NewReader(next))
	if err != nil || opening.URL.Path != "/chat" || opening.Header.Get("Sec-WebSocket-Protocol") != "b" {
		t.Fatalf("replayed %+v, %v", opening, err)
	}
	say(t, next, switching[:30])
	say(t, next, switching[30:]+"\x82\x02hi")
	if why := verdictOf(t, next); why != "" {
		t.Fatal(why)
	}
	c.confirm()
	next.open()
	expect(t, client, "\x82\x02hi")
}

func TestWebSocket_OtherAnswer_IsRefused_AndTheOldOneGoesOn(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
		strings.Replace(switching, "Protocol: b", "Protocol: a", 1),
		strings.Replace(switching, "\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n", 1),
		"nonsense\r\n\r\n",
	} {
		client, c := pair(t, newTestListener(t, HTTP()))
		webSocket(t, client, c)
		r := mustSeal(t, c)
		next := adopted(t, newTestListener(t, HTTP()), c, r)
		http.ReadRequest(bufio.NewReader(next))
		say(t, next, answer)
		if why := verdictOf(t, next); why != ReasonRefused {
			t.Fatalf("%q: %q", answer, why)
		}
		if n, err := next.Read(make([]byte, 9)); n != 0 || err != io.EOF {
			t.Errorf("the refused one reads %d, %v", n, err)
		}
		again := c.resume(r)
		http.ReadRequest(bufio.NewReader(again))
		say(t, again, switching)
		say(t, client, "\x81\x80mask")
		expect(t, again, "\x81\x80mask")
	}
}

func TestWebSocket_ClosingStays(t *testing.T) {
	for _, who := range []string{"client", "server"} {
		client, c := pair(t, newTestListener(t, HTTP()))
		webSocket(t, client, c)
		if who == "client" {
			say(t, client, "\x88\x80mask")
			expect(t, c, "\x88\x80mask")
		} else {
			say(t, c, "\x88\x00")
		}
		o := c.begin()
		if _, why := o.seal(within(t)); why != ReasonClosing {
			t.Errorf("the %s closes: %q", who, why)
		}
	}
}

func TestMQTT_ReplaysTheConnect(t *testing.T) {
	client, c := pair(t, newTestListener(t, MQTT()))
	say(t, client, "\x10\x05hello\xc0")
	expect(t, c, "\x10\x05hello")
	say(t, c, "\x20\x02\x01\x00\xd0\x00")
	expect(t, client, "\x20\x02\x01\x00\xd0\x00")
	r := mustSeal(t, c)
	for _, code := range []string{"\x05", "\x00"} {
		next := adopted(t, newTestListener(t, MQTT()), c, r)
		expect(t, next, "\x10\x05hello")
		say(t, next, "\x20\x02\x01"+code+"\xd0\x00")
		if why := verdictOf(t, next); (why == "") != (code == "\x00") {
			t.Fatalf("code %x: %q", code, why)
		} else if why == "" {
			c.confirm()
			next.open()
			expect(t, client, "\xd0\x00")
			say(t, client, "\x00")
			expect(t, next, "\xc0\x00")
		}
	}
}

// TestNetHTTP_RequestInFlightNoticesNothing: the server watches a connection with a one-byte Read while a handler runs; then the idle connection
// moves, and answers there.
func TestNetHTTP_RequestInFlightNoticesNothing(t *testing.T) {
	l, l2 := newTestListener(t, HTTP()), newTestListener(t, HTTP())
	in, out := make(chan struct{}), make(chan struct{})
	old := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in <- struct{}{}
		<-out
		if err := r.Context().Err(); err != nil {
			t.Errorf("the request's context: %v", err)
		}
		fmt.Fprint(w, "old")
	})}
	next := &http.Server{ReadHeaderTimeout: time.Hour, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "new") })}
	go old.Serve(l)
	go next.Serve(l2)
	defer old.Close()
	defer next.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(patience))
	b := bufio.NewReader(client)
	say(t, client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-in
	c := l.conns()[0]
	o := c.begin()
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, why := o.seal(short); why != ReasonBusy {
		t.Fatalf("in flight: %q", why)
	}
	o = c.begin()
	out <- struct{}{}
	r, why := o.seal(within(t))
	if why != "" || len(r.opening) != 0 {
		t.Fatalf("idle: %q, opening %q", why, r.opening)
	}
	moved, err := l2.adopt(r, dup(t, c))
	if err != nil {
		t.Fatal(err)
	}
	if why := verdictOf(t, moved); why != "" {
		t.Fatal(why)
	}
	c.confirm()
	moved.open()
	say(t, client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	for _, want := range []string{"old", "new"} {
		res, err := http.ReadResponse(b, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(res.Body); string(body) != want {
			t.Fatalf("answer %q, %v; want %q", body, err, want)
		}
	}
}

// TestHTTP_WhatBecomesAnotherProtocol_IsLetThrough: bytes that look like the start of a request are not held any more.
func TestHTTP_WhatBecomesAnotherProtocol_IsLetThrough(t *testing.T) {
	for answer, why := range map[string]Reason{
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: lines\r\nConnection: Upgrade\r\n\r\n": ReasonUnknown,
		"HTTP/1.1 200 OK\r\nContent-Type: application/x-stream\r\n\r\n":                     ReasonClosing,
	} {
		client, c := pair(t, newTestListener(t, HTTP()))
		c.SetReadDeadline(time.Now().Add(patience))
		request := "POST /lines HTTP/1.1\r\nUpgrade: lines\r\nConnection: Upgrade\r\n\r\n"
		say(t, client, request+"early")
		expect(t, c, request)
		got := make(chan string)
		go func() {
			b := make([]byte, 5)
			n, _ := io.ReadFull(iotest.OneByteReader(c), b) // as net/http watches
			got <- string(b[:n])
		}()
		say(t, c, answer)
		if s := <-got; s != "early" {
			t.Fatalf("read %q", s)
		}
		say(t, client, "late")
		expect(t, c, "late")
		if _, got := c.begin().seal(within(t)); got != why {
			t.Errorf("stays because of %q, not %q", got, why)
		}
		say(t, client, "later")
		expect(t, c, "later")
	}
}

// TestHTTP_TheBodyBehindAHead_Arrives: also where both come in one segment.
func TestHTTP_TheBodyBehindAHead_Arrives(t *testing.T) {
	client, c := pair(t, newTestListener(t, HTTP()))
	c.SetReadDeadline(time.Now().Add(patience))
	for _, request := range []string{
		"POST / HTTP/1.1\r\nContent-Length: 500\r\n\r\n" + strings.Repeat("x", 500),
		"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	} {
		say(t, client, request+request[:9])
		var got strings.Builder
		for b := make([]byte, 4096); got.Len() < len(request); {
			n, err := c.Read(b)
			if err != nil {
				t.Fatalf("%q, %v", got.String(), err)
			}
			got.Write(b[:n])
		}
		if got.String() != request {
			t.Errorf("read %q", got.String())
		}
		say(t, c, "HTTP/1.1 204 No Content\r\n\r\n")
		say(t, client, request[9:])
		if _, err := io.ReadFull(c, make([]byte, len(request))); err != nil {
			t.Error(err)
		}
		say(t, c, "HTTP/1.1 204 No Content\r\n\r\n")
	}
}

// TestRetired_TakesNothingMore: a process that may end at any moment refuses what an older one offers.
func TestRetired_TakesNothingMore(t *testing.T) {
	to := newTestListener(t, Lines())
	client, c := pair(t, newTestListener(t, Lines()))
	r := mustSeal(t, c)
	to.retire()
	next, err := to.adopt(r, dup(t, c))
	if err != nil {
		t.Fatal(err)
	}
	if why := verdictOf(t, next); why != ReasonRefused {
		t.Errorf("verdict %q", why)
	}
	if n := len(to.conns()); n != 0 {
		t.Errorf("%d connections", n)
	}
	again := c.resume(r)
	say(t, client, "a\n")
	expect(t, again, "a\n")
}

// TestResume_LeavesNoMomentWithoutAConnection: in which a process that is to end would end.
func TestResume_LeavesNoMomentWithoutAConnection(t *testing.T) {
	_, c := pair(t, newTestListener(t, Lines()))
	r := mustSeal(t, c)
	gone := live.change()
	c.resume(r)
	select {
	case <-gone:
		t.Error("the list said for a moment that a connection is gone")
	default:
	}
}

func TestErrors_LookLikeThoseOfPackageNet(t *testing.T) {
	l, l2 := newTestListener(t, partLines()), newTestListener(t, partLines())
	_, c := pair(t, l)
	next := adopted(t, l2, c, mustSeal(t, c))
	look(next)
	c.confirm()
	next.open()
	check := func(when string, err error, is error, timeout bool) {
		t.Helper()
		var op *net.OpError
		ne, ok := err.(net.Error)
		if !errors.As(err, &op) || !ok || ne.Timeout() != timeout || !errors.Is(err, is) {
			t.Errorf("%s: %#v", when, err)
		}
	}
	next.SetReadDeadline(past)
	_, err := next.Read(make([]byte, 1))
	check("after the deadline", err, os.ErrDeadlineExceeded, true)
	next.SetWriteDeadline(past)
	_, err = next.Write(make([]byte, 1))
	check("write after the deadline", err, os.ErrDeadlineExceeded, true)
	next.Close()
	_, err = next.Read(make([]byte, 1))
	check("after Close", err, net.ErrClosed, false)
	_, err = next.Write(make([]byte, 1))
	check("write after Close", err, net.ErrClosed, false)
}

// TestWebSocket_CompressedFramesComeWhole: so that no library decompresses a part of one, and the connection moves all the same.
func TestWebSocket_CompressedFramesComeWhole(t *testing.T) {
	client, c := pair(t, newTestListener(t, HTTP()))
	webSocket(t, client, c)
	say(t, client, "\x42\x83maskabc\x00\x85maskde")
	expect(t, c, "\x42\x83maskabc")
	got := make(chan string, 1)
	go func() {
		b := make([]byte, 3)
		n, _ := io.ReadFull(c, b)
		got <- string(b[:n])
	}()
	say(t, client, "fgh\x80\x81mas")
	for want := range strings.SplitSeq("\x00\x85m ask def gh", " ") {
		if s := <-got; !strings.HasPrefix(want, s) {
			t.Fatalf("delivered %q, want %q", s, want)
		}
		go func() {
			b := make([]byte, 3)
			n, _ := c.Read(b)
			got <- string(b[:n])
		}()
	}
	c.begin()
	if s := <-got; s != "" {
		t.Errorf("delivered %q of a frame that is not complete", s)
	}
	c.Close()
	if r, why := c.begin().seal(within(t)); why != "" || string(r.kept) != "\x42\x83maskabc\x00\x85maskdefgh\x80\x81mas" {
		t.Errorf("kept %+v, %q", r, why)
	}
}

func TestWebSocket_WhatIsHereIsDeliveredBeforeTheAppIsTold(t *testing.T) {
	client, c := pair(t, newTestListener(t, HTTP()))
	webSocket(t, client, c)
	say(t, client, "\x42\x85mas")
	go io.WriteString(client, "khello")
	expect(t, c, "\x42\x85maskhe")
	c.begin()
	expect(t, c, "llo")
	if n, err := c.Read(make([]byte, 9)); n != 0 || err != ErrHandoff {
		t.Errorf("Read gave %d, %v", n, err)
	}
}
