package upgrade

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// This file is the taker of PROTOCOL.md. It holds a descriptor of each connection that is offered, lets the app say yes or no to it, and owns
// it with CONFIRM or with the end of the other process.

// verdictTime is how long the app may take to accept or refuse a connection.
const verdictTime = 2 * time.Second

// ReasonSlow is an app that did neither in time.
const ReasonSlow Reason = "slow to accept"

// flushTime is how long receipts wait for others to go along with.
const flushTime = time.Millisecond

// taker takes connections from one channel.
type taker struct {
	ch        *channel
	hooks     Options
	listeners map[string]*listener
	barrier   bool

	mu    sync.Mutex // protects what follows; taken before a conn's
	held  map[uint32]*conn
	moved int
}

// take runs until the giver has sent END or is dead. It closes the channel.
func take(ch *channel, own hello, opt Options, ls []*listener, by time.Time) (*taker, error) {
	t := &taker{ch: ch, hooks: opt, listeners: map[string]*listener{}, held: map[uint32]*conn{}}
	for _, l := range ls {
		t.listeners[l.name] = l
	}
	defer ch.close()
	failpoint("take.greet")
	peer, err := ch.greet(own, by)
	if err != nil {
		opt.opened()
		return t, err
	}
	t.barrier = own.Mode == string(Barrier) || peer.Mode == string(Barrier)
	if !t.barrier {
		opt.opened()
	}
	failpoint("take.begin")
	for {
		f, err := ch.next()
		if err == nil && f.kind == frameEnd {
			t.settle(nil, false)
			return t, nil
		}
		if err == nil {
			err = t.handle(f)
		}
		if err == io.EOF {
			opt.Log("handoff: the release before has ended; its connections are ours")
			t.settle(nil, true)
			opt.opened()
			return t, nil
		}
		if err != nil {
			t.settle(nil, false)
			return t, err
		}
	}
}

// handle acts on a frame. It never writes: while both sides write nobody would read.
func (t *taker) handle(f frame) error {
	switch f.kind {
	case frameFreeze:
		return t.thaw(f.payload)
	case frameOffer:
		return t.offered(f)
	case frameConfirm, frameWithdraw:
		failpoint("take.decided")
		list, err := parseNumbers(f.payload)
		if err != nil {
			return err
		}
		t.settle(list, f.kind == frameConfirm)
		if t.barrier && f.kind == frameConfirm {
			t.hooks.opened()
		}
		return nil
	}
	return fmt.Errorf("%w: frame %d from the giver", errProtocol, f.kind)
}

// thaw gives the app the shared state. The giver waits for the answer.
func (t *taker) thaw(b []byte) error {
	if len(b) < 4 {
		return fmt.Errorf("%w: FREEZE of %d bytes", errProtocol, len(b))
	}
	version, state := binary.BigEndian.Uint32(b), b[4:]
	why := ""
	switch {
	case len(state) == 0 && version == 0:
	case !slices.Contains(t.hooks.States, version):
		why = fmt.Sprintf("version %d of the shared state cannot be read", version)
	case t.hooks.OnThaw == nil:
		why = "there is no OnThaw for the shared state"
	default:
		if err := t.hooks.OnThaw(t.hooks.ctx, version, state); err != nil {
			why = fmt.Sprintf("OnThaw: %v", err)
		}
	}
	t.ch.send(frameThawed, []byte(why))
	return nil
}

// offered reads the records of an OFFER and shows the connections to the app.
func (t *taker) offered(f frame) error {
	failpoint("take.offer")
	if f.cut || len(f.fds) != f.count || f.count == 0 {
		f.closeAll()
		if _, err := io.CopyN(io.Discard, t.ch.sock, int64(f.length)); err != nil {
			return dead(err)
		}
		b := frame{kind: frameNak, first: f.first, count: f.count, payload: []byte(ReasonFiles)}
		go t.ch.sendFull(b, nil)
		return nil
	}
	records, err := t.records(f)
	if err != nil {
		f.closeAll()
		return err
	}
	a := arrivals{t: t, by: time.Now().Add(verdictTime)}
	for i, b := range records {
		a.add(f.first+uint32(i), b, f.fds[i])
	}
	go a.judge()
	return nil
}

// records reads each record into memory of its own: a connection shall not hold those of others.
func (t *taker) records(f frame) ([][]byte, error) {
	list := make([][]byte, 0, f.count)
	left := f.length
	for range f.count {
		var size [4]byte
		if left -= 4; left < 0 {
			return nil, fmt.Errorf("%w: an OFFER is cut short", errProtocol)
		}
		if _, err := io.ReadFull(t.ch.sock, size[:]); err != nil {
			return nil, dead(err)
		}
		n := binary.BigEndian.Uint32(size[:])
		if left -= int(n); left < 0 {
			return nil, fmt.Errorf("%w: a record is longer than its OFFER", errProtocol)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(t.ch.sock, b); err != nil {
			return nil, dead(err)
		}
		list = append(list, b)
	}
	if left != 0 {
		return nil, fmt.Errorf("%w: %d bytes too many in an OFFER", errProtocol, left)
	}
	return list, nil
}

// adopt shows one connection to the app. The descriptor is closed if it cannot.
func (t *taker) adopt(b []byte, fd int) (*conn, Reason) {
	r, err := parseRecord(b)
	why := ReasonRefused
	if err == nil {
		l := t.listeners[r.listener]
		switch {
		case l == nil:
			why = ReasonListener
		case r.stateVersion != 0 && !slices.Contains(t.hooks.States, r.stateVersion):
			why = ReasonVersion
		default:
			if len(b) > 2*len(r.opening)+1024 {
				r.opening = slices.Clone(r.opening) // it lives as long as the connection, and would hold the rest
			}
			c, err := l.adopt(r, fd)
			if err == nil {
				return c, ""
			}
			t.hooks.Log("handoff: %v", err)
			return nil, why
		}
	}
	unix.Close(fd)
	return nil, why
}

// settle makes connections ours, or gives them back; without a list all that are held.
func (t *taker) settle(list []uint32, ours bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(list) == 0 {
		for n := range t.held {
			list = append(list, n)
		}
	}
	for _, n := range list {
		c := t.held[n]
		if c == nil {
			continue
		}
		delete(t.held, n)
		if ours {
			c.open()
			t.moved++
		} else {
			c.abandon()
		}
	}
}

// arrivals are the connections of one OFFER, until the app has said yes or no to each.
type arrivals struct {
	t        *taker
	numbers  []uint32
	conns    []*conn
	receipts []byte
	refusals []byte
	by       time.Time // until when apps may take to read, in barrier mode
}

func (a *arrivals) add(n uint32, record []byte, fd int) {
	c, why := a.t.adopt(record, fd)
	if why != "" {
		a.refusals = appendRefusal(a.refusals, n, why)
		return
	}
	a.t.mu.Lock()
	a.t.held[n] = c
	a.t.mu.Unlock()
	a.numbers, a.conns = append(a.numbers, n), append(a.conns, c)
}

// judge waits for the app's verdicts, and tells the giver: most of them at once, the late ones one by one.
func (a *arrivals) judge() {
	failpoint("take.adopted")
	flush := time.NewTimer(flushTime)
	defer flush.Stop()
	for i, c := range a.conns {
		select {
		case why := <-c.verdict():
			a.verdict(a.numbers[i], c, why)
			continue
		default:
		}
		select {
		case why := <-c.verdict():
			a.verdict(a.numbers[i], c, why)
		case <-flush.C:
			flush.Reset(flushTime)
			a.tell()
			go a.t.late(a.numbers[i], c)
		}
	}
	a.tell()
}

// late waits for one verdict.
func (t *taker) late(n uint32, c *conn) {
	a := arrivals{t: t, by: time.Now().Add(verdictTime)}
	timer := time.NewTimer(verdictTime)
	defer timer.Stop()
	select {
	case why := <-c.verdict():
		a.verdict(n, c, why)
	case <-timer.C:
		a.verdict(n, c, ReasonSlow)
	}
	a.tell()
}

func (a *arrivals) verdict(n uint32, c *conn, why Reason) {
	if why == "" && a.t.barrier && !c.awaitRead(a.by) {
		why = ReasonSlow
	}
	if why == "" {
		a.receipts = binary.BigEndian.AppendUint32(a.receipts, n)
		return
	}
	a.t.mu.Lock()
	held := a.t.held[n] == c // else it was withdrawn, or is ours since the giver is dead
	if held {
		delete(a.t.held, n)
	}
	a.t.mu.Unlock()
	if held {
		c.abandon()
		a.refusals = appendRefusal(a.refusals, n, why)
	}
}

// tell sends what is known. An error is the giver's end, which the reader notices.
func (a *arrivals) tell() {
	if len(a.refusals) > 0 {
		a.t.ch.send(frameRefused, a.refusals)
	}
	if len(a.receipts) > 0 {
		failpoint("take.accepted")
		a.t.ch.send(frameReceipt, a.receipts)
		failpoint("take.receipt")
	}
	a.receipts, a.refusals = nil, nil
}

// awaitRead waits until the app, which has accepted, reads; not beyond by. false: it has not.
func (c *conn) awaitRead(by time.Time) bool {
	limit := instantOf(by)
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.state == answered && !c.arrived && !c.ending && !limit.expired() {
		c.awaitLocked(limit)
	}
	return c.state != answered || c.arrived || c.ending
}
