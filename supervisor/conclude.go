package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/failpoint"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
)

// takeBack undoes a start. A generation that still lives sees its connections off like any old one, since its clients must not
// notice either; one that has ended is waited for, so that its last lines are there.
func (s *Supervisor) takeBack(g *generation) {
	select {
	case <-g.group.Done():
		<-g.gone
	default:
		s.do(func() {
			g.failed = true
			s.drain(g)
			s.limitDraining()
		})
	}
}

// conclude records the outcome and frees the place for the next upgrade. Who sees the outcome may begin that at once.
func (s *Supervisor) conclude(u *upgrade, g *generation, err error) {
	record := s.outcome(u, g, err)
	counts := err != nil && record.Error.Code != api.ErrCancelled.Code && record.Error.Code != api.ErrStopping.Code
	s.remember(u, record, counts)
	failpoint.At("remembered")
	s.do(func() {
		u.record = *record
		s.busy = nil
		if record.Kind != api.KindStart {
			s.last = record
		}
		s.counts[upgradeCount{record.Kind, record.Outcome}]++
		switch {
		case err != nil && record.Kind == api.KindAutoRollback: // once is enough, also when somebody cancels it
			s.keeper.gaveUp()
		case counts && record.Kind == api.KindStart:
			s.startFailed(record.Error.Message)
		}
		s.emit(api.Event{Type: api.EventUpgrade, Upgrade: record, Generation: record.Generation, Text: outcomeText(record)})
		s.ensure()
		if err == nil && record.Kind != api.KindStart {
			s.prune(g)
		}
	})
	close(u.done)
	u.cancel(nil)
}

// outcome is the record of u as it ended.
func (s *Supervisor) outcome(u *upgrade, g *generation, err error) *api.Upgrade {
	now := time.Now()
	r := s.copyOf(u)
	r.Finished, r.Outcome = &now, api.Done
	ended := now
	if !u.failed.IsZero() {
		ended = u.failed
	}
	s.do(func() {
		r.Phases = append(r.Phases, api.PhaseTime{Phase: r.Phase, Took: ended.Sub(u.phased), Text: u.text})
		if u.back != nil {
			r.Phases = append(r.Phases, *u.back)
		}
	})
	if err != nil {
		s.do(func() { r.Outcome, r.Error = s.failure(u, g, err) })
	}
	return r
}

// remember keeps the outcome in the history, and forgets that u was in flight. Of the starts of a release that does not come up only
// the first one in a row is kept.
func (s *Supervisor) remember(u *upgrade, record *api.Upgrade, counts bool) {
	if record.Kind == api.KindStart {
		first := false
		s.do(func() { first = counts && s.startFailure == "" })
		if !first {
			return
		}
	}
	if err := s.store.AppendHistory(*record); err != nil {
		s.logf("record the upgrade: %v", err)
	}
	if record.Kind == api.KindStart {
		return
	}
	failpoint.At("in history")
	if err := s.changeState(func(st *store.State) { st.Upgrade = nil }); err != nil {
		s.logf("write the state: %v", err)
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
	case u.ctx.Err() != nil && (errors.Is(err, context.Cause(u.ctx)) || errors.Is(err, context.Canceled)):
		e = api.ErrCancelled.With(fmt.Sprintf("cancelled in phase %s", u.record.Phase))
		if s.ctx.Err() != nil {
			e = api.ErrStopping.With(fmt.Sprintf("the supervisor was stopped in phase %s", u.record.Phase))
		}
	case errors.As(err, &e):
		c := *e
		c.Message = err.Error()
		e = &c
	default:
		e = internal(err)
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
	if p := u.record.Phase; s.serving != nil && (p == api.PhaseHandoff || p == api.PhaseSoak || p == api.PhaseCommit) {
		return api.RolledBack, e
	}
	return api.NothingChanged, e
}

// prune removes releases that nobody needs any more, in the background. An upgrade that is asked for meanwhile waits, so what is
// in use now is all that will be. On the loop.
func (s *Supervisor) prune(g *generation) {
	inUse := map[string]bool{}
	for _, o := range s.gens {
		inUse[o.rel.Digest] = true
	}
	for _, r := range []*release.Ref{s.state.Committed, s.state.Previous} {
		if r != nil {
			inUse[r.Digest] = true
		}
	}
	s.alone(func() {
		failpoint.At("prune")
		removed, err := s.store.Prune(s.ctx, g.rel.Manifest.Spec.Releases.Keep, func(digest string) bool { return inUse[digest] })
		if err != nil && s.ctx.Err() == nil {
			s.logf("prune old releases: %v", err)
		}
		for _, v := range removed {
			s.logf("removed old release %s", v)
		}
		failpoint.At("pruned")
	})
}

// alone runs f in the background; until it has ended no operator's upgrade begins, and no other f. On the loop.
func (s *Supervisor) alone(f func()) <-chan struct{} {
	before, done := s.pruning, make(chan struct{})
	s.pruning = done
	started := s.background(func() {
		defer close(done)
		if before != nil {
			<-before
		}
		f()
		s.do(func() {
			if s.pruning == done {
				s.pruning = nil
			}
		})
	})
	if !started {
		close(done)
	}
	return done
}
