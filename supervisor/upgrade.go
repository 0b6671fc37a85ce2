package supervisor

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/failpoint"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
)

// perform is one upgrade from its first phase to its outcome.
func (s *Supervisor) perform(u *upgrade, rel *store.Release) {
	u.phased = time.Now()
	record := s.copyOf(u)
	s.emit(api.Event{Type: api.EventUpgrade, Upgrade: record, Text: fmt.Sprintf("%s of %s asked for by %s", record.Kind, rel.Version, record.By)})
	g, err := s.phases(u, rel)
	s.finish(u, g, err)
}

// finish takes a failed upgrade back, and closes the books on any.
func (s *Supervisor) finish(u *upgrade, g *generation, err error) {
	if err != nil && g != nil {
		s.do(func() {
			u.failed = time.Now()
			_, u.failure = s.failure(u, g, err)
		})
		failpoint.At("take back")
		s.handBack(u, g)
		s.takeBack(g)
	}
	if u.moves {
		s.moving.give()
	}
	if err != nil {
		s.forget(u, g)
	}
	failpoint.At("conclude")
	s.conclude(u, g, err)
}

// phases returns the new generation, if it was started, also with an error.
func (s *Supervisor) phases(u *upgrade, rel *store.Release) (*generation, error) {
	if u.record.Kind == api.KindStart {
		s.hold(rel) // clients wait in the queue from now on, not only from the start on
	}
	failpoint.At("verify")
	if err := s.prepare(u, rel); err != nil {
		return nil, err
	}
	failpoint.At("verified")
	s.phase(u, api.PhaseStart)
	g, err := s.start(u, rel)
	if err != nil {
		return nil, err
	}
	return g, s.onward(u, g, api.PhaseReady)
}

// onward goes on from a phase: the one after start, or the one in which an earlier supervisor was killed.
func (s *Supervisor) onward(u *upgrade, g *generation, from string) error {
	if from == api.PhaseReady {
		s.phase(u, api.PhaseReady)
		if err := s.awaitReady(u.ctx, g); err != nil {
			return err
		}
		failpoint.At("ready")
		// Where one of the two cannot move connections both generations accept from here on, and old connections finish where they are.
		if err := s.handoff(u, g); err != nil {
			return err
		}
	}
	if u.record.Kind != api.KindStart && from != api.PhaseCommit {
		s.phase(u, api.PhaseSoak)
		failpoint.At("soak")
		if err := s.soak(u.ctx, g); err != nil {
			return err
		}
		failpoint.At("soaked")
	}
	s.phase(u, api.PhaseCommit)
	return s.commit(u, g)
}

// prepare checks whatever can be checked without starting anything, and meanwhile writes down what is about to happen.
func (s *Supervisor) prepare(u *upgrade, rel *store.Release) error {
	group, ctx := errgroup.WithContext(u.ctx)
	group.Go(func() error { return s.verify(ctx, rel) })
	group.Go(func() error { return s.note(u) })
	return group.Wait()
}

func (s *Supervisor) verify(ctx context.Context, rel *store.Release) error {
	if err := s.store.Verify(ctx, rel); err != nil {
		return err
	}
	if err := s.store.CheckMachine(rel.Manifest, s.facts()); err != nil {
		return err
	}
	return s.roomInMemory()
}

// note gives u the number of its generation, and writes to the disk that it is in flight, so that after a power cut
// somebody can tell what became of it. The start of what is committed must not fail for want of room on the disk.
func (s *Supervisor) note(u *upgrade) error {
	record := s.copyOf(u)
	err := s.changeState(func(st *store.State) {
		u.number = st.NextGeneration
		st.NextGeneration++
		if record.Kind != api.KindStart {
			st.Upgrade = record
		}
	})
	if err != nil && record.Kind != api.KindStart {
		return fmt.Errorf("write the state: %w", err)
	}
	if err != nil {
		s.logf("write the state: %v", err)
		s.do(func() { u.number = s.state.NextGeneration; s.state.NextGeneration++ })
	}
	return nil
}

// commit is the switch: after changeState the new release is the one that boots, before it the old one is.
func (s *Supervisor) commit(u *upgrade, g *generation) error {
	if err := context.Cause(u.ctx); err != nil { // the last moment for it
		return err
	}
	s.step("commit")
	failpoint.At("commit")
	if g.group.Ended() { // nobody may have noticed yet
		<-g.group.Done()
		return exitedInSoak(g)
	}
	ended, held := false, []*socket(nil)
	s.do(func() {
		if ended = g.hasEnded(); !ended { // else its sockets may be closed
			held = s.listeners.share(g.sockets)
		}
	})
	if ended {
		return exitedInSoak(g)
	}
	if err := s.writeCommit(u, g.rel.Ref); err != nil {
		s.do(func() { s.listeners.release(held) })
		return fmt.Errorf("write the state: %w", err)
	}
	s.step("committed")
	failpoint.At("committed")
	s.do(func() { s.promote(u, g, held) })
	failpoint.At("promoted")
	s.pointCurrent(g.rel.Version)
	failpoint.At("pointed")
	return nil
}

// writeCommit changes nothing where the disk says it already, as for a restart after a crash.
func (s *Supervisor) writeCommit(u *upgrade, to release.Ref) error {
	if u.record.Kind == api.KindStart {
		return nil
	}
	previous, record := s.previousOf(u, to), s.copyOf(u)
	return s.changeState(func(st *store.State) {
		st.Committed, st.Previous, st.Stopped = &to, previous, nil
		st.Settle(to.Digest)
		st.Upgrade = record // in phase commit: this is how a power cut tells that it was done
	})
}

// promote makes g the serving generation and lets the old one drain. On the loop.
func (s *Supervisor) promote(u *upgrade, g *generation, held []*socket) {
	u.committed = true
	s.listeners.release(s.held)
	s.held = held
	s.listeners.rename(held, g.rel.Manifest.Spec.Listeners, s.logf)
	old := s.serving
	s.serving, g.state, g.health, s.startFailure = g, api.GenServing, "", ""
	s.keeper.policy = g.rel.Manifest.Spec.Restart
	s.keeper.committed(u.record.Kind, time.Now())
	if old != nil {
		s.drain(old)
	}
	s.limitDraining()
	if g.hasEnded() { // in this very moment
		s.exited(g)
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

// phase notes that u enters phase p.
func (s *Supervisor) phase(u *upgrade, p string) {
	now := time.Now()
	s.do(func() {
		u.record.Phases = append(u.record.Phases, api.PhaseTime{Phase: u.record.Phase, Took: now.Sub(u.phased), Text: u.text})
		u.record.Phase, u.text = p, ""
		s.refreshStatusText()
	})
	u.phased = now
	s.emit(api.Event{Type: api.EventUpgrade, Upgrade: s.copyOf(u), Text: ""})
}

func (s *Supervisor) copyOf(u *upgrade) *api.Upgrade {
	var c api.Upgrade
	s.do(func() { c = u.copied() })
	return &c
}

// copied is the record as it is now, sharing nothing that will change. On the loop.
func (u *upgrade) copied() api.Upgrade {
	c := u.record
	c.Phases = append([]api.PhaseTime(nil), c.Phases...)
	return c
}
