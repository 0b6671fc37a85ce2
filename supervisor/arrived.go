package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/failpoint"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
)

// This file is about releases that a push has brought and that have not served yet. A failed deploy changes nothing, so such a release goes
// when its upgrade has failed, and its version is free again. What was there before the push stays.

// arrives notes on the disk that a push brings a release, before it is there: so it is known for one after a crash too. With an error the
// release must not come: nobody would take it back.
func (s *Supervisor) arrives(digest string) error {
	if err := release.CheckDigest(digest); err != nil {
		return api.ErrBadRequest.With(err.Error())
	}
	if _, has := s.store.Find(digest); has {
		return nil
	}
	if err := s.changeState(func(st *store.State) { st.Arrive(digest) }); err != nil {
		return fmt.Errorf("note that a release arrives: %w", err)
	}
	failpoint.At("arrived")
	return nil
}

func (s *Supervisor) hasArrived(digest string) (yes bool) {
	s.do(func() { yes = slices.Contains(s.state.Arrived, digest) })
	return yes
}

// forget takes back what a failed upgrade's push has brought: at once, or when the generation that still sees its clients off is gone.
func (s *Supervisor) forget(u *upgrade, g *generation) {
	to := u.record.To
	if !s.hasArrived(to.Digest) {
		return
	}
	if g == nil || g.isGone() {
		s.withdraw(to) // the upgrade is in flight, so no other begins
		return
	}
	s.background(func() {
		<-u.done // it would count as one that wants the release
		select {
		case <-g.gone:
			<-s.withdrawLater(to)
		case <-s.ctx.Done(): // the next start does it
		}
	})
}

func (g *generation) isGone() bool {
	select {
	case <-g.gone:
		return true
	default:
		return false
	}
}

// withdrawLater does it while no upgrade begins. If one to that very release is in flight its end decides. The channel is closed when
// that is done.
func (s *Supervisor) withdrawLater(ref release.Ref) (done <-chan struct{}) {
	s.do(func() {
		if s.busy != nil && s.busy.record.To.Digest == ref.Digest {
			return
		}
		done = s.alone(func() { s.withdraw(ref) })
	})
	if done == nil {
		none := make(chan struct{})
		close(none)
		return none
	}
	return done
}

// withdraw removes a release that has not served, unless something runs of it.
func (s *Supervisor) withdraw(ref release.Ref) {
	if !s.hasArrived(ref.Digest) {
		return
	}
	failpoint.At("withdraw")
	err := s.store.Withdraw(context.WithoutCancel(s.ctx), ref, func(digest string) (runs bool) {
		s.do(func() { runs = s.runs(digest) != nil })
		return runs
	})
	switch {
	case errors.Is(err, api.ErrConflict):
		return
	case err != nil:
		s.logf("%v", err)
		return
	}
	failpoint.At("withdrawn")
	s.logf("took release %s back: it was never committed", ref.Version)
	if err := s.changeState(func(st *store.State) { st.Settle(ref.Digest) }); err != nil {
		s.logf("write the state: %v", err)
	}
}

// discard is for a push that ended after its upload and before its upgrade.
func (s *Supervisor) discard(digest string) error {
	if err := release.CheckDigest(digest); err != nil {
		return api.ErrBadRequest.With(err.Error())
	}
	if ref, has := s.store.Find(digest); has {
		<-s.withdrawLater(ref)
	}
	return nil
}

// runs is a living generation of a release. On the loop.
func (s *Supervisor) runs(digest string) *generation {
	for _, g := range s.gens {
		if g.rel.Digest == digest {
			return g
		}
	}
	return nil
}

// withdrawLeftovers does for pushes that ended with the supervisor before this one what forget does.
func (s *Supervisor) withdrawLeftovers() {
	var arrived []string
	s.do(func() { arrived = s.state.Arrived })
	if len(arrived) == 0 {
		return
	}
	list, err := s.store.List()
	if err != nil {
		s.logf("list the releases: %v", err)
		return
	}
	for _, r := range list {
		if slices.Contains(arrived, r.Digest) {
			s.withdraw(r.Ref)
		}
	}
}

// makeWayWithin is how long a push waits for the generation of a failed release to be gone whose version it wants.
const makeWayWithin = 5 * time.Second

// makeWay frees a version that a release has which never served and is not about to. With an error it says who is in the way.
func (s *Supervisor) makeWay(ctx context.Context, version string) error {
	rel, err := s.store.Release(version)
	if err != nil {
		return err
	}
	if !s.hasArrived(rel.Digest) {
		return api.ErrConflict
	}
	var g *generation
	s.do(func() { g = s.runs(rel.Digest) })
	if g != nil {
		timer := time.NewTimer(makeWayWithin)
		defer timer.Stop()
		select {
		case <-g.gone:
		case <-timer.C:
			e := api.ErrConflict.With(fmt.Sprintf("version %s is on the host with other content, and generation %d of it still has clients", version, g.number))
			e.Hint = fmt.Sprintf("choose another name with --version, or end it: hotdeploy retire HOST %d", g.number)
			return e
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	<-s.withdrawLater(rel.Ref)
	return nil
}
