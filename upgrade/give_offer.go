package upgrade

import (
	"encoding/binary"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// This file is the way of sealed connections into the channel: which of them still go, in which batches, and under which numbers.

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

// hungTicks is in how many looks that is counted: when our own process stands still for a while, that is one of them, and proves nothing of the other.
const hungTicks = 10

// watch takes everything back when the other side does not answer. It ends with the giver.
func (g *giver) watch() {
	tick := time.NewTicker(hungTime / hungTicks)
	defer tick.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-tick.C:
			if g.overdue() {
				g.withdraw(ReasonPeer)
				g.mu.Lock()
				g.notifyLocked()
				g.mu.Unlock()
				return
			}
		}
	}
}

func (g *giver) overdue() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ticks++
	for _, s := range g.pending.list {
		if s != nil && !s.judged && g.ticks-s.asked > hungTicks {
			g.hangs = true
			return true
		}
	}
	for _, s := range g.owed {
		if g.ticks-s.asked > hungTicks {
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
	for _, s := range batch {
		s.asked = g.ticks
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
