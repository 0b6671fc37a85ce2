package upgrade

import (
	"context"
	"net"
	"runtime"
	"testing"
	"time"
)

// holdWrites keeps a connection from being packed, as if a Write of its app were still under way.
func holdWrites(c *conn) (free func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beginWriteLocked()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.endWriteLocked()
	}
}

// A connection that waits for the sender, on a machine with too much to do, is none whose app has not come to an end.
func TestRecall_WhatIsSealedIsStillOffered(t *testing.T) {
	from := echoing(t)
	clients := callers(t, from, 2)
	a, b := channels(t)
	takeInto(b, testHello(protocols...), echoing(t))
	g := startGiver(t, a, testHello(protocols...))
	conns := from.conns()
	free := holdWrites(conns[0])
	g.begin(conns[:1], false)
	if err := g.await(within(t), func() bool { return len(g.sealing) == 0 }); err != nil {
		t.Fatal(err)
	}
	g.begin(conns[1:], false) // the sender is busy with the first
	for ready := false; !ready; runtime.Gosched() {
		conns[1].mu.Lock()
		ready = conns[1].state == sealed
		conns[1].mu.Unlock()
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	g.recall(over)
	free()
	if err := g.await(within(t), func() bool { return g.open == 0 }); err != nil {
		t.Errorf("%d are open: %v", g.open, err)
	}
	if g.tally.moved != 2 || len(g.tally.kept) > 0 {
		t.Errorf("%+v", g.tally)
	}
	g.end()
	talk(t, clients)
}

// One whose state comes too late stays, and is not offered behind the back of who counts.
func TestRecall_StateThatComesTooLate_Stays(t *testing.T) {
	saving, free := make(chan bool), make(chan bool)
	from := served(t, func(c net.Conn) {
		if s := SessionOfConn(c); !s.Resumed() {
			s.Save(1, func() ([]byte, error) { close(saving); <-free; return []byte("x"), nil })
		}
		echo1(c)
	})
	clients := callers(t, from, 1)
	a, b := channels(t)
	own := testHello(protocols...)
	own.States = []uint32{1}
	go take(b, own, Options{States: own.States}.withDefaults(), []*listener{echoing(t)}, time.Now().Add(patience))
	g := startGiver(t, a, own)
	g.begin(from.conns(), false)
	<-saving
	over, cancel := context.WithCancel(t.Context())
	cancel()
	g.recall(over)
	close(free)
	talk(t, clients)
	g.end()
	if g.tally.moved != 0 || g.tally.kept[ReasonState] != 1 || g.open != 0 {
		t.Errorf("%d open, %+v", g.open, g.tally)
	}
}
