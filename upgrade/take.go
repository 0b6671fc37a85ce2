package upgrade

import (
	"context"
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

// verdictTime is how long the app may take to accept or refuse a connection, and verdictTicks in how many looks that is counted: a process that
// stands still for a while has not given its app that time.
const (
	verdictTime  = 2 * time.Second
	verdictTicks = 16
)

// ReasonSlow is an app that did neither in time.
const ReasonSlow Reason = "slow to accept"

// taker takes connections from one channel.
type taker struct {
	ch        *channel
	hooks     Options
	listeners map[string]*listener
	barrier   bool
	parser    recordParser
	buf       []byte // payload of the OFFER under way; the reader's
	verdicts  batcher[verdict]
	offers    chan struct{} // has room for one; tells hurry
	version   int           // of the protocol, that both speak
	owning    sync.WaitGroup

	mu    sync.Mutex // protects what follows; taken before a conn's
	held  map[uint32]*heldConn
	waits int // held and not judged
	ticks int // how often hurry has looked
	moved int
}

// heldConn is a connection that is offered and not decided on. Whoever takes it out of the map decides about it.
type heldConn struct {
	c       *conn
	offered int // at which look of hurry
	judged  bool
}

// take runs until the giver has sent END or is dead. It closes the channel.
func take(ch *channel, own hello, opt Options, ls []*listener, by time.Time) (*taker, error) {
	t := &taker{ch: ch, hooks: opt, listeners: map[string]*listener{}, held: map[uint32]*heldConn{}}
	t.verdicts.init()
	t.offers = make(chan struct{}, 1)
	for _, l := range ls {
		t.listeners[l.name] = l
	}
	defer func() {
		t.owning.Wait()
		ch.close()
	}()
	failpoint("take.greet")
	peer, err := ch.greet(own, by)
	if err != nil {
		opt.opened()
		return t, err
	}
	t.version = speak(peer, own)
	t.barrier = own.Mode == string(Barrier) || peer.Mode == string(Barrier)
	if !t.barrier {
		opt.opened()
	}
	failpoint("take.begin")
	ctx, cancel := context.WithCancel(opt.ctx)
	defer cancel()
	go t.tellAll(ctx)
	go t.hurry(ctx)
	for {
		f, err := ch.next()
		if err == nil && f.kind == frameEnd {
			t.settle(nil, false, true)
			return t, nil
		}
		if err == nil {
			err = t.handle(f)
		}
		if err == io.EOF {
			opt.Log("handoff: the release before has ended; its connections are ours")
			t.settle(nil, true, true)
			opt.opened()
			return t, nil
		}
		if err != nil {
			t.settle(nil, false, true)
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
		t.settle(list, f.kind == frameConfirm, f.kind == frameWithdraw)
		if t.barrier && f.kind == frameConfirm && t.version < ownedVersion {
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
	failpoint("take.thaw")
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
	failpoint("take.thawed")
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
	return t.show(f)
}

// show reads the records of an OFFER and gives the connections to their listeners, which wake once.
func (t *taker) show(f frame) error {
	records, err := t.records(f)
	if err != nil {
		f.closeAll()
		return err
	}
	t.verdicts.expect(len(records))
	conns := make([]*conn, 0, len(records))
	for i, b := range records {
		n := f.first + uint32(i)
		c, why := t.adopt(n, b, f.fds[i])
		if why != "" {
			t.verdicts.add(verdict{n, nil, why})
			continue
		}
		conns = append(conns, c)
		t.mu.Lock()
		t.held[n] = &heldConn{c: c, offered: t.ticks}
		t.waits++
		t.mu.Unlock()
	}
	select {
	case t.offers <- struct{}{}:
	default:
	}
	failpoint("take.adopted")
	deliver(conns)
	for _, c := range conns {
		c.leaveRetired()
	}
	return nil
}

// keepBuffer is up to what size the buffer of an OFFER is used again.
const keepBuffer = 1 << 20

// records reads the payload of an OFFER and finds the records in it. They are in memory that the next OFFER overwrites.
func (t *taker) records(f frame) ([][]byte, error) {
	if cap(t.buf) < f.length || cap(t.buf) > keepBuffer {
		t.buf = make([]byte, max(f.length, 64<<10))
	}
	b := t.buf[:f.length]
	if _, err := io.ReadFull(t.ch.sock, b); err != nil {
		return nil, dead(err)
	}
	list := make([][]byte, 0, f.count)
	for range f.count {
		if len(b) < 4 || uint64(len(b)-4) < uint64(binary.BigEndian.Uint32(b)) {
			return nil, fmt.Errorf("%w: a record is longer than its OFFER", errProtocol)
		}
		n := 4 + int(binary.BigEndian.Uint32(b))
		list = append(list, b[4:n])
		b = b[n:]
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%w: %d bytes too many in an OFFER", errProtocol, len(b))
	}
	return list, nil
}

// adopt makes a connection, that the app does not know yet. The descriptor is closed if that cannot be.
func (t *taker) adopt(n uint32, b []byte, fd int) (*conn, Reason) {
	p := &replay{by: t, number: n}
	why := ReasonRefused
	r := &p.room
	p.record = r
	if err := t.parser.parse(r, b); err == nil {
		l := t.listeners[r.listener]
		switch {
		case l == nil:
			why = ReasonListener
		case r.stateVersion != 0 && !slices.Contains(t.hooks.States, r.stateVersion):
			why = ReasonVersion
		default:
			r.own()
			c, err := l.makeAdopted(p, fd)
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

// settle makes connections ours, or gives them back; without a list all that are held, or only those that our app has accepted.
func (t *taker) settle(list []uint32, ours, all bool) {
	numbers, conns := t.claim(list, ours, all)
	switch {
	case !ours:
		abandon(conns)
	case all || t.version < ownedVersion: // the giver is dead, or does not wait for a word
		open(conns)
	default:
		t.owning.Go(func() { t.own(numbers, conns) })
	}
}

func open(conns []*conn) {
	for _, c := range conns {
		c.open()
	}
}

func abandon(conns []*conn) {
	for _, c := range conns {
		c.abandon()
	}
}

// own tells the giver that connections are ours, and only then makes them so: if we die before, they live on over there. If that
// cannot be told, it is not true.
func (t *taker) own(numbers []uint32, conns []*conn) {
	failpoint("take.owned")
	err := t.ch.send(frameOwned, appendNumbers(nil, numbers))
	if err != nil && dead(err) != io.EOF {
		t.hooks.Log("handoff: the release before does not read: %v", err)
		abandon(conns)
		t.ch.close()
		return
	}
	open(conns)
	if t.barrier {
		t.hooks.opened()
	}
}

func (t *taker) claim(list []uint32, ours, all bool) (numbers []uint32, conns []*conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(list) == 0 {
		for n, h := range t.held {
			if all || h.judged {
				list = append(list, n)
			}
		}
	}
	for _, n := range list {
		if h := t.held[n]; h != nil {
			t.dropLocked(n, h)
			numbers, conns = append(numbers, n), append(conns, h.c)
		}
	}
	if ours {
		t.moved += len(conns)
	}
	return numbers, conns
}

func (t *taker) dropLocked(n uint32, h *heldConn) {
	delete(t.held, n)
	t.judgeLocked(h)
}

func (t *taker) judgeLocked(h *heldConn) {
	if !h.judged {
		h.judged = true
		t.waits--
	}
}

type verdict struct {
	n   uint32
	c   *conn  // nil: it never came to one
	why Reason // empty: accepted
}

// judged is called by a connection, with its lock held, when its app has said yes or no.
func (t *taker) judged(n uint32, c *conn, why Reason) { t.verdicts.add(verdict{n, c, why}) }

// tellAll tells the giver what the app says, until ctx ends.
func (t *taker) tellAll(ctx context.Context) {
	var list []verdict
	for {
		if list = t.verdicts.next(ctx, list); list == nil {
			return
		}
		t.tell(list)
	}
}

// hurry makes the verdicts of an app that does not come to one, until ctx ends.
func (t *taker) hurry(ctx context.Context) {
	for {
		select {
		case <-t.offers:
		case <-ctx.Done():
			return
		}
		for waits := true; waits; {
			select {
			case <-time.After(verdictTime / verdictTicks):
			case <-ctx.Done():
				return
			}
			t.tell(t.overdue())
			t.mu.Lock()
			waits = t.waits > 0
			t.mu.Unlock()
		}
	}
}

// overdue are the verdicts that are made for the app.
func (t *taker) overdue() (list []verdict) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ticks++
	for n, h := range t.held {
		if !h.judged && t.ticks-h.offered > verdictTicks {
			list = append(list, verdict{n, h.c, ReasonSlow})
		}
	}
	return list
}

// tell sends verdicts. An error is the giver's end, which the reader notices.
func (t *taker) tell(list []verdict) {
	var receipts, refusals []byte
	var gone []*conn
	t.mu.Lock()
	for _, v := range list {
		h := t.held[v.n]
		switch {
		case v.c == nil:
			refusals = appendRefusal(refusals, v.n, v.why)
		case h == nil || h.c != v.c || h.judged: // it was withdrawn, or is ours since the giver is dead
		case v.why == "":
			t.judgeLocked(h)
			receipts = binary.BigEndian.AppendUint32(receipts, v.n)
		default:
			t.dropLocked(v.n, h)
			gone = append(gone, v.c)
			refusals = appendRefusal(refusals, v.n, v.why)
		}
	}
	t.mu.Unlock()
	for _, c := range gone {
		c.abandon()
	}
	if len(refusals) > 0 {
		failpoint("take.refused")
		t.ch.send(frameRefused, refusals)
	}
	if len(receipts) > 0 {
		failpoint("take.accepted")
		t.ch.send(frameReceipt, receipts)
		failpoint("take.receipt")
	}
}
