package supervisor

import (
	"errors"
	"fmt"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
)

// keeper decides when the committed release is started again, and when it is given up for the one before. It belongs to the
// loop.
type keeper struct {
	policy      release.Restart // of the committed release
	attempts    int             // starts since it last ran well
	servingFrom time.Time       // of the last start
	waiting     func()          // stops the back-off timer; nil: nobody waits
	upgraded    time.Time       // when the last upgrade was committed; zero: no going back
	crashes     int             // since then
}

// defaultRestart is the policy as long as the committed release could not be read.
func defaultRestart() release.Restart {
	var spec release.Spec
	spec.SetDefaults()
	return spec.Restart
}

// crashed notes that the serving generation ended by itself. One that ran for a good while starts with a short back-off again.
func (k *keeper) crashed(now time.Time) {
	if now.Sub(k.servingFrom) > time.Duration(k.policy.MaxBackoff) {
		k.attempts = 0
	}
	k.attempts++
	k.crashes++
}

// failed notes that the committed release did not come up.
func (k *keeper) failed() {
	k.attempts++
	k.crashes++
}

// gaveUp notes that going back did not work: from now on the committed release is only restarted.
func (k *keeper) gaveUp() { k.upgraded = time.Time{} }

// committed notes that a release now serves, and by which kind of upgrade.
func (k *keeper) committed(kind string, now time.Time) {
	k.servingFrom = now
	if kind == api.KindStart {
		return
	}
	k.attempts, k.crashes, k.upgraded = 0, 0, time.Time{}
	if kind == api.KindPush {
		k.upgraded = now
	}
}

// givesUp tells whether the committed release crashed too often too soon after its upgrade.
func (k *keeper) givesUp(now time.Time) bool {
	return !k.upgraded.IsZero() && k.policy.Crashes > 0 && k.crashes >= k.policy.Crashes &&
		now.Sub(k.upgraded) <= time.Duration(k.policy.Window)
}

func (k *keeper) backoff() time.Duration {
	if k.attempts == 0 {
		return 0
	}
	d := time.Duration(k.policy.Backoff)
	for range k.attempts - 1 {
		if d *= 2; d >= time.Duration(k.policy.MaxBackoff) {
			return time.Duration(k.policy.MaxBackoff)
		}
	}
	return d
}

func (k *keeper) stopWaiting() {
	if k.waiting != nil {
		k.waiting()
		k.waiting = nil
	}
}

// ensure sees to it that the committed release runs if it should, now or after a back-off. On the loop, after any change.
func (s *Supervisor) ensure() {
	s.refreshStatusText()
	if !s.running() || s.stopping != nil || s.serving != nil || s.busy != nil || s.state.Committed == nil ||
		s.keeper.waiting != nil || s.ctx.Err() != nil {
		return
	}
	req := api.UpgradeRequest{Kind: api.KindStart, By: "the supervisor"}
	wait := s.keeper.backoff()
	if s.keeper.givesUp(time.Now()) && s.state.Previous != nil {
		req, wait = api.UpgradeRequest{Kind: api.KindAutoRollback, Version: s.state.Previous.Version, Digest: s.state.Previous.Digest, By: "the supervisor"}, 0
		s.emit(api.Event{Type: api.EventService, Text: fmt.Sprintf("%s crashed %d times since its upgrade: going back to %s",
			s.state.Committed.Version, s.keeper.crashes, req.Version)})
	}
	s.keeper.waiting = s.after(wait, func() {
		s.keeper.waiting = nil
		s.background(func() { s.bringUp(req) })
	})
}

// bringUp begins what ensure decided. Where somebody else is at it, ensure is asked again when he is done.
func (s *Supervisor) bringUp(req api.UpgradeRequest) {
	_, err := s.begin(req)
	switch {
	case err == nil, errors.Is(err, errNotWanted), errors.Is(err, api.ErrBusy), errors.Is(err, api.ErrStopping):
		return
	}
	s.do(func() {
		if s.startFailure != err.Error() { // it may be the same every time
			s.emit(api.Event{Type: api.EventService, Text: fmt.Sprintf("%s cannot begin: %v", req.Kind, err)})
		}
		if req.Kind == api.KindAutoRollback {
			s.keeper.gaveUp()
		} else {
			s.startFailed(err.Error())
		}
		s.ensure()
	})
}

// startFailed notes why the committed release did not come up. On the loop.
func (s *Supervisor) startFailed(why string) {
	s.keeper.failed()
	s.startFailure = why
}

// bindCommitted opens the committed release's listeners, so that clients can wait in the queue before anything runs. What
// fails here fails again, and is told, when the release is started.
func (s *Supervisor) bindCommitted() {
	var ref *release.Ref
	var running bool
	s.do(func() { ref, running = s.state.Committed, s.running() })
	if ref == nil {
		return
	}
	rel, err := s.store.Release(ref.Version)
	if err != nil {
		s.logf("the committed release: %v", err)
		return
	}
	s.pointCurrent(ref.Version) // the commit may have been interrupted right before it
	s.do(func() { s.keeper.policy = rel.Manifest.Spec.Restart })
	if running {
		s.hold(rel)
	}
}

// hold opens the listeners of rel, which is committed, and keeps them open. The caller owns s.busy, or nobody can have it yet.
func (s *Supervisor) hold(rel *store.Release) {
	var has bool
	s.do(func() { has = s.held != nil })
	if has {
		return
	}
	held, err := s.lend(rel.Manifest.Spec.Listeners)
	if err != nil {
		s.logf("%v", err)
		return
	}
	s.do(func() { s.held = held })
}

// pointCurrent lets the link current name the committed release. It is a convenience for people; the state file decides.
func (s *Supervisor) pointCurrent(version string) {
	if is, err := s.store.Current(); err == nil && is == version {
		return
	}
	if err := s.store.SetCurrent(version); err != nil {
		s.logf("point current to %s: %v", version, err)
	}
}
