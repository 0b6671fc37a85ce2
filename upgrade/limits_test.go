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

// giveIn moves what from has to a listener that echoes, within a time for each connection and one for all.
func giveIn(t *testing.T, from *listener, patience, all time.Duration) tally {
	t.Helper()
	a, b := channels(t)
	done := takeInto(b, testHello(protocols...), echoing(t))
	opt := Options{Patience: patience}.withDefaults()
	own := testHello(protocols...)
	g, err := newGiver(a, own, opt, time.Now().Add(all))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), all)
	defer cancel()
	g.all(ctx, []*listener{from})
	g.mu.Lock()
	result := g.tally
	g.mu.Unlock()
	g.end()
	if err := <-done; err != nil {
		t.Error(err)
	}
	return result
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
	if got := giveIn(t, from, 50*time.Millisecond, patience); got.moved != 20 || got.kept[ReasonStuck] != 1 {
		t.Errorf("%+v", got)
	}
	talk(t, others)
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
	g, err := newGiver(a, own, Options{Patience: 50 * time.Millisecond}.withDefaults(), time.Now().Add(patience))
	if err != nil {
		t.Fatal(err)
	}
	g.all(within(t), []*listener{from})
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
	takeInto(b, testHello(protocols...), newTestListener(t, Lines())) // nobody accepts there
	g := startGiver(t, a, testHello(protocols...))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	g.all(ctx, []*listener{from})
	talk(t, clients)
	if g.tally.moved != 0 || g.tally.kept[ReasonLate] != 20 {
		t.Errorf("%+v", g.tally)
	}
	g.end()
}
