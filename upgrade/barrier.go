package upgrade

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

// This file is the giver in barrier mode: for apps whose connections know each other.

// allAtOnce parks everything, freezes the app, moves all of it, and changes sides in one moment.
func (g *giver) allAtOnce(ctx context.Context, ls []*listener) {
	list := g.untried(ls)
	g.mu.Lock()
	g.frozen = true
	g.mu.Unlock()
	if v := g.hooks.Freezes; v != 0 && !slices.Contains(g.peer.States, v) {
		g.hooks.Log("handoff: the next release cannot read version %d of the shared state: the connections stay", v)
		g.mu.Lock()
		g.tally.kept[ReasonVersion] += len(list)
		if g.broken == "" {
			g.broken = ReasonVersion
		}
		g.mu.Unlock()
		return
	}
	g.parked = time.Now()
	for _, c := range list {
		c.park()
	}
	defer func() {
		for _, c := range list {
			c.unpark() // those that have stayed
		}
	}()
	g.patiently(ctx, func(limited context.Context) {
		for _, c := range list {
			c.atRest(limited)
		}
	})
	if err := g.freeze(ctx); err != nil {
		g.hooks.Log("handoff: the shared state stays here, and so do the connections: %v", err)
		g.giveUp(list)
		return
	}
	g.begin(list, false)
	g.patiently(ctx, g.finish)
	if g.await(ctx, g.allJudgedLocked) != nil || g.why() != ReasonLate {
		g.withdraw(g.why())
	}
	g.changeSides()
	if g.someStay() && g.hooks.OnRollback != nil {
		g.hooks.OnRollback(ctx, g.gone())
	}
}

// home is where the state is that connections share.
type home uint8

const (
	unknown home = iota // nobody has it, or the release before
	here
	away // we have given it
)

// awaits says whether nobody may be let in yet, since a release of that mode is to hand over what its connections share. Whoever came in before
// would be among strangers.
func (u *Upgrader) awaits(mode string) bool {
	return mode == string(Barrier) || mode != "" && u.opt.Mode == Barrier
}

func (u *Upgrader) isWaiting() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.waiting
}

// settle notes whether the shared state was given away.
func (u *Upgrader) settle(gone bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.home = here; gone {
		u.home = away
	}
}

// errHere is a release that would overwrite what another one is working with.
var errHere = errors.New("there is newer state here")

// thaw is the app's OnThaw, where there is none yet. A release that could not give its state away may still have old connections to give.
func (u *Upgrader) thaw(ctx context.Context, version uint32, state []byte) error {
	u.mu.Lock()
	at := u.home
	u.mu.Unlock()
	if at == here {
		return errHere
	}
	err := u.opt.OnThaw(ctx, version, state)
	if err == nil {
		u.settle(false)
	}
	return err
}

// shared says whether the shared state was to be given, and whether it was.
func (g *giver) shared() (tried, gone bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.frozen, g.sides
}

func (g *giver) allJudgedLocked() bool {
	return g.broken != "" || len(g.sealing) == 0 && g.unjudged == 0 && g.open == g.pending.n
}

// giveUp keeps everything, now and later: without what they share connections are worth nothing over there.
func (g *giver) giveUp(list []*conn) {
	g.mu.Lock()
	g.tally.kept[ReasonFrozen] += len(list)
	if g.broken == "" {
		g.broken = ReasonFrozen
	}
	g.mu.Unlock()
	if g.hooks.OnRollback != nil {
		g.hooks.OnRollback(context.Background(), 0)
	}
}

func (g *giver) gone() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.tally.moved
}

// ReasonFrozen is an app that could not let go of, or take up, what its connections share.
const ReasonFrozen Reason = ctl.SharedState

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
		failpoint("give.thawed")
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
	change := g.broken == "" && (len(list) > 0 || len(refused) == 0)
	g.barrier = !change // what comes to rest later moves alone, to where the shared state is
	g.mu.Unlock()
	if change {
		g.confirm(list, true)
		g.awaitOwned()
		g.mu.Lock()
		g.sides = g.broken == ""
		g.parked = time.Time{}
		g.mu.Unlock()
	}
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

// opened lets others in.
func (o *Options) opened() {
	if o.onOpen != nil {
		o.onOpen()
	}
}
