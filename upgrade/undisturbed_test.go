package upgrade

import (
	"context"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A release that cannot read what the connections share is found out before anything stands still.
func TestBarrier_SharedStateThatCannotBeRead_NothingIsParked(t *testing.T) {
	from := echoing(t)
	clients := callers(t, from, 5)
	a, b := channels(t)
	own := testHello(protocols...)
	own.Mode = string(Barrier)
	takeInto(b, testHello(protocols...), echoing(t))
	disturbed := func(context.Context) error { t.Error("OnPark was called"); return nil }
	g, err := newGiver(a, own, Options{Freezes: 7, OnPark: disturbed}.withDefaults(), time.Now().Add(patience))
	if err != nil {
		t.Fatal(err)
	}
	g.all(within(t), []*listener{from})
	if g.tally.kept[ReasonVersion] != 5 || g.tally.moved != 0 || !g.parked.IsZero() {
		t.Errorf("%+v, parked %v", g.tally, g.parked)
	}
	g.end()
	talk(t, clients)
}

// isBlocking tells whether the socket itself is in blocking mode, which it shares with every process that has it.
func isBlocking(t *testing.T, c *conn) (yes bool) {
	t.Helper()
	c.control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err != nil {
			t.Error(err)
		}
		yes = flags&unix.O_NONBLOCK == 0
	})
	return yes
}

// Giving leaves the socket in the mode that it was in, and taking does not rely on that: in a process of another language it may have been changed.
func TestAdopted_SocketIsNotBlocking_WhateverItWas(t *testing.T) {
	for _, spoilt := range []bool{false, true} {
		_, c := pair(t, newTestListener(t, Lines()))
		r := mustSeal(t, c)
		if isBlocking(t, c) {
			t.Error("giving has made the socket blocking")
		}
		if spoilt {
			c.control(func(fd uintptr) { unix.SetNonblock(int(fd), false) })
		}
		next := adopted(t, newTestListener(t, Lines()), c, r)
		look(next)
		c.confirm()
		next.open()
		next.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if _, err := next.Read(make([]byte, 1)); !os.IsTimeout(err) || isBlocking(t, next) {
			t.Errorf("spoilt %t: a read with a deadline: %v, blocking %t", spoilt, err, isBlocking(t, next))
		}
	}
}
