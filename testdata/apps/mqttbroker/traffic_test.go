package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// traffic is publishers and subscribers of both versions and all qualities of service, busy all the time, and what they find wrong.
type traffic struct {
	t        *testing.T
	addr     string
	patience time.Duration // with what must come
	clients  int           // that are connected

	mu      sync.Mutex // protects what follows
	faults  []string
	count   int            // of faults
	acked   map[string]int // by topic: the last number that was acknowledged
	readers []*reader
	dying   string // whose will must be told
	changed chan struct{}

	stop     chan struct{}
	stopOnce sync.Once
	writers  sync.WaitGroup
}

// reader is what one subscriber has seen.
type reader struct {
	id    string
	sums  bool           // the order does not count, only that each number comes once
	last  map[string]int // by topic
	seen  map[string]map[int]bool
	wants func(topic string) bool
}

func (x *traffic) trouble(format string, args ...any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.troubleLocked(format, args...)
}

func (x *traffic) troubleLocked(format string, args ...any) {
	if x.count++; len(x.faults) < 20 {
		x.faults = append(x.faults, fmt.Sprintf(format, args...))
	}
	x.notifyLocked()
}

// troubles is how many there were.
func (x *traffic) troubles() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.count
}

func (x *traffic) notifyLocked() {
	close(x.changed)
	x.changed = make(chan struct{})
}

// topicsPer is how many topics each publisher writes to at the same time, for each quality.
const topicsPer = 2

// pace is how long a publisher waits between two messages of a topic.
const pace = 10 * time.Millisecond

func newTraffic(t *testing.T, addr string) *traffic {
	x := &traffic{t: t, addr: addr, patience: patience, acked: map[string]int{}, changed: make(chan struct{}), stop: make(chan struct{})}
	t.Cleanup(x.end) // after the clients have left
	return x
}

// start connects everybody.
func (x *traffic) start() {
	x.t.Helper()
	x.read("live/#", 2, profile{id: "reader-3", version: 4})
	x.read("live/#", 2, profile{id: "reader-5", version: 5})
	x.read("live/#", 2, profile{id: "alias-5", version: 5, aliases: true})
	x.read("live/#", 1, profile{id: "late-3", version: 4, slow: true})
	x.read("live/#", 2, profile{id: "late-5", version: 5, slow: true, aliases: true})
	x.join(profile{id: "watcher", version: 5, on: x.will, trouble: x.trouble, patience: x.patience}, "wills/#", 1)
	for _, version := range []int{4, 5} {
		w := x.join(profile{id: fmt.Sprintf("writer-%d", version), version: version, trouble: x.trouble, patience: x.patience}, "", 0)
		for qos := range byte(3) {
			for n := range topicsPer {
				topic := fmt.Sprintf("live/%d/%d/%d", version, qos, n)
				x.writers.Go(func() { x.write(w, topic, qos) })
			}
		}
		x.writers.Go(func() { x.write(w, fmt.Sprintf("away/%d/1", version), 1) })
		x.writers.Go(func() { x.write(w, fmt.Sprintf("away/%d/2", version), 2) })
		x.writers.Go(func() { x.visit(version) })
	}
}

const visitors = "visitors"

// visit is many clients, one after the other, that connect, say one thing and leave: also while connections move.
func (x *traffic) visit(version int) {
	topic := fmt.Sprintf("live/%d/1/"+visitors, version)
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := 1; ; n++ {
		m, err := tryJoin(x.addr, profile{id: fmt.Sprintf("visitor-%d-%d", version, n), version: version, trouble: x.trouble, patience: x.patience})
		if err == nil {
			err = m.publish(topic, 1, false, fmt.Sprint(n))
			m.leave()
		}
		if err != nil {
			x.trouble("visit %d of %s: %v", n, topic, err)
			return
		}
		if !x.goOn(topic, n, tick) {
			return
		}
	}
}

// will gets those of clients that have gone: of nobody, unless the test is waiting for one.
func (x *traffic) will(topic, _ string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if topic != x.dying {
		x.troubleLocked("a will was told: %s", topic)
	}
	x.dying = ""
	x.notifyLocked()
}

// dies ends a client without a goodbye, whose will must be told, once.
func (x *traffic) dies(m member, id string) {
	x.t.Helper()
	x.mu.Lock()
	x.dying = "wills/" + id
	x.mu.Unlock()
	m.vanish()
	timeout := time.After(x.patience)
	for {
		x.mu.Lock()
		waits, changed := x.dying != "", x.changed
		x.mu.Unlock()
		if !waits {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			x.trouble("the will of %s was not told", id)
			return
		}
	}
}

// goOn notes that n is acknowledged, and waits for the next tick. false: it was the last one.
func (x *traffic) goOn(topic string, n int, tick *time.Ticker) bool {
	x.mu.Lock()
	x.acked[topic] = n
	x.mu.Unlock()
	select {
	case <-tick.C:
		return true
	case <-x.stop:
		return false
	}
}

// join connects one more client that stays.
func (x *traffic) join(p profile, filter string, qos byte) member {
	x.t.Helper()
	m := join(x.t, x.addr, p)
	if filter != "" {
		if err := m.subscribe(filter, qos); err != nil {
			x.t.Fatalf("client %s: %v", p.id, err)
		}
	}
	x.clients++
	return m
}

// read starts a subscriber.
func (x *traffic) read(filter string, qos byte, p profile) {
	x.t.Helper()
	r := x.reader(p.id, filter)
	p.on, p.trouble, p.patience = func(topic, payload string) { x.got(r, topic, payload) }, x.trouble, x.patience
	x.join(p, filter, qos)
}

func (x *traffic) reader(id, filter string) *reader {
	prefix := strings.TrimSuffix(filter, "#")
	r := &reader{id: id, last: map[string]int{}, seen: map[string]map[int]bool{}, wants: func(topic string) bool { return strings.HasPrefix(topic, prefix) }}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.readers = append(x.readers, r)
	return r
}

// got checks a message: each topic's are numbered from 1 on.
func (x *traffic) got(r *reader, topic, payload string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	number, _, _ := strings.Cut(payload, " ")
	n, err := strconv.Atoi(number)
	switch {
	case err != nil || !r.wants(topic):
		x.troubleLocked("%s got %q of %s", r.id, payload, topic)
	case r.sums || strings.HasSuffix(topic, visitors): // of several clients: mochi acknowledges a message before it passes it on
		x.tallyLocked(r, topic, n)
	case n <= r.last[topic]:
		x.troubleLocked("%s got %d of %s after %d: doubled", r.id, n, topic, r.last[topic])
	case n > r.last[topic]+1:
		x.troubleLocked("%s got %d of %s after %d: lost", r.id, n, topic, r.last[topic])
		r.last[topic] = n
	default:
		r.last[topic] = n
	}
	x.notifyLocked()
}

func (x *traffic) tallyLocked(r *reader, topic string, n int) {
	if r.seen[topic] == nil {
		r.seen[topic] = map[int]bool{}
	}
	if r.seen[topic][n] {
		x.troubleLocked("%s got %d of %s twice", r.id, n, topic)
	}
	r.seen[topic][n] = true
	for r.seen[topic][r.last[topic]+1] {
		r.last[topic]++
	}
}

// padding makes some messages longer than mochi's buffers, and than what one write takes.
var padding = strings.Repeat("x", 5000)

// write publishes until the end, each message when the one before is acknowledged.
func (x *traffic) write(w member, topic string, qos byte) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := 1; ; n++ {
		text := fmt.Sprint(n)
		if strings.HasPrefix(topic, "live/") {
			text += " " + padding[:n*37%len(padding)]
		}
		if err := w.publish(topic, qos, false, text); err != nil {
			x.trouble("publish %d of %s: %v", n, topic, err)
			return
		}
		if !x.goOn(topic, n, tick) {
			return
		}
	}
}

// end stops the publishers.
func (x *traffic) end() {
	x.stopOnce.Do(func() { close(x.stop) })
	x.writers.Wait()
}

// check waits until every reader has everything that was acknowledged, or something is wrong.
func (x *traffic) check() []string {
	x.stopOnce.Do(func() { close(x.stop) })
	timeout := time.After(x.patience)
	for {
		x.mu.Lock()
		missing, changed := x.missingLocked(), x.changed
		faults := append([]string(nil), x.faults...)
		x.mu.Unlock()
		if len(faults) > 0 {
			return faults
		}
		if len(missing) == 0 && x.over() {
			return nil
		}
		select {
		case <-changed:
		case <-timeout:
			return missing
		}
	}
}

// over says that the writers have returned.
func (x *traffic) over() bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.writers.Wait()
	}()
	select {
	case <-done:
		return true
	case <-time.After(10 * time.Millisecond):
		return false
	}
}

func (x *traffic) missingLocked() (missing []string) {
	for _, r := range x.readers {
		for topic, n := range x.acked {
			if r.wants(topic) && r.last[topic] < n {
				missing = append(missing, fmt.Sprintf("%s has %d of the %d acknowledged messages of %s", r.id, r.last[topic], n, topic))
			}
		}
	}
	return missing
}

// beat waits until every reader has come some messages further, or something is wrong: so much traffic is between two handoffs at least.
func (x *traffic) beat() {
	x.t.Helper()
	x.mu.Lock()
	goals := map[string]int{}
	for topic, n := range x.acked {
		goals[topic] = n + 3
	}
	x.mu.Unlock()
	timeout := time.After(x.patience)
	for {
		x.mu.Lock()
		behind, changed, faults := x.behindLocked(goals), x.changed, x.count
		x.mu.Unlock()
		if behind == "" || faults > 0 {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			x.trouble("nothing goes on: %s", behind)
			return
		}
	}
}

func (x *traffic) behindLocked(goals map[string]int) string {
	for _, r := range x.readers {
		for topic, n := range goals {
			if r.wants(topic) && !r.sums && r.last[topic] < n {
				return fmt.Sprintf("%s is at %d of %s, not at %d", r.id, r.last[topic], topic, n)
			}
		}
	}
	return ""
}

func (x *traffic) messages() (n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, acked := range x.acked {
		n += acked
	}
	return n
}
