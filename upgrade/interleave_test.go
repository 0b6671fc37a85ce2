package upgrade

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// speech is what the clients of a protocol say: an opening, what the app answers to it, messages. length finds the first whole message.
type speech struct {
	name            string
	protocol        func() Protocol
	opening, answer string
	message         func(rng *rand.Rand) []byte
	length          func([]byte) int
}

var speeches = []speech{
	{name: "lines", protocol: Lines, length: slowLine, message: func(rng *rand.Rand) []byte {
		return append(bytes.Repeat([]byte{'a'}, rng.IntN(20)), '\n')
	}},
	{name: "length-prefixed", length: slowLength(Prefix{Width: 2}), protocol: func() Protocol {
		p, _ := LengthPrefixed(Prefix{Width: 2})
		return p
	}, message: func(rng *rand.Rand) []byte {
		n := rng.IntN(300)
		return append([]byte{byte(n >> 8), byte(n)}, bytes.Repeat([]byte{'\n'}, n)...)
	}},
	{name: "mqtt", protocol: MQTT, opening: "\x10\x05hello", answer: "\x20\x02\x00\x00", length: slowPacket, message: func(rng *rand.Rand) []byte {
		n := rng.IntN(300)
		b := []byte{byte(3+rng.IntN(9)) << 4, byte(n)}
		if n > 127 {
			b = []byte{b[0], byte(n) | 0x80, byte(n >> 7)}
		}
		return append(b, bytes.Repeat([]byte{0x10}, n)...)
	}},
	{name: "websocket", protocol: HTTP, opening: upgradeRequest, answer: switching, length: slowMessage, message: webSocketMessage},
}

// webSocketMessage is one with fragments and pings, or a ping by itself; it may call itself compressed.
func webSocketMessage(rng *rand.Rand) (b []byte) {
	frame := func(first byte, n int) {
		b = append(b, first)
		if n < 126 {
			b = append(b, 0x80|byte(n))
		} else {
			b = append(b, 0x80|126, byte(n>>8), byte(n))
		}
		b = append(b, "mask"...)
		b = append(b, bytes.Repeat([]byte{0x81}, n)...)
	}
	first := byte(2) | byte(rng.IntN(2))<<6
	for fragments := rng.IntN(4); fragments > 0; fragments-- {
		frame(first, rng.IntN(300))
		first = 0
		if rng.IntN(3) == 0 {
			frame(0x89, rng.IntN(9))
		}
	}
	frame(first|0x80, rng.IntN(300))
	return b
}

// lane is one client's connection, which moves between two listeners, as between two processes.
type lane struct {
	t         *testing.T
	rng       *rand.Rand
	listeners [2]*listener
	apps      sync.WaitGroup
}

func newLane(t *testing.T, seed uint64, p Protocol, serve func(*listener, uint64)) *lane {
	x := &lane{t: t, rng: rand.New(rand.NewPCG(seed, 1))}
	for i := range x.listeners {
		l := newTestListener(t, p)
		x.listeners[i] = l
		x.apps.Go(func() { serve(l, seed+uint64(i)) })
	}
	return x
}

// end waits for the apps.
func (x *lane) end() {
	for _, l := range x.listeners {
		l.Close()
	}
	x.apps.Wait()
}

// send writes b in pieces, and moves the connection in between.
func (x *lane) send(client net.Conn, b []byte) {
	for len(b) > 0 {
		n := min(len(b), 1+x.rng.IntN(1+x.rng.IntN(200)))
		if _, err := client.Write(b[:n]); err != nil {
			x.t.Errorf("the client writes: %v", err)
			return
		}
		b = b[n:]
		if x.rng.IntN(4) == 0 {
			x.move()
		}
	}
}

// move gives the connection away, or only begins to.
func (x *lane) move() {
	c := x.current()
	if c == nil {
		return // the app has not accepted it yet
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(x.rng.IntN(5))*time.Millisecond)
	defer cancel()
	r, why := c.begin().seal(ctx)
	if why != "" {
		return
	}
	if x.rng.IntN(4) == 0 {
		c.resume(r)
		return
	}
	copied, err := parseRecord(r.append(nil))
	if err != nil {
		x.t.Error(err)
		return
	}
	next, err := x.listeners[x.rng.IntN(2)].adopt(copied, dup(x.t, c))
	if err != nil {
		x.t.Error(err)
		return
	}
	if why := verdictOf(x.t, next); why != "" || x.rng.IntN(4) == 0 {
		if why != "" {
			x.t.Errorf("refused: %s", why)
		}
		next.abandon()
		c.resume(r)
		return
	}
	c.confirm()
	next.open()
}

func (x *lane) current() *conn {
	for _, l := range x.listeners {
		if list := l.conns(); len(list) > 0 {
			return list[0]
		}
	}
	return nil
}

// echoMessages is an app that knows where messages end the slow way, forgets what it has of one when it is told, and reads as it likes.
func (s speech) echoMessages(t *testing.T, l *listener, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		size := 1 + rng.IntN(1+rng.IntN(2000))
		handlers.Go(func() { s.echo(t, c, size) })
	}
}

func (s speech) echo(t *testing.T, c net.Conn, size int) {
	defer c.Close()
	var b []byte
	opened := s.opening == ""
	for p := make([]byte, size); ; {
		n, err := c.Read(p)
		if err != nil {
			return
		}
		b = append(b, p[:n]...)
		if !opened { // a replayed one may be shorter
			if opened = bytes.HasSuffix(b, []byte(s.opening[len(s.opening)-4:])); opened {
				io.WriteString(c, s.answer)
				b = b[:0]
			}
		} else if k := s.length(b); k > 0 {
			if k < len(b) {
				t.Errorf("a Read gave the end of a message and %d bytes behind it", len(b)-k)
			}
			if _, err := c.Write(b); err != nil {
				t.Errorf("the app writes: %v", err)
			}
			b = b[:0]
		}
	}
}

// interleave is one random order of events.
func (s speech) interleave(t *testing.T, seed uint64) {
	x := newLane(t, seed, s.protocol(), func(l *listener, seed uint64) { s.echoMessages(t, l, seed) })
	defer x.end()
	client, err := net.Dial("tcp", x.listeners[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(patience))
	said := []byte(s.opening)
	for range 1 + x.rng.IntN(15) {
		said = append(said, s.message(x.rng)...)
	}
	want := s.answer + string(said[len(s.opening):])
	done := make(chan struct{})
	go func() {
		defer close(done)
		got := make([]byte, len(want))
		if n, err := io.ReadFull(client, got); string(got[:n]) != want {
			t.Errorf("%d of %d bytes came back as they were, %v", differ(got[:n], want), len(want), err)
		}
	}()
	x.send(client, said)
	<-done
}

func differ(got []byte, want string) int {
	for i := range got {
		if got[i] != want[i] {
			return i
		}
	}
	return len(got)
}

// repeat answers a request with its number, which is its path, and its body.
func repeat(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %v %v", r.URL.Path[1:], b, err, r.Context().Err())
}

// interleaveHTTP is one random order of events with a real server.
func interleaveHTTP(t *testing.T, seed uint64) {
	x := newLane(t, seed, HTTP(), func(l *listener, _ uint64) {
		server := &http.Server{Handler: http.HandlerFunc(repeat)}
		server.Serve(l)
		server.Close()
	})
	defer x.end()
	client, err := net.Dial("tcp", x.listeners[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(patience))
	want := make(chan string, 1+x.rng.IntN(3))
	done := make(chan struct{})
	go func() {
		defer close(done)
		in := bufio.NewReader(client)
		for text := range want {
			res, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Errorf("no answer %q: %v", text, err)
				client.Close()
				for range want {
				}
				return
			}
			if b, err := io.ReadAll(res.Body); string(b) != text {
				t.Errorf("answer %q, %v; want %q", b, err, text)
			}
		}
	}()
	for n := range 1 + x.rng.IntN(8) {
		body := strings.Repeat("b", x.rng.IntN(300))
		want <- fmt.Sprintf("%d %s <nil> <nil>", n, body)
		x.send(client, request(n, body, x.rng.IntN(2) == 0))
	}
	close(want)
	<-done
}

func request(n int, body string, chunked bool) []byte {
	head := "POST /" + strconv.Itoa(n) + " HTTP/1.1\r\nHost: a\r\n"
	if !chunked {
		return []byte(head + "Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
	}
	if body != "" {
		body = strconv.FormatInt(int64(len(body)), 16) + "\r\n" + body + "\r\n"
	}
	return []byte(head + "Transfer-Encoding: chunked\r\n\r\n" + body + "0\r\n\r\n")
}

func interleave(t *testing.T, kind int, seed uint64) {
	if kind %= len(speeches) + 1; kind < len(speeches) {
		speeches[kind].interleave(t, seed)
	} else {
		interleaveHTTP(t, seed)
	}
}

// FuzzInterleaving: wherever between two bytes of a client its connection moves, and however its app reads, each message is answered once and in order.
func FuzzInterleaving(f *testing.F) {
	for kind := range len(speeches) + 1 {
		f.Add(byte(kind), uint64(kind))
	}
	f.Fuzz(func(t *testing.T, kind byte, seed uint64) { interleave(t, int(kind), seed) })
}

// TestInterleaving is some of that, new each time.
func TestInterleaving(t *testing.T) {
	start := uint64(time.Now().UnixNano())
	for kind := range len(speeches) + 1 {
		for i := range 60 {
			seed := start + uint64(i)
			t.Run(fmt.Sprintf("%d/%d", kind, seed), func(t *testing.T) { interleave(t, kind, seed) })
		}
	}
}
