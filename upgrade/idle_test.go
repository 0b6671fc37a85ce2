package upgrade

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// resting is a keep-alive connection that has had an answer of a server with these limits, and has moved so many times between such servers since. These
// take it for a new one, whose first request is due.
func resting(t *testing.T, times int, idle, head time.Duration) io.ReadWriter {
	t.Helper()
	serve := func(l *listener, head time.Duration) {
		server := &http.Server{IdleTimeout: idle, ReadHeaderTimeout: head, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })}
		t.Cleanup(func() { server.Close() })
		go server.Serve(l)
	}
	l := newTestListener(t, HTTP())
	serve(l, 0) // who connects may take its time
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	client.SetDeadline(time.Now().Add(patience))
	greet(t, client)
	for range times {
		list := l.conns()
		if len(list) == 0 { // its time is over
			return client
		}
		c := list[0]
		r, why := c.begin().seal(within(t))
		if why == ReasonClosed {
			return client
		} else if why != "" {
			t.Fatal(why)
		}
		l = newTestListener(t, HTTP())
		next, err := l.adopt(r, dup(t, c))
		if err != nil {
			t.Fatal(err)
		}
		next.open() // before its server looks at it: what is not open can be too late for a first request
		serve(l, head)
		if why := verdictOf(t, next); why != "" {
			t.Fatal(why)
		}
		c.confirm()
		<-time.After(2 * head)
	}
	return client
}

func greet(t *testing.T, c io.ReadWriter) {
	t.Helper()
	say(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); string(body) != "hello" {
		t.Fatalf("answer %q, %v", body, err)
	}
}

// However often it moves, it may rest as long as the first server allows.
func TestIdle_MayRestAsLongAsBefore(t *testing.T) {
	for _, limit := range []time.Duration{0, time.Hour} {
		client := resting(t, 3, limit, 20*time.Millisecond)
		greet(t, client)
	}
}

// And no longer.
func TestIdle_EndsWhenItsTimeIsOver(t *testing.T) {
	client := resting(t, 2, 200*time.Millisecond, 5*time.Millisecond)
	if n, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read %d, %v", n, err)
	}
}

// Between the app's yes and the moment at which the connection is its own nobody can speak: that is not taken from the client's time.
func TestAdopted_DeadlinesRestUntilItIsOpen(t *testing.T) {
	const limit = 2 * time.Second
	old, l := newTestListener(t, Lines()), newTestListener(t, Lines())
	client, c := pair(t, old)
	next := adopted(t, l, c, mustSeal(t, c))
	next.SetReadDeadline(time.Now().Add(limit))
	read := make(chan error, 1)
	go func() {
		b := make([]byte, 10)
		n, err := next.Read(b)
		if string(b[:n]) != "hello\n" && err == nil {
			err = io.ErrUnexpectedEOF
		}
		read <- err
	}()
	if why := verdictOf(t, next); why != "" {
		t.Fatal(why)
	}
	say(t, client, "hello\n")
	select {
	case err := <-read:
		t.Fatalf("before it is open: %v", err)
	case <-time.After(limit + limit/10):
	}
	next.open()
	if err := <-read; err != nil {
		t.Error(err)
	}
}
