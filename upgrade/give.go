package upgrade

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// This file is the giver of PROTOCOL.md: it carries sealed connections to the other process. It owns each of them from seal to confirm or
// resume; claim is what makes sure that each gets exactly one of the two.

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
	offered  time.Time
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
		limited, cancel := context.WithTimeout(ctx, g.hooks.Patience) // from the last one on
		g.finish(limited)
		cancel()
	}
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

// transmit sends what is sealed, as much at a time as there is. It ends with the giver.
func (g *giver) transmit() {
	defer close(g.sent)
	var list []*sealedConn
	for {
		if list = g.inbox.next(g.ctx, list); list == nil {
			g.takeUp(g.inbox.end())
			return
		}
		for g.sealed = g.sort(list); len(g.sealed) > 0; {
			g.offer(g.batch())
		}
	}
}

// sort returns what can be offered.
func (g *giver) sort(list []*sealedConn) (ready []*sealedConn) {
	g.mu.Lock()
	for _, s := range list {
		delete(g.sealing, s)
		if s.o.why != "" {
			g.keptLocked(s, g.trueLocked(s.o.why))
			if s.o.why == ReasonUnsent && g.lingers {
				go g.tryAgain(s.c)
			}
		} else if s.counted { // it came too late, and stays
			s.failed = true
		}
	}
	g.notifyLocked()
	g.mu.Unlock()
	for _, s := range list {
		switch {
		case s.o.why != "":
		case s.failed:
			g.back(s, ReasonState)
		case s.r == nil:
			s.r, _ = s.c.pack()
			failpoint("give.sealed")
			fallthrough
		default:
			ready = append(ready, s)
		}
	}
	return ready
}

// trueLocked is why a connection stays: perhaps it was given no time, since there is nobody to give it to any more.
func (g *giver) trueLocked(why Reason) Reason {
	switch why {
	case ReasonStuck, ReasonBusy, ReasonUnsettled:
		if g.off {
			return ReasonLate
		}
		if g.broken != "" {
			return g.broken
		}
	}
	return why
}

// keptLocked counts one that stays.
func (g *giver) keptLocked(s *sealedConn, why Reason) {
	if s.counted {
		return
	}
	s.counted = true
	g.tally.kept[why]++
	g.freeLocked(s)
	g.open--
}

// hungTime is after how long without a verdict the other process must be hanging: it refuses by itself what takes longer than verdictTime.
const hungTime = verdictTime + time.Second

// watch takes everything back when the other side does not answer. It ends with the giver.
func (g *giver) watch() {
	tick := time.NewTicker(hungTime / 10)
	defer tick.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case now := <-tick.C:
			if g.overdue(now.Add(-hungTime)) {
				g.withdraw(ReasonPeer)
				g.mu.Lock()
				g.notifyLocked()
				g.mu.Unlock()
				return
			}
		}
	}
}

func (g *giver) overdue(before time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.pending.list {
		if s != nil && !s.judged && s.offered.Before(before) {
			g.hangs = true
			return true
		}
	}
	for _, s := range g.owed {
		if s.offered.Before(before) {
			g.hangs = true
			return true
		}
	}
	return false
}

func (g *giver) why() Reason {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.broken == "" {
		return ReasonLate
	}
	return g.broken
}

// batch takes some of what is sealed by now.
func (g *giver) batch() []*sealedConn {
	n := 0
	for size := 0; n < len(g.sealed) && n < maxBatch && size < batchBytes; n++ {
		size += g.sealed[n].r.size()
	}
	batch := g.sealed[:n]
	if g.sealed = g.sealed[n:]; len(g.sealed) == 0 {
		g.sealed = nil
	}
	return batch
}

// offer sends one OFFER.
func (g *giver) offer(batch []*sealedConn) {
	f, ok := g.number(batch)
	if !ok {
		for _, s := range batch {
			g.back(s, g.why())
		}
		return
	}
	fds := make([]int, 0, len(batch))
	err := lend(batch, fds, func(fds []int) error { return g.ch.sendFull(f, unix.UnixRights(fds...)) })
	var unsent unsentError
	switch {
	case errors.As(err, &unsent):
		why := ReasonPeer
		if errors.Is(err, unix.ETOOMANYREFS) {
			why = ReasonFiles
		}
		g.takeBack(f, why)
	case err != nil:
		g.fail(err, f.first, len(batch)) // the taker's end decides
	}
	failpoint("give.offered")
}

// number waits for room and makes the frame. false: nothing more is offered.
func (g *giver) number(batch []*sealedConn) (frame, bool) {
	f := frame{kind: frameOffer, count: len(batch), payload: g.buf[:0]}
	for _, s := range batch {
		at := len(f.payload)
		f.payload = s.r.append(append(f.payload, 0, 0, 0, 0))
		binary.BigEndian.PutUint32(f.payload[at:], uint32(len(f.payload)-at-4))
	}
	if g.buf = f.payload; cap(g.buf) > keepBuffer {
		g.buf = nil
	}
	g.await(g.ctx, func() bool { return g.broken != "" || g.unjudged+len(batch) <= maxUnjudged })
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.broken != "" || g.ctx.Err() != nil {
		return f, false
	}
	f.first = g.pending.next()
	now := time.Now()
	for _, s := range batch {
		s.offered = now
		g.pending.add(s)
	}
	g.unjudged += len(batch)
	return f, true
}

// lend calls use with all descriptors, which stay open meanwhile.
func lend(batch []*sealedConn, fds []int, use func([]int) error) error {
	if len(batch) == 0 {
		return use(fds)
	}
	var inner error
	if err := batch[0].c.control(func(fd uintptr) { inner = lend(batch[1:], append(fds, int(fd)), use) }); err != nil {
		return err
	}
	return inner
}

// fail notes that a frame could not be written whole: of the connections in it, only the other side's end tells whose they are.
func (g *giver) fail(err error, first uint32, count int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.broken == "" {
		g.broken = ReasonPeer
	}
	if isTimeout(err) {
		g.hangs = true
	}
	for n := first; n < first+uint32(count); n++ {
		if s := g.pending.get(n); s != nil {
			s.stranded = true
		}
	}
	g.notifyLocked()
}

// receive reads what the taker says, until its end.
func (g *giver) receive() {
	defer close(g.read)
	for {
		f, err := g.ch.next()
		if err == nil {
			err = g.handle(f)
		}
		if errors.Is(err, errProtocol) {
			g.hooks.Log("%v", err)
			g.withdraw(ReasonPeer)
			g.ch.send(frameEnd, nil)
			g.owned(g.allOwed()) // whatever it says of them
			io.Copy(io.Discard, g.ch.sock)
		}
		if err != nil {
			g.lost()
			return
		}
	}
}

func (g *giver) handle(f frame) error {
	switch f.kind {
	case frameReceipt:
		list, err := parseNumbers(f.payload)
		if err != nil {
			return err
		}
		g.receipt(list)
	case frameRefused:
		list, err := parseRefusals(f.payload)
		if err != nil {
			return err
		}
		for n, why := range list {
			g.refused(n, why)
		}
	case frameOwned:
		list, err := parseNumbers(f.payload)
		if err != nil {
			return err
		}
		g.owned(list)
	case frameNak:
		g.takeBack(f, ReasonFiles)
	case frameThawed:
		select {
		case g.thawed <- string(f.payload):
		default:
		}
	default:
		return fmt.Errorf("%w: frame %d from the taker", errProtocol, f.kind)
	}
	return nil
}

// receipt confirms what the other app has accepted; in barrier mode when all is judged.
func (g *giver) receipt(list []uint32) {
	failpoint("give.receipt")
	g.mu.Lock()
	for _, n := range list {
		if s := g.pending.get(n); s != nil && !s.judged {
			g.judgedLocked(s)
			s.receipt = true
		}
	}
	barrier := g.barrier
	g.notifyLocked()
	g.mu.Unlock()
	if !barrier {
		g.confirm(list, false)
	}
}

func (g *giver) judgedLocked(s *sealedConn) {
	if !s.judged {
		s.judged = true
		g.unjudged--
	}
}

// claimed are connections that were taken out of pending: whoever has claimed one decides about it, and nobody else does.
type claimed struct {
	numbers []uint32
	conns   []*sealedConn
}

func (k *claimed) add(n uint32, s *sealedConn) {
	k.numbers, k.conns = append(k.numbers, n), append(k.conns, s)
}

func (g *giver) claim(list []uint32) (k claimed) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range list {
		if s := g.pending.get(n); s != nil && s.receipt && !s.stranded {
			g.pending.remove(n)
			k.add(n, s)
		}
	}
	return k
}

// confirm gives away; all: they are all that there are. The descriptors are closed when the frame is written whole, and not before.
func (g *giver) confirm(list []uint32, all bool) {
	k := g.claim(list)
	if len(k.conns) == 0 && !all {
		return
	}
	failpoint("give.confirm")
	var payload []byte
	if !all {
		payload = appendNumbers(nil, k.numbers)
	}
	g.owe(k, true)
	if err := g.ch.send(frameConfirm, payload); err != nil {
		g.owe(k, false)
		g.strand(k, err)
		return
	}
	failpoint("give.confirmed")
	now := time.Now()
	longest := time.Duration(0)
	g.mu.Lock()
	for _, s := range k.conns {
		longest = max(longest, now.Sub(s.o.told))
		g.freeLocked(s)
	}
	if !g.parked.IsZero() {
		longest = now.Sub(g.parked)
	}
	g.tally.longest = max(g.tally.longest, longest)
	g.paceLocked(longest)
	g.notifyLocked()
	g.mu.Unlock()
	if g.version < ownedVersion {
		g.moved(k.conns)
	}
}

// owe notes, or not, what the taker must say that it owns.
func (g *giver) owe(k claimed, yes bool) {
	if g.version < ownedVersion {
		return
	}
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, n := range k.numbers {
		if k.conns[i].offered = now; yes {
			g.owed[n] = k.conns[i]
		} else {
			delete(g.owed, n)
		}
	}
}

// owned lets go of what the taker has. Before it has said so it has touched nothing: if it dies, all is as it was.
func (g *giver) owned(list []uint32) {
	failpoint("give.owned")
	var conns []*sealedConn
	g.mu.Lock()
	for _, n := range list {
		if s := g.owed[n]; s != nil {
			delete(g.owed, n)
			conns = append(conns, s)
		}
	}
	g.mu.Unlock()
	g.moved(conns)
}

// moved counts those that are elsewhere now, and closes our descriptors; nobody waits for that.
func (g *giver) moved(list []*sealedConn) {
	if len(list) == 0 {
		return
	}
	g.mu.Lock()
	g.tally.moved += len(list)
	g.notifyLocked()
	g.mu.Unlock()
	go g.letGo(list)
}

// paceLocked learns from the longest pause of some connections.
func (g *giver) paceLocked(longest time.Duration) {
	if longest > pauseGoal {
		g.atOnce = max(g.atOnce*7/8, atOnceLeast)
	} else if longest < pauseGoal/2 {
		g.atOnce = min(g.atOnce+4, atOnceMost)
	}
}

// letGo closes our descriptors.
func (g *giver) letGo(list []*sealedConn) {
	for _, s := range list {
		s.c.confirm()
	}
	g.mu.Lock()
	g.open -= len(list)
	g.notifyLocked()
	g.mu.Unlock()
}

// strand puts claimed connections back: a frame about them was not written whole.
func (g *giver) strand(k claimed, err error) {
	g.mu.Lock()
	for i, s := range k.conns {
		s.stranded = true
		g.pending.put(k.numbers[i], s)
	}
	g.mu.Unlock()
	g.fail(err, 0, 0)
}

// refused takes back what the other app does not have.
func (g *giver) refused(n uint32, why Reason) {
	g.mu.Lock()
	s := g.pending.get(n)
	if s != nil {
		g.judgedLocked(s)
		if g.barrier { // not before the others have changed sides
			s.refused, s = why, nil
		} else {
			g.pending.remove(n)
			g.tally.refused++
		}
	}
	g.notifyLocked()
	g.mu.Unlock()
	if s != nil {
		g.back(s, why)
	}
}

// takeBack resumes the connections of an OFFER that did not arrive. There is no use in another.
func (g *giver) takeBack(f frame, why Reason) {
	var list []*sealedConn
	g.mu.Lock()
	if g.broken == "" {
		g.broken = why
	}
	for n := f.first; n < f.first+uint32(min(f.count, maxBatch)); n++ {
		if s := g.pending.get(n); s != nil && !s.judged {
			g.judgedLocked(s)
			g.pending.remove(n)
			list = append(list, s)
		}
	}
	g.notifyLocked()
	g.mu.Unlock()
	for _, s := range list {
		g.back(s, why)
	}
}

// back takes a connection up again that has been claimed.
func (g *giver) back(s *sealedConn, why Reason) {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := s.c.resume(s.r) // with the lock: it is in the list from here on, and must not be tried again
	if next != nil {
		g.tried[next] = true
	}
	g.keptLocked(s, why)
	g.notifyLocked()
}

// withdraw takes back whatever is offered and not confirmed. What it cannot take back, because the taker does not read, stays sealed until
// the taker's end.
func (g *giver) withdraw(why Reason) {
	g.mu.Lock()
	if g.broken == "" {
		g.broken = why
	}
	var k claimed
	stranded := 0
	for n, s := range g.pending.all() {
		if s.stranded {
			stranded++
			continue
		}
		g.judgedLocked(s)
		g.pending.remove(n)
		k.add(n, s)
	}
	g.notifyLocked()
	g.mu.Unlock()
	if stranded > 0 { // a frame is half written: nothing more can be said
		g.strand(k, nil)
		return
	}
	if len(k.conns) == 0 {
		return
	}
	failpoint("give.withdraw")
	if err := g.ch.send(frameWithdraw, appendNumbers(nil, k.numbers)); err != nil {
		g.strand(k, err)
		return
	}
	failpoint("give.withdrawn")
	for _, s := range k.conns {
		if s.refused != "" {
			g.back(s, s.refused)
		} else {
			g.back(s, why)
		}
	}
}

// lost is the taker's end: whatever it has no confirmation of is ours.
func (g *giver) lost() {
	var list []*sealedConn
	g.mu.Lock()
	if g.broken == "" {
		g.broken = ReasonPeer
	}
	for n, s := range g.pending.all() {
		g.judgedLocked(s)
		list = append(list, s)
		g.pending.remove(n)
	}
	for n, s := range g.owed {
		list = append(list, s)
		delete(g.owed, n)
	}
	g.notifyLocked()
	g.mu.Unlock()
	for _, s := range list {
		g.back(s, ReasonPeer)
	}
	g.cancel()
}

func (g *giver) allOwed() (list []uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for n := range g.owed {
		list = append(list, n)
	}
	return list
}

// awaitOwned waits until the taker has said that it owns what it was given, or is dead; not for long.
func (g *giver) awaitOwned() {
	ctx, cancel := context.WithTimeout(context.Background(), hungTime)
	defer cancel()
	g.await(ctx, func() bool { return len(g.owed) == 0 })
}

// end takes back what is open and ends the channel, if the other side still reads. It returns when every connection is settled, or the taker hangs.
func (g *giver) end() {
	g.recall(g.ctx)
	g.withdraw(ReasonLate)
	g.cancel()
	<-g.sent
	g.withdraw(ReasonLate)
	g.awaitOwned()
	g.mu.Lock()
	stuck := g.pending.n > 0 || len(g.owed) > 0
	g.mu.Unlock()
	if !stuck {
		failpoint("give.end")
		g.ch.send(frameEnd, nil)
		select { // the taker closes at END; if it does not, nothing of ours hangs on it
		case <-g.read:
		case <-time.After(endTime):
		}
		g.ch.close()
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

// numbered are connections by their numbers, which grow by one and are settled in about that order.
type numbered struct {
	base uint32 // number of the first in the list
	list []*sealedConn
	n    int // of them are there
}

func (q *numbered) next() uint32 { return q.base + uint32(len(q.list)) }

func (q *numbered) add(s *sealedConn) {
	q.list = append(q.list, s)
	q.n++
}

func (q *numbered) get(n uint32) *sealedConn {
	if i := n - q.base; i < uint32(len(q.list)) {
		return q.list[i]
	}
	return nil
}

// put puts one back.
func (q *numbered) put(n uint32, s *sealedConn) {
	if n-q.base >= uint32(len(q.list)) { // the list began there once
		q.list = append(make([]*sealedConn, q.base-n), q.list...)
		q.base = n
	}
	q.list[n-q.base] = s
	q.n++
}

func (q *numbered) remove(n uint32) {
	q.list[n-q.base] = nil
	q.n--
	first := 0
	for first < len(q.list) && q.list[first] == nil {
		first++
	}
	q.list, q.base = q.list[first:], q.base+uint32(first)
}

// all goes through a snapshot.
func (q *numbered) all() iter.Seq2[uint32, *sealedConn] {
	base, list := q.base, q.list
	return func(yield func(uint32, *sealedConn) bool) {
		for i, s := range list {
			if s != nil && !yield(base+uint32(i), s) {
				return
			}
		}
	}
}
