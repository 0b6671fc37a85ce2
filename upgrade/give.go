package upgrade

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// This file is the giver of PROTOCOL.md: it carries sealed connections to the other process. It owns each of them from seal to confirm or
// resume; claim is what makes sure that each gets exactly one of the two.

// atOnce is how many connections pause at a time in rolling mode. It is what the longest pause depends on.
const atOnce = 64

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
	o        *offer
	r        *record
	slot     bool // counts among atOnce
	receipt  bool // barrier: accepted, waits for the others
	refused  Reason
	judged   bool
	begun    time.Time
	offered  time.Time
	stranded bool // a frame about it could not be written whole: only the end of file decides
}

// giver gives away the connections of some listeners, until end or the end of the other process.
type giver struct {
	ch    *channel
	own   hello
	peer  hello
	hooks Options

	ctx    context.Context // ends with the giver
	cancel context.CancelFunc
	read   chan struct{} // closed when the reader has ended
	sent   chan struct{} // closed when the sender has ended
	thawed chan string

	mu       sync.Mutex // protects what follows; taken before a conn's
	frozen   bool       // it was tried
	sides    bool       // they have changed
	parked   time.Time  // since when all of them pause
	changed  chan struct{}
	tried    map[*conn]bool
	sealing  map[*sealedConn]bool // begun, not sealed
	sealed   []*sealedConn        // and not offered
	stopped  bool                 // nobody offers them any more
	pending  map[uint32]*sealedConn
	open     int // begun and neither moved nor back
	pausing  int // of them in a slot
	unjudged int
	next     uint32
	broken   Reason // why nothing more is offered
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
	peer, err := ch.greet(own, by)
	if err == nil && !peer.speaks() {
		err = errVersions
	}
	if err != nil {
		ch.send(frameEnd, nil)
		ch.close()
		return nil, err
	}
	g := &giver{ch: ch, own: own, peer: peer, hooks: opt, barrier: own.Mode == string(Barrier) || peer.Mode == string(Barrier),
		read: make(chan struct{}), sent: make(chan struct{}), thawed: make(chan string, 1),
		tried: map[*conn]bool{}, sealing: map[*sealedConn]bool{}, pending: map[uint32]*sealedConn{}, tally: tally{kept: map[Reason]int{}}}
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
	settled := func() bool { return g.open == 0 }
	if g.await(ctx, settled) != nil {
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
		limited, cancel := context.WithCancel(ctx)
		for _, c := range list {
			if g.slot(ctx) != nil {
				g.count(ReasonLate)
				continue
			}
			g.begin(limited, c, true)
		}
		patience := time.AfterFunc(g.hooks.Patience, cancel) // from the last one on
		g.await(ctx, func() bool { return len(g.sealing) == 0 })
		patience.Stop()
		cancel()
	}
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
				g.count(why)
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

// slot waits until another connection may pause. Those that are not told yet, because they are busy, do not count.
func (g *giver) slot(ctx context.Context) error {
	for {
		g.mu.Lock()
		if g.pausing < atOnce {
			g.pausing++
			g.mu.Unlock()
			return nil
		}
		changed := g.changesLocked()
		g.mu.Unlock()
		timer := time.NewTimer(busyCheck)
		select {
		case <-changed:
		case <-timer.C:
			g.freeBusy()
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
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

// begin wakes c's app and offers the connection when it has let go.
func (g *giver) begin(ctx context.Context, c *conn, slot bool) {
	s := &sealedConn{c: c, slot: slot, begun: time.Now()}
	g.mu.Lock()
	g.open++
	g.sealing[s] = true
	g.mu.Unlock()
	s.o = c.begin()
	go g.seal(ctx, s)
}

func (g *giver) seal(ctx context.Context, s *sealedConn) {
	r, why := s.o.seal(ctx)
	g.mu.Lock()
	delete(g.sealing, s)
	switch why {
	case ReasonStuck, ReasonBusy, ReasonUnsettled: // perhaps it was given no time, since there is nobody to give it to any more
		if context.Cause(ctx) == errCalledOff {
			why = ReasonLate
		} else if g.broken != "" {
			why = g.broken
		}
	}
	if why != "" {
		g.freeLocked(s)
		g.open--
		g.tally.kept[why]++
	}
	g.notifyLocked()
	g.mu.Unlock()
	if why == "" {
		s.r = r
		failpoint("give.sealed")
		g.enqueue(s)
	}
}

func (g *giver) enqueue(s *sealedConn) {
	g.mu.Lock()
	stopped := g.stopped
	if !stopped {
		g.sealed = append(g.sealed, s)
		g.notifyLocked()
	}
	g.mu.Unlock()
	if stopped {
		g.back(s, g.why())
	}
}

// transmit sends what is sealed, as much at a time as there is. It ends with the giver.
func (g *giver) transmit() {
	defer close(g.sent)
	for g.await(g.ctx, func() bool { return len(g.sealed) > 0 }) == nil {
		g.offer(g.batch())
	}
	g.mu.Lock()
	rest := g.sealed
	g.sealed, g.stopped = nil, true
	g.mu.Unlock()
	for _, s := range rest {
		g.back(s, g.why())
	}
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
				return
			}
		}
	}
}

func (g *giver) overdue(before time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.pending {
		if !s.judged && s.offered.Before(before) {
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

// batch takes what is sealed by now.
func (g *giver) batch() []*sealedConn {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for size := 0; n < len(g.sealed) && n < maxBatch && size < batchBytes; n++ {
		size += g.sealed[n].r.size()
	}
	batch := slices.Clone(g.sealed[:n])
	g.sealed = slices.Delete(g.sealed, 0, n)
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
	f := frame{kind: frameOffer, count: len(batch)}
	for _, s := range batch {
		at := len(f.payload)
		f.payload = s.r.append(append(f.payload, 0, 0, 0, 0))
		binary.BigEndian.PutUint32(f.payload[at:], uint32(len(f.payload)-at-4))
	}
	g.await(g.ctx, func() bool { return g.broken != "" || g.unjudged+len(batch) <= maxUnjudged })
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.broken != "" || g.ctx.Err() != nil {
		return f, false
	}
	f.first = g.next
	now := time.Now()
	for _, s := range batch {
		s.offered = now
		g.pending[g.next] = s
		g.next++
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
		if s := g.pending[n]; s != nil {
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
		if s := g.pending[n]; s != nil && !s.judged {
			g.judgedLocked(s)
			s.receipt = true
		}
	}
	barrier := g.barrier
	g.notifyLocked()
	g.mu.Unlock()
	if !barrier {
		g.confirm(list, appendNumbers(nil, list))
	}
}

func (g *giver) judgedLocked(s *sealedConn) {
	if !s.judged {
		s.judged = true
		g.unjudged--
	}
}

// claim takes connections out of pending: whoever has claimed one decides about it, and nobody else does.
func (g *giver) claim(list []uint32) map[uint32]*sealedConn {
	g.mu.Lock()
	defer g.mu.Unlock()
	claimed := make(map[uint32]*sealedConn, len(list))
	for _, n := range list {
		if s := g.pending[n]; s != nil && s.receipt && !s.stranded {
			claimed[n] = s
			delete(g.pending, n)
		}
	}
	return claimed
}

// confirm gives away. The descriptors are closed when the frame is written whole, and not before.
func (g *giver) confirm(list []uint32, payload []byte) {
	claimed := g.claim(list)
	if len(claimed) == 0 && payload != nil {
		return
	}
	failpoint("give.confirm")
	if payload != nil && len(claimed) < len(list) {
		payload = nil
		for n := range claimed {
			payload = binary.BigEndian.AppendUint32(payload, n)
		}
	}
	if err := g.ch.send(frameConfirm, payload); err != nil {
		g.strand(claimed, err)
		return
	}
	failpoint("give.confirmed")
	now := time.Now()
	for _, s := range claimed {
		s.c.confirm()
	}
	g.mu.Lock()
	for _, s := range claimed {
		g.tally.moved++
		since := s.o.told
		if !g.parked.IsZero() {
			since = g.parked
		}
		g.tally.longest = max(g.tally.longest, now.Sub(since))
		g.freeLocked(s)
		g.open--
	}
	g.notifyLocked()
	g.mu.Unlock()
}

// strand puts claimed connections back: a frame about them was not written whole.
func (g *giver) strand(claimed map[uint32]*sealedConn, err error) {
	g.mu.Lock()
	for n, s := range claimed {
		s.stranded = true
		g.pending[n] = s
	}
	g.mu.Unlock()
	g.fail(err, 0, 0)
}

// refused takes back what the other app does not have.
func (g *giver) refused(n uint32, why Reason) {
	g.mu.Lock()
	s := g.pending[n]
	if s != nil {
		g.judgedLocked(s)
		if g.barrier { // not before the others have changed sides
			s.refused, s = why, nil
		} else {
			delete(g.pending, n)
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
		if s := g.pending[n]; s != nil && !s.judged {
			g.judgedLocked(s)
			delete(g.pending, n)
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
	next := s.c.resume(s.r)
	g.mu.Lock()
	defer g.mu.Unlock()
	if next != nil {
		g.tried[next] = true
	}
	g.tally.kept[why]++
	g.freeLocked(s)
	g.open--
	g.notifyLocked()
}

// withdraw takes back whatever is offered and not confirmed. What it cannot take back, because the taker does not read, stays sealed until
// the taker's end.
func (g *giver) withdraw(why Reason) {
	g.mu.Lock()
	if g.broken == "" {
		g.broken = why
	}
	claimed := map[uint32]*sealedConn{}
	stranded := 0
	for n, s := range g.pending {
		if s.stranded {
			stranded++
			continue
		}
		g.judgedLocked(s)
		claimed[n] = s
		delete(g.pending, n)
	}
	g.notifyLocked()
	g.mu.Unlock()
	if stranded > 0 { // a frame is half written: nothing more can be said
		g.strand(claimed, nil)
		return
	}
	var payload []byte
	for n := range claimed {
		payload = binary.BigEndian.AppendUint32(payload, n)
	}
	if len(claimed) == 0 {
		return
	}
	if err := g.ch.send(frameWithdraw, payload); err != nil {
		g.strand(claimed, err)
		return
	}
	for _, s := range claimed {
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
	for n, s := range g.pending {
		g.judgedLocked(s)
		list = append(list, s)
		delete(g.pending, n)
	}
	g.notifyLocked()
	g.mu.Unlock()
	for _, s := range list {
		g.back(s, ReasonPeer)
	}
	g.cancel()
}

// end takes back what is open and ends the channel, if the other side still reads. It returns when every connection is settled, or the taker hangs.
func (g *giver) end() {
	g.withdraw(ReasonLate)
	g.cancel()
	<-g.sent
	g.withdraw(ReasonLate)
	g.mu.Lock()
	stuck := len(g.pending) > 0
	g.mu.Unlock()
	if !stuck {
		g.ch.send(frameEnd, nil)
		select { // the taker closes at END; if it does not, nothing of ours hangs on it
		case <-g.read:
		case <-time.After(endTime):
		}
		g.ch.close()
	}
}

// linger goes on giving without a limit in time: what was busy may come to rest. It ends with the giver.
func (g *giver) linger(ls []*listener) {
	for _, l := range ls {
		for _, c := range l.conns() {
			if g.keeps(c) == "" {
				g.begin(g.ctx, c, false)
			}
		}
	}
}

func (g *giver) count(why Reason) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tally.kept[why]++
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
