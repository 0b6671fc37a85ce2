package supervisor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
)

// upgrade is one upgrade in flight. Its goroutine walks through the phases; the loop owns the record that others see.
type upgrade struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it has ended and s.busy is free again
	phased time.Time     // when the current phase began; used by its goroutine alone

	// owned by the loop
	record    api.Upgrade
	committed bool
}

var errCancelled = errors.New("cancelled")

// begin makes an upgrade the one in flight, or says who is at it. A restart after a crash gives way to an operator's wish.
func (s *Supervisor) begin(req api.UpgradeRequest) (*upgrade, error) {
	for {
		var u, inTheWay *upgrade
		var err error
		s.do(func() { u, inTheWay, err = s.tryBegin(req) })
		if inTheWay == nil {
			return u, err
		}
		inTheWay.cancel(errCancelled)
		<-inTheWay.done
	}
}

// tryBegin is begin's part on the loop.
func (s *Supervisor) tryBegin(req api.UpgradeRequest) (u, inTheWay *upgrade, err error) {
	if s.ctx.Err() != nil {
		return nil, nil, api.ErrStopping.With("the supervisor is stopping")
	}
	if req.Kind == api.KindStart && !s.running {
		return nil, nil, api.ErrConflict.With("the service was stopped")
	}
	if b := s.busy; b != nil {
		switch {
		case b.record.Kind == api.KindStart && req.Kind == api.KindStart:
			return b, nil, nil // what is wished for is happening
		case b.record.Kind == api.KindStart && !b.committed:
			return nil, b, nil
		}
		e := api.ErrBusy.With(fmt.Sprintf("%s is at it: %s of %s since %s, now in phase %s", b.record.By, b.record.Kind,
			b.record.To.Version, b.record.Started.Format(time.TimeOnly), b.record.Phase))
		e.State, e.Hint = s.servingText(), "wait for it, or watch it: hotdeploy status --watch"
		return nil, nil, e
	}
	rel, err := s.target(req)
	if err != nil {
		return nil, nil, err
	}
	u = &upgrade{done: make(chan struct{})}
	u.ctx, u.cancel = context.WithCancelCause(s.ctx)
	u.record = api.Upgrade{ID: newID(), Kind: req.Kind, By: req.By, To: rel.Ref, Started: time.Now(), Phase: api.PhaseVerify}
	if s.serving != nil {
		from := s.serving.rel.Ref
		u.record.From = &from
	}
	s.keeper.stopWaiting()
	s.busy = u
	s.background(func() { s.perform(u, rel) })
	return u, nil, nil
}

// target finds the release that a request means.
func (s *Supervisor) target(req api.UpgradeRequest) (*store.Release, error) {
	version := req.Version
	if version == "" {
		ref := s.state.Committed
		if req.Kind == api.KindRollback {
			ref = s.state.Previous
		}
		if ref == nil {
			e := api.ErrNotFound.With("there is no release to go to")
			e.State, e.Hint = s.servingText(), "see what is there: hotdeploy releases"
			return nil, e
		}
		version = ref.Version
	}
	rel, err := s.store.Release(version)
	if err != nil {
		return nil, err
	}
	if req.Digest != "" && req.Digest != rel.Digest {
		return nil, api.ErrConflict.With(fmt.Sprintf("release %s on this host has digest %.12s, not %.12s", version, rel.Digest, req.Digest))
	}
	return rel, nil
}

func newID() string { return strings.ToLower(rand.Text()[:10]) }

// perform is one upgrade from its first phase to its outcome.
func (s *Supervisor) perform(u *upgrade, rel *store.Release) {
	u.phased = time.Now()
	s.remember(u)
	s.emit(api.Event{Type: api.EventUpgrade, Upgrade: s.copyOf(u), Text: fmt.Sprintf("%s of %s asked for by %s", u.record.Kind, rel.Version, u.record.By)})
	g, err := s.phases(u, rel)
	if err != nil && g != nil {
		s.takeBack(g)
	}
	s.conclude(u, g, err)
}

// phases returns the new generation, if it was started, also with an error.
func (s *Supervisor) phases(u *upgrade, rel *store.Release) (*generation, error) {
	if err := s.verify(u, rel); err != nil {
		return nil, err
	}
	s.phase(u, api.PhaseStart)
	g, err := s.start(rel)
	if err != nil {
		return nil, err
	}
	s.do(func() { u.record.Generation = g.number })
	s.phase(u, api.PhaseReady)
	if err := s.awaitReady(u.ctx, g); err != nil {
		return g, err
	}
	// Between here and the soak is the place where live connections move (the handoff phase). Without it both generations
	// accept, and old connections finish where they are.
	if u.record.Kind != api.KindStart {
		s.phase(u, api.PhaseSoak)
		if err := s.soak(u.ctx, g); err != nil {
			return g, err
		}
	}
	s.phase(u, api.PhaseCommit)
	return g, s.commit(u, g)
}

// verify checks whatever can be checked without starting anything.
func (s *Supervisor) verify(u *upgrade, rel *store.Release) error {
	if err := s.store.Verify(u.ctx, rel); err != nil {
		return err
	}
	if err := s.store.CheckMachine(rel.Manifest, s.facts()); err != nil {
		return err
	}
	return s.roomInMemory()
}

// commit is the switch: after changeState the new release is the one that boots, before it the old one is.
func (s *Supervisor) commit(u *upgrade, g *generation) error {
	if err := context.Cause(u.ctx); err != nil { // the last moment for it
		return err
	}
	var held []*socket
	var err error
	s.do(func() { held, err = s.listeners.acquire(g.rel.Manifest.Spec.Listeners) })
	if err != nil {
		return err
	}
	previous := s.previousOf(u, g.rel.Ref)
	err = s.changeState(func(st *store.State) {
		st.Committed, st.Previous, st.Stopped = &g.rel.Ref, previous, nil
	})
	if err != nil {
		s.do(func() { s.listeners.release(held) })
		return api.ErrInternal.With(fmt.Sprintf("write the state: %v", err))
	}
	s.do(func() { s.promote(u, g, held) })
	s.pointCurrent(g.rel.Version)
	return nil
}

// promote makes g the serving generation and lets the old one drain. On the loop.
func (s *Supervisor) promote(u *upgrade, g *generation, held []*socket) {
	u.committed = true
	s.listeners.release(s.held)
	s.held = held
	old := s.serving
	s.serving, g.state, s.running = g, api.GenServing, true
	s.keeper.policy = g.rel.Manifest.Spec.Restart
	s.keeper.committed(u.record.Kind, time.Now())
	if old != nil {
		s.drain(old)
	}
	s.limitDraining(g.rel.Manifest.Spec.Drain.MaxGenerations)
	select {
	case <-g.group.Done(): // it ended in this very moment
		s.exited(g)
	default:
	}
}

// previousOf is where a rollback from the new release goes: the release that was committed before, except that after a
// rollback it is the one before that, not the bad one.
func (s *Supervisor) previousOf(u *upgrade, to release.Ref) *release.Ref {
	var st store.State
	s.do(func() { st = s.state })
	switch {
	case st.Committed == nil || *st.Committed == to:
		return st.Previous
	case u.record.Kind == api.KindRollback || u.record.Kind == api.KindAutoRollback:
		return s.committedBefore(to, *st.Committed)
	}
	return st.Committed
}

// committedBefore is the newest release that was committed before to was, leaving out bad.
func (s *Supervisor) committedBefore(to, bad release.Ref) *release.Ref {
	list, err := s.store.List()
	if err != nil {
		s.logf("list the releases: %v", err)
		return nil
	}
	var toAt time.Time
	for _, r := range list {
		if r.Ref == to && r.Committed != nil {
			toAt = *r.Committed
		}
	}
	var best *api.ReleaseInfo
	for i, r := range list {
		if r.Committed == nil || r.Ref == to || r.Ref == bad || !r.Committed.Before(toAt) {
			continue
		}
		if best == nil || r.Committed.After(*best.Committed) {
			best = &list[i]
		}
	}
	if best == nil {
		return nil
	}
	return &best.Ref
}

// takeBack undoes a start. A generation that still lives sees its connections off like any old one, since its clients must not
// notice either; one that has ended is waited for, so that its last lines are there.
func (s *Supervisor) takeBack(g *generation) {
	select {
	case <-g.group.Done():
		<-g.gone
	default:
		s.do(func() { s.drain(g) })
	}
}

// conclude records the outcome and frees the place for the next upgrade.
func (s *Supervisor) conclude(u *upgrade, g *generation, err error) {
	now := time.Now()
	var record *api.Upgrade
	s.do(func() {
		r := &u.record
		r.Finished, r.Outcome = &now, api.Done
		r.Phases = append(r.Phases, api.PhaseTime{Phase: r.Phase, Took: now.Sub(u.phased)})
		if err != nil {
			r.Outcome, r.Error = s.failure(u, g, err)
		}
	})
	record = s.copyOf(u)
	if record.Kind != api.KindStart || record.Outcome != api.Done {
		if err := s.store.AppendHistory(*record); err != nil {
			s.logf("record the upgrade: %v", err)
		}
	}
	s.remember(nil)
	s.do(func() {
		s.busy = nil
		if record.Kind != api.KindStart {
			s.last = record
		}
		s.counts[upgradeCount{record.Kind, record.Outcome}]++
		if err != nil {
			s.keeper.failed(record.Kind, time.Now())
		}
	})
	s.emit(api.Event{Type: api.EventUpgrade, Upgrade: record, Generation: record.Generation, Text: outcomeText(record)})
	s.do(func() { s.refreshStatusText(); s.ensure() })
	close(u.done)
	u.cancel(nil)
	if err == nil {
		s.prune(g)
	}
}

func outcomeText(u *api.Upgrade) string {
	if u.Outcome == api.Done {
		return fmt.Sprintf("%s is serving (generation %d)", u.To.Version, u.Generation)
	}
	return fmt.Sprintf("%s of %s failed in phase %s, %s: %s", u.Kind, u.To.Version, u.Phase, u.Outcome, u.Error.Message)
}

// failure turns err into what the operator reads. On the loop.
func (s *Supervisor) failure(u *upgrade, g *generation, err error) (api.Outcome, *api.Error) {
	var e *api.Error
	switch {
	case errors.Is(err, errCancelled), errors.Is(err, context.Canceled):
		e = api.ErrCancelled.With(fmt.Sprintf("cancelled in phase %s", u.record.Phase))
	case errors.As(err, &e):
		c := *e
		e = &c
	default:
		e = api.ErrInternal.With(err.Error())
	}
	if g != nil {
		if e.Output = g.output.lastLines(20); s.opt.Journal {
			e.Journal = journalIdentifier(s.opt.Config.Service, g.rel.Version)
		}
		if e.Hint == "" {
			e.Hint = "see why: hotdeploy logs --release " + g.rel.Version
		}
	}
	e.State = s.servingText()
	if s.serving != nil && (u.record.Phase == api.PhaseSoak || u.record.Phase == api.PhaseCommit) {
		return api.RolledBack, e
	}
	return api.NothingChanged, e
}

// phase notes that u enters phase p.
func (s *Supervisor) phase(u *upgrade, p string) {
	now := time.Now()
	s.do(func() {
		u.record.Phases = append(u.record.Phases, api.PhaseTime{Phase: u.record.Phase, Took: now.Sub(u.phased)})
		u.record.Phase = p
	})
	u.phased = now
	s.emit(api.Event{Type: api.EventUpgrade, Upgrade: s.copyOf(u), Text: ""})
}

func (s *Supervisor) copyOf(u *upgrade) *api.Upgrade {
	var c api.Upgrade
	s.do(func() {
		c = u.record
		c.Phases = append([]api.PhaseTime(nil), c.Phases...)
	})
	return &c
}

// remember keeps the upgrade in flight on disk, so that after a power cut somebody can tell what became of it.
func (s *Supervisor) remember(u *upgrade) {
	var record *api.Upgrade
	if u != nil {
		record = s.copyOf(u)
	}
	if err := s.changeState(func(st *store.State) { st.Upgrade = record }); err != nil {
		s.logf("write the state: %v", err)
	}
}

// prune removes releases that nobody needs any more.
func (s *Supervisor) prune(g *generation) {
	inUse := map[string]bool{}
	s.do(func() {
		for _, o := range s.gens {
			inUse[o.rel.Digest] = true
		}
		for _, r := range []*release.Ref{s.state.Committed, s.state.Previous} {
			if r != nil {
				inUse[r.Digest] = true
			}
		}
	})
	removed, err := s.store.Prune(s.ctx, g.rel.Manifest.Spec.Releases.Keep, func(digest string) bool { return inUse[digest] })
	if err != nil {
		s.logf("prune old releases: %v", err)
	}
	for _, v := range removed {
		s.logf("removed old release %s", v)
	}
}
