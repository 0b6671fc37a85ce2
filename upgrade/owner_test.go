package upgrade

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// owns says whether this conn may touch the socket.
func (c *conn) owns() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state {
	case running, told, sealed:
		return true
	case replaying:
		return c.replay.opened
	}
	return false
}

// world is one client's connection and all conns that it ever had: in two processes, as far as one has two.
type world struct {
	t         *testing.T
	rng       *rand.Rand
	listeners [2]*listener
	mu        sync.Mutex // protects conns; the driver holds it where two conns change at once
	conns     []*conn
	apps      sync.WaitGroup
	accepted  chan struct{} // gets one for each conn
}

// serve runs an app that echoes lines, with deadlines of its own and habits.
func (w *world) serve(l *listener, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 9))
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		w.mu.Lock()
		w.conns = append(w.conns, c.(*conn))
		w.mu.Unlock()
		w.accepted <- struct{}{}
		seed := rng.Uint64()
		w.apps.Go(func() { w.echo(c, rand.New(rand.NewPCG(seed, 3))) })
	}
}

func (w *world) echo(c net.Conn, rng *rand.Rand) {
	defer c.Close()
	in := bufio.NewReaderSize(c, 16+rng.IntN(5000))
	var line []byte
	for {
		if rng.IntN(3) == 0 {
			c.SetReadDeadline(time.Now().Add(time.Duration(rng.IntN(2000)) * time.Microsecond))
		}
		part, err := in.ReadBytes('\n')
		line = append(line, part...)
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			c.SetReadDeadline(time.Time{})
			continue
		}
		if err != nil {
			if !errors.Is(err, ErrHandoff) && err != io.EOF && !errors.Is(err, net.ErrClosed) {
				w.t.Errorf("the app reads: %v", err)
			}
			if rng.IntN(4) == 0 {
				time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond) // a handler that takes its time
			}
			return
		}
		if n, err := c.Write(line); n != len(line) || err != nil {
			w.t.Errorf("the app writes: %d, %v", n, err)
			return
		}
		line = line[:0]
	}
}

// check: exactly one conn owns the socket.
func (w *world) check(when string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var states []state
	n := 0
	for _, c := range w.conns {
		if c.owns() {
			n++
		}
		c.mu.Lock()
		states = append(states, c.state)
		c.mu.Unlock()
	}
	if n != 1 {
		w.t.Errorf("%s: %d owners: %v", when, n, states)
	}
}

// move tries to move the connection, and breaks off anywhere.
func (w *world) move() {
	w.mu.Lock()
	var c *conn
	for _, x := range w.conns {
		if x.owns() {
			c = x
		}
	}
	w.mu.Unlock()
	if c == nil {
		return // between two conns, and the follower is not accepted yet
	}
	o := c.begin()
	if w.rng.IntN(4) == 0 {
		c.park()
		defer c.unpark()
	}
	ctx := within(w.t)
	if w.rng.IntN(3) == 0 {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, time.Duration(w.rng.IntN(1500))*time.Microsecond)
		defer cancel()
	}
	r, why := o.seal(ctx)
	if why != "" {
		return
	}
	w.check("sealed")
	if w.rng.IntN(4) == 0 {
		w.resume(c, r)
		return
	}
	to := w.listeners[w.rng.IntN(2)]
	copied, _ := parseRecord(r.append(nil))
	next, err := to.adopt(copied, dup(w.t, c))
	if err != nil {
		w.t.Error(err)
		return
	}
	w.check("offered")
	switch w.rng.IntN(5) {
	case 0:
		next.abandon()
		w.resume(c, r)
	case 1:
		<-next.verdict()
		w.check("accepted")
		next.abandon()
		w.resume(c, r)
	default:
		if why := verdictOf(w.t, next); why != "" {
			w.t.Errorf("refused: %s", why)
		}
		w.check("accepted")
		w.mu.Lock()
		c.confirm()
		next.open()
		w.mu.Unlock()
	}
	w.check("moved")
}

// resume waits until the app has accepted the conn that follows.
func (w *world) resume(c *conn, r *record) {
	w.mu.Lock()
	next := c.resume(r)
	w.mu.Unlock()
	if next == nil {
		w.t.Error("a sealed connection cannot be resumed")
		return
	}
	if why := verdictOf(w.t, next); why != "" {
		w.t.Errorf("resumed and refused: %s", why)
	}
}

// TestOwner_IsAlwaysOne: events in any order, and the client gets every line back, once and in order.
func TestOwner_IsAlwaysOne(t *testing.T) {
	seeds := uint64(time.Now().UnixNano())
	for i := range 20 {
		seed := seeds + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 0))}
			w.accepted = make(chan struct{}, 1000)
			var serving sync.WaitGroup
			for i := range w.listeners {
				w.listeners[i] = newTestListener(t, Lines())
				serving.Go(func() { w.serve(w.listeners[i], seed+uint64(i)) })
			}
			client, err := net.Dial("tcp", w.listeners[0].Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			client.SetDeadline(time.Now().Add(patience))
			stop := make(chan struct{})
			sent := make(chan int, 1)
			go func() { sent <- chatter(client, stop, seed) }()
			got := make(chan int, 1)
			go func() { got <- checkEcho(t, client) }()
			<-w.accepted
			for range 60 {
				w.move()
			}
			close(stop)
			n := <-sent
			client.(*net.TCPConn).CloseWrite() // the client leaves: and now nobody owns
			if m := <-got; m != n {
				t.Errorf("%d lines sent, %d came back", n, m)
			}
			client.Close()
			for _, l := range w.listeners {
				l.Close()
			}
			serving.Wait()
			w.apps.Wait()
			for _, l := range w.listeners {
				if n := len(l.conns()); n != 0 {
					t.Errorf("%d connections are left", n)
				}
			}
			t.Logf("%d lines, %d conns", n, len(w.conns))
		})
	}
}

// chatter sends numbered lines in pieces and returns how many.
func chatter(client net.Conn, stop <-chan struct{}, seed uint64) int {
	rng := rand.New(rand.NewPCG(seed, 5))
	for n := 0; ; n++ {
		select {
		case <-stop:
			return n
		default:
		}
		line := fmt.Appendf(nil, "%d %0*d\n", n, rng.IntN(3000), 0)
		for len(line) > 0 {
			k := 1 + rng.IntN(len(line))
			if _, err := client.Write(line[:k]); err != nil {
				return -1
			}
			line = line[k:]
		}
	}
}

// checkEcho reads them.
func checkEcho(t *testing.T, client net.Conn) int {
	in := bufio.NewReader(client)
	for n := 0; ; n++ {
		line, err := in.ReadString('\n')
		if err != nil {
			if err != io.EOF || line != "" {
				t.Errorf("the client reads %q, %v", line, err)
			}
			return n
		}
		var got int
		if fmt.Sscan(line, &got); got != n {
			t.Errorf("the client gets %d instead of %d", got, n)
			return n
		}
	}
}
