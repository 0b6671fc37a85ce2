package main

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
)

const handoffs = 10

func TestBroker_TenReleasesAndARollbackUnderTraffic_NobodyNotices(t *testing.T) {
	d := newDaemon(t)
	d.push()
	x := newTraffic(t, d.addr)
	away := x.durable()
	x.start()
	victim := x.join(profile{id: "victim", version: 4, trouble: x.trouble}, "", 0)
	publishRetained(t, d.addr, x.trouble)
	for range handoffs {
		x.beat()
		must(t, d.push(), x.clients)
	}
	x.beat()
	u := d.push(unhealthy)
	if u.Outcome != api.RolledBack {
		t.Fatalf("an unhealthy release: %s", u.Outcome)
	}
	allMoved(t, u.Handoff, x.clients)
	allMoved(t, u.HandedBack, x.clients)
	x.beat()
	x.end()
	for _, p := range away { // before they are back nothing is told to them
		x.comeBack(p)
	}
	checkRetained(t, d.addr, x)
	x.dies(victim, "victim")
	for _, fault := range x.check() {
		t.Error(fault)
	}
	t.Logf("%d messages acknowledged, %d clients, %d faults", x.messages(), x.clients, x.troubles())
}

// durable makes subscribers with sessions that outlive their connections, and lets them leave.
func (x *traffic) durable() (list []profile) {
	x.t.Helper()
	for _, version := range []int{4, 5} {
		p := profile{id: fmt.Sprintf("away-%d", version), version: version, durable: true, trouble: x.trouble, on: func(string, string) {}}
		m := join(x.t, x.addr, p)
		if err := m.subscribe("away/#", 2); err != nil {
			x.t.Fatal(err)
		}
		m.leave()
		list = append(list, p)
	}
	return list
}

// comeBack connects such a subscriber again. What it must get is what was published while it was away.
func (x *traffic) comeBack(p profile) {
	x.t.Helper()
	r := x.reader(p.id, "away/#")
	r.sums = true // mochi does not keep the order of what it has queued within a second
	p.on = func(topic, payload string) { x.got(r, topic, payload) }
	if m := join(x.t, x.addr, p); !m.kept() {
		x.trouble("the session of %s is gone", p.id)
	}
}

func publishRetained(t *testing.T, addr string, trouble func(string, ...any)) {
	t.Helper()
	m := join(t, addr, profile{id: "retainer", version: 5, trouble: trouble})
	for topic, payload := range map[string]string{"kept/1": "one", "kept/2": "two", "kept/3": "three"} {
		if err := m.publish(topic, 1, true, payload); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.publish("kept/3", 1, true, ""); err != nil {
		t.Fatal(err)
	}
	m.leave()
}

func checkRetained(t *testing.T, addr string, x *traffic) {
	t.Helper()
	got := make(chan string, 10)
	m := join(t, addr, profile{id: "newcomer", version: 4, trouble: x.trouble, on: func(topic, payload string) { got <- topic + "=" + payload }})
	if err := m.subscribe("kept/#", 1); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for len(seen) < 2 {
		select {
		case text := <-got:
			seen[text] = true
		case <-time.After(patience):
			t.Fatalf("retained messages: %v", seen)
		}
	}
	if !seen["kept/1=one"] || !seen["kept/2=two"] {
		t.Errorf("retained messages: %v", seen)
	}
}

// A release that cannot be the broker that the old one is must not be one at all: half of the clients would not hear the other half.
func TestBroker_StateThatTheNextReleaseDoesNotTake_NothingMoves(t *testing.T) {
	d := newDaemon(t)
	d.push()
	x := newTraffic(t, d.addr)
	x.start()
	x.beat()
	d.broken = "thaw"
	u := d.push()
	if u.Outcome != api.RolledBack || !errors.Is(u.Error, api.ErrUnhealthy) || u.Handoff.Moved != 0 || u.Handoff.Kept["shared state"] < x.clients {
		t.Errorf("%s: %v, %+v", u.Outcome, u.Error, u.Handoff)
	}
	x.beat()
	d.broken = ""
	must(t, d.push(), x.clients)
	x.beat()
	for _, fault := range x.check() {
		t.Error(fault)
	}
}

// The driver itself is tried: a broker that does one thing wrong must not pass.
func TestBroker_WhatIsBroken_IsFound(t *testing.T) {
	for _, what := range []string{"state", "barrier", "twice"} {
		t.Run(what, func(t *testing.T) {
			d := newDaemon(t)
			d.broken = what
			d.push()
			x := newTraffic(t, d.addr)
			x.patience = 2 * time.Second
			x.start()
			x.beat()
			u := d.push()
			if u.Outcome != api.Done {
				t.Fatalf("%s: %v", u.Outcome, u.Error)
			}
			x.beat()
			faults := x.check()
			if len(faults) == 0 {
				t.Fatalf("nothing was found, in %d messages; %+v", x.messages(), u.Handoff)
			}
			t.Logf("%d faults: %s", x.troubles(), faults[0])
		})
	}
}
