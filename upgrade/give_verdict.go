package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// This file is what becomes of a connection that was offered: it moves, comes back, or the other process ends. claim is what makes sure that
// each gets exactly one of the two.

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
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, n := range k.numbers {
		if k.conns[i].asked = g.ticks; yes {
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
