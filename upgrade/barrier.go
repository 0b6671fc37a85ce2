package upgrade

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

// This file is the giver in barrier mode: for apps whose connections know each other.

// allAtOnce parks everything, freezes the app, moves all of it, and changes sides in one moment.
func (g *giver) allAtOnce(ctx context.Context, ls []*listener) {
	limited, cancel := context.WithTimeout(ctx, g.hooks.Patience)
	defer cancel()
	list := g.untried(ls)
	if v := g.hooks.Freezes; v != 0 && !slices.Contains(g.peer.States, v) {
		g.hooks.Log("handoff: the next release cannot read version %d of the shared state: the connections stay", v)
		g.mu.Lock()
		g.tally.kept[ReasonVersion] += len(list)
		g.mu.Unlock()
		return
	}
	for _, c := range list {
		c.park()
	}
	defer func() {
		for _, c := range list {
			c.unpark() // those that have stayed
		}
	}()
	for _, c := range list {
		c.atRest(limited)
	}
	if err := g.freeze(ctx); err != nil {
		g.hooks.Log("handoff: the shared state stays here, and so do the connections: %v", err)
		g.giveUp(list)
		return
	}
	g.begin(list, false)
	g.finish(limited)
	if g.await(ctx, g.allJudgedLocked) != nil || g.why() != ReasonLate {
		g.withdraw(g.why())
	}
	g.changeSides()
	if g.someStay() && g.hooks.OnRollback != nil {
		g.hooks.OnRollback(ctx)
	}
}

func (g *giver) allJudgedLocked() bool {
	return g.broken != "" || len(g.sealing) == 0 && g.unjudged == 0 && g.open == g.pending.n
}

func (g *giver) giveUp(list []*conn) {
	g.mu.Lock()
	g.tally.kept[ReasonFrozen] += len(list)
	g.mu.Unlock()
	if g.hooks.OnRollback != nil {
		g.hooks.OnRollback(context.Background())
	}
}

// ReasonFrozen is an app that could not let go of, or take up, what its connections share.
const ReasonFrozen Reason = "shared state"

// freeze lets the app drain its queues, and carries its shared state over.
func (g *giver) freeze(ctx context.Context) error {
	if g.hooks.OnPark != nil {
		if err := g.hooks.OnPark(ctx); err != nil {
			return fmt.Errorf("OnPark: %w", err)
		}
	}
	var version uint32
	var state []byte
	if g.hooks.OnFreeze != nil {
		var err error
		if version, state, err = g.hooks.OnFreeze(ctx); err != nil {
			return fmt.Errorf("OnFreeze: %w", err)
		}
	}
	if len(state) > maxShared {
		return fmt.Errorf("OnFreeze: %d bytes, more than %d", len(state), maxShared)
	}
	failpoint("give.frozen")
	if err := g.ch.send(frameFreeze, append(binary.BigEndian.AppendUint32(nil, version), state...)); err != nil {
		g.fail(err, 0, 0)
		return err
	}
	select {
	case why := <-g.thawed:
		if why != "" {
			return fmt.Errorf("the next release: %s", why)
		}
		return nil
	case <-g.ctx.Done():
		return fmt.Errorf("the next release ended")
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(thawTime):
		g.mu.Lock()
		g.hangs, g.broken = true, ReasonPeer
		g.mu.Unlock()
		return fmt.Errorf("the next release does not answer")
	}
}

// thawTime is how long the next release may take to take up the shared state. Nothing comes in meanwhile.
const thawTime = 5 * time.Second

// changeSides is the moment of the change: one CONFIRM for all. What was refused comes back after it.
func (g *giver) changeSides() {
	g.mu.Lock()
	g.barrier = false
	var list []uint32
	refused := map[*sealedConn]Reason{}
	for n, s := range g.pending.all() {
		if s.refused != "" {
			refused[s] = s.refused
			g.tally.refused++
			g.pending.remove(n)
		} else {
			list = append(list, n)
		}
	}
	g.mu.Unlock()
	g.confirm(list, true)
	for s, why := range refused {
		g.back(s, why)
	}
}

func (g *giver) someStay() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for why := range g.tally.kept {
		if why != ReasonClosed {
			return true
		}
	}
	return false
}

// settleTime is how long an app that has answered may take to read, in barrier mode.
const settleTime = time.Second
