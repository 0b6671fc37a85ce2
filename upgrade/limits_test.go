package upgrade

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// served is a listener whose app is given each connection, and ends it.
func served(t *testing.T, app func(c net.Conn)) *listener {
	l := newTestListener(t, Lines())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				app(c)
			}()
		}
	}()
	return l
}

func echo1(c net.Conn) { io.Copy(struct{ io.Writer }{c}, c) }

// giveUntil gives what from has, until what holds; it is asked with g's lock.
func giveUntil(t *testing.T, g *giver, from *listener, what func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	go func() {
		g.await(ctx, what)
		cancel()
	}()
	g.all(ctx, []*listener{from})
}

func TestLimits_StateOf16MiBMoves_MoreStays(t *testing.T) {
	for extra, want := range map[int]Reason{0: "", 1: ReasonState} {
		from := served(t, func(c net.Conn) {
			s := SessionOfConn(c)
			if !s.Resumed() {
				s.Save(1, func() ([]byte, error) { return make([]byte, MaxState+extra), nil })
			}
			echo1(c)
		})
		clients := callers(t, from, 1)
		a, b := channels(t)
		own := testHello(protocols...)
		own.States = []uint32{1}
		to := echoing(t)
		done := make(chan error, 1)
		go func() {
			_, err := take(b, own, Options{States: []uint32{1}}.withDefaults(), []*listener{to}, time.Now().Add(patience))
			done <- err
		}()
		g := startGiver(t, a, own)
		g.all(within(t), []*listener{from})
		talk(t, clients)
		if want == "" && g.tally.moved != 1 || want != "" && g.tally.kept[want] != 1 {
			t.Errorf("%d bytes of state: %+v", MaxState+extra, g.tally)
		}
		g.end()
		<-done
	}
}

// A handler that does not let go stays behind, and the others do not wait longer for it than they must.
func TestLimits_HandlerThatIsStuck_StaysBehind(t *testing.T) {
	free := make(chan struct{})
	var conns atomic.Int32
	from := served(t, func(c net.Conn) {
		stuck := conns.Add(1) == 1
		echo1(c)
		if stuck {
			<-free
		}
	})
	stuck := callers(t, from, 1)
	others := callers(t, from, 20)
	a, b := channels(t)
	done := takeInto(b, testHello(protocols...), echoing(t))
	g := startGiver(t, a, testHello(protocols...))
	giveUntil(t, g, from, func() bool { return g.tally.moved == 20 })
	if g.tally.moved != 20 || g.tally.kept[ReasonStuck] != 1 {
		t.Errorf("%+v", g.tally)
	}
	talk(t, others)
	g.end()
	if err := <-done; err != nil {
		t.Error(err)
	}
	close(free) // and then its connection goes on here
	talk(t, stuck)
}

// So does one whose state is not saved in time, until it is.
func TestLimits_SaveThatIsStuck_StaysBehind(t *testing.T) {
	free := make(chan struct{})
	var conns atomic.Int32
	from := served(t, func(c net.Conn) {
		if conns.Add(1) == 1 {
			SessionOfConn(c).Save(1, func() ([]byte, error) { <-free; return nil, nil })
		}
		echo1(c)
	})
	stuck := callers(t, from, 1)
	others := callers(t, from, 20)
	a, b := channels(t)
	own := testHello(protocols...)
	own.States = []uint32{1}
	takeInto(b, own, echoing(t))
	g := startGiver(t, a, own)
	giveUntil(t, g, from, func() bool { return g.tally.moved == 20 })
	if g.tally.moved != 20 || g.tally.kept[ReasonState] != 1 {
		t.Errorf("%+v", g.tally)
	}
	talk(t, others)
	g.end()
	close(free)
	talk(t, stuck)
}

// When the time for all is over, what has no verdict comes back.
func TestLimits_TimeIsOver_TheyComeBack(t *testing.T) {
	from := echoing(t)
	clients := callers(t, from, 20)
	a, b := channels(t)
	to := newTestListener(t, Lines())
	takeInto(b, testHello(protocols...), to)
	g := startGiver(t, a, testHello(protocols...))
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	go func() {
		for range clients { // nobody reads there, which would be a yes
			if _, err := to.Accept(); err != nil {
				return
			}
		}
		cancel()
	}()
	g.all(ctx, []*listener{from})
	talk(t, clients)
	if g.tally.moved != 0 || g.tally.kept[ReasonLate] != 20 {
		t.Errorf("%+v", g.tally)
	}
	g.end()
}
