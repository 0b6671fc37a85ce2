package upgrade

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// This file is the giver of PROTOCOL.md: it carries sealed connections to the other process. It owns each of them from seal to confirm or
// resume: give_offer.go sends them, give_verdict.go is what the taker says to that.

// How many connections pause at a time in rolling mode: few enough that the longest pause stays short, whatever the machine and the apps make of
// it, and enough to keep both processes busy.
const (
	atOnceLeast = 16
	atOnceFirst = 48
	atOnceMost  = 256
	pauseGoal   = 8 * time.Millisecond
)

// endTime is how long the end of a channel is waited for.
const endTime = time.Second

// busyCheck is after how long a connection that the giver waits for is no longer taken for one that pauses.
const busyCheck = 2 * time.Millisecond

// Reasons that only a giver finds.
const (
	ReasonListener Reason = "listener gone"       // the next release does not listen there, or speaks another protocol
	ReasonVersion  Reason = "state version"       // the next release does not list the version of the session's state
	ReasonPeer     Reason = "next release ended"  // it ended before the connection was its own
	ReasonFiles    Reason = "too many open files" // the next release is at its limit
	ReasonLate     Reason = "too late"            // the time for the handoff was over
)

// sealedConn is a connection between seal and confirm or resume.
type sealedConn struct {
	c        *conn
	o        offer
	r        *record // when it is packed
	slot     bool    // counts among atOnce
	receipt  bool    // barrier: accepted, waits for the others
	refused  Reason
	judged   bool
	begun    time.Time
	asked    int         // since which look of watch the taker owes an answer
	failed   bool        // its state could not be saved
	handed   atomic.Bool // to the sender, which will see to it
	counted  bool        // among those that stay
	stranded bool        // a frame about it could not be written whole: only the end of file decides
}

// giver gives away the connections of some listeners, until end or the end of the other process.
type giver struct {
	ch    *channel
	own   hello
	peer  hello
	hooks Options

	version int // of the protocol, that both speak

	ctx    context.Context // ends with the giver
	cancel context.CancelFunc
	read   chan struct{} // closed when the reader has ended
	sent   chan struct{} // closed when the sender has ended
	thawed chan string
	inbox  batcher[*sealedConn]
	sealed []*sealedConn // packed and not offered; the sender's
	buf    []byte        // for an OFFER; the sender's

	mu       sync.Mutex // protects what follows; taken before a conn's
	frozen   bool       // it was tried
	sides    bool       // they have changed
	parked   time.Time  // since when all of them pause
	changed  chan struct{}
	tried    map[*conn]bool
	sealing  map[*sealedConn]bool // begun, and neither sealed nor staying, as far as the sender knows
	pending  numbered
	owed     map[uint32]*sealedConn // confirmed, and the taker has not said that it owns them
	open     int                    // begun and neither moved nor back
	pausing  int                    // of them in a slot
	atOnce   int                    // how many may be
	unjudged int
	ticks    int    // how often watch has looked
	broken   Reason // why nothing more is offered
	off      bool   // it was called off
	lingers  bool   // it gives without a limit in time
	hangs    bool
	barrier  bool // nobody changes sides before all do; after that, late ones move one by one
	tally    tally
}

// tally is what came of a handoff.
type tally struct {
	moved, refused int // refused are among the kept
	kept           map[Reason]int
	longest        time.Duration
}

// newGiver greets the other side.
func newGiver(ch *channel, own hello, opt Options, by time.Time) (*giver, error) {
	failpoint("give.greet")
	peer, err := ch.greet(own, by)
	version := 0
	if err == nil {
		if version = speak(own, peer); version == 0 {
			err = errVersions
		}
	}
	if err != nil {
		ch.send(frameEnd, nil)
		ch.close()
		return nil, err
	}
	g := &giver{ch: ch, own: own, peer: peer, hooks: opt, barrier: own.Mode == string(Barrier) || peer.Mode == string(Barrier),
		read: make(chan struct{}), sent: make(chan struct{}), thawed: make(chan string, 1),
		tried: map[*conn]bool{}, sealing: map[*sealedConn]bool{}, owed: map[uint32]*sealedConn{}, version: version, atOnce: atOnceFirst, tally: tally{kept: map[Reason]int{}}}
	g.inbox.init()
	g.ctx, g.cancel = context.WithCancel(context.Background())
	go g.receive()
	go g.transmit()
	go g.watch()
	return g, nil
}

// all gives what the listeners have, until ctx ends. Each connection that is busy is waited for as long as the app's options say.
func (g *giver) all(ctx context.Context, ls []*listener) {
	failpoint("give.begin")
	if g.barrier {
		g.allAtOnce(ctx, ls)
	} else {
		g.rolling(ctx, ls)
	}
	settled := func() bool { return g.open == 0 || g.hangs && g.open == g.pending.n+len(g.owed) } // what is left then only the end of who hangs can settle
	if g.await(ctx, settled) != nil {
		g.recall(ctx)
		g.withdraw(ReasonLate)
		brief, cancel := context.WithTimeout(context.WithoutCancel(ctx), backTime)
		defer cancel()
		g.await(brief, settled)
	}
}

// backTime is how long the report waits for what is on its way back: they shall be counted.
const backTime = 100 * time.Millisecond

// rolling tries each connection once. Rounds, since one may have been accepted while the last began.
func (g *giver) rolling(ctx context.Context, ls []*listener) {
	for {
		list := g.untried(ls)
		if len(list) == 0 {
			return
		}
		for len(list) > 0 {
			n := g.slots(ctx, len(list))
			if n == 0 {
				g.count(ReasonLate, len(list))
				break
			}
			g.begin(list[:n], true)
			list = list[n:]
		}
		g.patiently(ctx, g.finish) // from the last one on
	}
}

// patiently waits for apps no longer than they say.
func (g *giver) patiently(ctx context.Context, wait func(context.Context)) {
	limited, cancel := context.WithTimeout(ctx, g.hooks.Patience)
	defer cancel()
	wait(limited)
}

// finish waits for the busy ones, and lets them be when ctx ends.
func (g *giver) finish(ctx context.Context) {
	if g.await(ctx, func() bool { return len(g.sealing) == 0 }) != nil {
		g.recall(ctx)
	}
}

// recall ends the attempts whose connections are not sealed, since ctx has ended.
func (g *giver) recall(ctx context.Context) {
	g.mu.Lock()
	g.off = context.Cause(ctx) == errCalledOff
	list := make([]*sealedConn, 0, len(g.sealing))
	for s := range g.sealing {
		list = append(list, s)
	}
	g.mu.Unlock()
	for _, s := range list {
		s.o.withdraw()
	}
	brief, cancel := context.WithTimeout(g.ctx, backTime)
	defer cancel()
	g.await(brief, func() bool { return len(g.sealing) == 0 })
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.sealing {
		if !s.handed.Load() { // the app is still saving its state: it goes on here when that is done
			delete(g.sealing, s)
			g.keptLocked(s, ReasonState)
		}
	}
	g.notifyLocked()
}

// untried returns connections that were not tried, and may be.
func (g *giver) untried(ls []*listener) (list []*conn) {
	for _, l := range ls {
		for _, c := range l.conns() {
			g.mu.Lock()
			tried := g.tried[c]
			g.tried[c] = true
			g.mu.Unlock()
			if tried {
				continue
			}
			if why := g.keeps(c); why != "" {
				g.count(why, 1)
				continue
			}
			list = append(list, c)
		}
	}
	return list
}

// keeps says why c cannot go to this peer, before it is disturbed.
func (g *giver) keeps(c *conn) Reason {
	g.mu.Lock()
	broken := g.broken
	g.mu.Unlock()
	switch {
	case broken != "":
		return broken
	case g.peer.Listeners[c.listener.name] != c.listener.protocol.name:
		return ReasonListener
	}
	if v := c.stateVersion(); v != 0 && !slices.Contains(g.peer.States, v) {
		return ReasonVersion
	}
	return ""
}

// stateVersion is that of the state that would travel with c.
func (c *conn) stateVersion() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s := c.session; {
	case s == nil:
		return 0
	case s.save != nil:
		return s.saveVersion
	default:
		return s.version
	}
}

// slots waits until some more connections may pause, and returns how many of n; none: the time is over. Those that are not told yet, because they are
// busy, do not count.
func (g *giver) slots(ctx context.Context, n int) int {
	tick := time.NewTimer(busyCheck)
	defer tick.Stop()
	for {
		g.mu.Lock()
		some := min(n, g.atOnce/4) // at a time: each of them alone would wake everybody
		if free := min(n, g.atOnce-g.pausing); free >= some {
			g.pausing += free
			g.mu.Unlock()
			return free
		}
		changed := g.changesLocked()
		g.mu.Unlock()
		select {
		case <-changed:
		case <-tick.C:
			tick.Reset(busyCheck)
			g.freeBusy()
		case <-ctx.Done():
			return 0
		}
	}
}

func (g *giver) freeBusy() {
	g.mu.Lock()
	defer g.mu.Unlock()
	late := time.Now().Add(-lateTime)
	for s := range g.sealing {
		if s.slot && s.c.waits(s.begun.Before(late)) {
			g.freeLocked(s)
		}
	}
}

func (g *giver) freeLocked(s *sealedConn) {
	if s.slot {
		s.slot = false
		g.pausing--
		g.notifyLocked()
	}
}

// waits says that the app was not told yet, and will not be in this moment: it is busy, or has had enough time to come to a Read.
func (c *conn) waits(late bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state {
	case told, sealed:
		return false
	case running:
		return late || c.in.lost || c.codec.busy(wholeRead)
	}
	return true
}

// wholeRead is a Read that is none of net/http's watching.
const wholeRead = 4096

// lateTime is after how long an app that has not come to a Read is not about to.
const lateTime = 50 * time.Millisecond

// begin wakes the apps of some connections. Each is offered when its app has let go of it.
func (g *giver) begin(list []*conn, slot bool) {
	batch := make([]sealedConn, len(list))
	now := time.Now()
	g.mu.Lock()
	for i, c := range list {
		s := &batch[i]
		s.c, s.slot, s.begun = c, slot, now
		s.o = offer{conn: c, giver: g, sealed: s}
		g.sealing[s] = true
	}
	g.open += len(list)
	g.mu.Unlock()
	g.inbox.expect(len(list))
	for i, c := range list {
		c.beginWith(&batch[i].o)
	}
}

// settled is called by a connection, with its lock held, when it is sealed or stays.
func (g *giver) settled(s *sealedConn) {
	if s.o.why == "" && s.c.session != nil && s.c.session.save != nil {
		go g.pack(s) // what the app does there may take its time
		return
	}
	g.hand(s)
}

// pack lets the app save the state of a connection.
func (g *giver) pack(s *sealedConn) {
	r, err := s.c.pack()
	if s.r = r; err != nil {
		g.hooks.Log("handoff: %v", err)
		s.failed = true
	}
	failpoint("give.sealed")
	g.hand(s)
}

// hand passes a connection to the sender.
func (g *giver) hand(s *sealedConn) {
	s.handed.Store(true)
	if !g.inbox.add(s) {
		go g.takeUp([]*sealedConn{s})
	}
}

// takeUp is for those that come too late to be offered.
func (g *giver) takeUp(list []*sealedConn) {
	for _, s := range g.sort(list) {
		g.back(s, g.why())
	}
}

// tryAgain gives a connection when its client has taken what was too much. It ends with the connection, or with the giver.
func (g *giver) tryAgain(c *conn) {
	if c.awaitRoom(g.ctx) {
		g.begin([]*conn{c}, false)
	}
}

// awaitRoom waits until nothing is unsent. false: the connection has ended, or ctx has.
func (c *conn) awaitRoom(ctx context.Context) bool {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.notifyLocked()
	})
	defer stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.state == running && (c.flushing || len(c.tail) > MaxUnsent) && ctx.Err() == nil {
		c.awaitLocked(0)
	}
	return c.state == running && ctx.Err() == nil
}

// linger goes on giving without a limit in time: what was busy may come to rest, and a slow client take what it has coming. It ends with the giver.
func (g *giver) linger(ls []*listener) {
	g.mu.Lock()
	g.lingers = true
	g.mu.Unlock()
	var list []*conn
	for _, l := range ls {
		for _, c := range l.conns() {
			if g.keeps(c) == "" {
				list = append(list, c)
			}
		}
	}
	g.begin(list, false)
}

func (g *giver) count(why Reason, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tally.kept[why] += n
}

// alive says that more can be given. After a barrier that came to nothing it cannot: the shared state is here.
func (g *giver) alive() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.broken == "" && g.ctx.Err() == nil && !g.barrier
}

// await waits until what holds; it is asked with the lock.
func (g *giver) await(ctx context.Context, what func() bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !what() {
		changed := g.changesLocked()
		g.mu.Unlock()
		select {
		case <-changed:
			g.mu.Lock()
		case <-ctx.Done():
			g.mu.Lock()
			return ctx.Err()
		}
	}
	return nil
}

func (g *giver) changesLocked() <-chan struct{} {
	if g.changed == nil {
		g.changed = make(chan struct{})
	}
	return g.changed
}

func (g *giver) notifyLocked() {
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}
