package supervisor

import (
	"context"
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

// crashed notes that the serving generation ended by itself. One that ran for a good while starts with a short back-off again.
func (k *keeper) crashed(now time.Time) {
	if now.Sub(k.servingFrom) > time.Duration(k.policy.MaxBackoff) {
		k.attempts = 0
	}
	k.attempts++
	k.crashes++
}

// failed notes that an attempt to start something failed.
func (k *keeper) failed(kind string, now time.Time) {
	switch kind {
	case api.KindStart:
		k.attempts++
		k.crashes++
	case api.KindAutoRollback:
		k.upgraded = time.Time{} // once is enough: from now on it is only restarted
	}
}

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
	if !s.running || s.serving != nil || s.busy != nil || s.state.Committed == nil || s.keeper.waiting != nil || s.ctx.Err() != nil {
		return
	}
	req := api.UpgradeRequest{Kind: api.KindStart, By: "the supervisor"}
	wait := s.keeper.backoff()
	if s.keeper.givesUp(time.Now()) && s.state.Previous != nil {
		req, wait = api.UpgradeRequest{Kind: api.KindAutoRollback, Version: s.state.Previous.Version, By: "the supervisor"}, 0
		s.emit(api.Event{Type: api.EventService, Text: fmt.Sprintf("%s crashed %d times since its upgrade: going back to %s",
			s.state.Committed.Version, s.keeper.crashes, req.Version)})
	}
	s.keeper.waiting = s.after(wait, func() {
		s.keeper.waiting = nil
		s.background(func() {
			if _, err := s.begin(req); err != nil {
				s.logf("%s: %v", req.Kind, err)
			}
		})
	})
}

// bindCommitted opens the committed release's listeners, so that clients can wait in the queue before anything runs. What
// fails here fails again, and is told, when the release is started.
func (s *Supervisor) bindCommitted() {
	var ref *release.Ref
	s.do(func() { ref = s.state.Committed })
	if ref == nil {
		return
	}
	rel, err := s.store.Release(ref.Version)
	if err != nil {
		s.logf("the committed release: %v", err)
		return
	}
	s.pointCurrent(ref.Version) // the commit may have been interrupted right before it
	s.do(func() {
		s.keeper.policy = rel.Manifest.Spec.Restart
		if !s.running || s.held != nil {
			return
		}
		if s.held, err = s.listeners.acquire(rel.Manifest.Spec.Listeners); err != nil {
			s.logf("%v", err)
		}
	})
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

// stop ends the service by an operator's wish. It stays so until start, an upgrade, or the next boot of the machine.
func (s *Supervisor) stop(req api.StopRequest) error {
	var busy *upgrade
	s.do(func() {
		s.running = false
		s.keeper.stopWaiting()
		if busy = s.busy; busy != nil {
			busy.cancel(errCancelled)
		}
	})
	if busy != nil {
		<-busy.done
	}
	s.do(func() { s.running = false }) // it may just have been committed
	boot, err := store.BootID()
	if err == nil {
		err = s.changeState(func(st *store.State) { st.Stopped = &store.Stopped{BootID: boot, By: req.By} })
	}
	if err != nil {
		return api.ErrInternal.With(fmt.Sprintf("write the state: %v", err))
	}
	s.endAll(req.Now)
	s.do(func() {
		s.listeners.release(s.held)
		s.held = nil
		s.refreshStatusText()
	})
	s.emit(api.Event{Type: api.EventService, Text: "stopped by " + req.By})
	return nil
}

// startAgain undoes stop, and waits until the committed release serves or failed to.
func (s *Supervisor) startAgain(ctx context.Context, by string) error {
	var serving, empty bool
	s.do(func() {
		s.running = true
		serving, empty = s.serving != nil, s.state.Committed == nil
		s.keeper.stopWaiting()
	})
	if serving {
		return nil
	}
	if empty {
		e := api.ErrNotFound.With("there is no release to start")
		e.Hint = "push one: hotdeploy push HOST"
		return e
	}
	if err := s.changeState(func(st *store.State) { st.Stopped = nil }); err != nil {
		return api.ErrInternal.With(fmt.Sprintf("write the state: %v", err))
	}
	s.bindCommitted()
	u, err := s.begin(api.UpgradeRequest{Kind: api.KindStart, By: by})
	if err != nil {
		return err
	}
	select {
	case <-u.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if e := s.copyOf(u).Error; e != nil {
		return e
	}
	return nil
}

// shutdown ends everything in order, because the daemon ends.
func (s *Supervisor) shutdown() {
	var busy *upgrade
	var longest time.Duration
	s.do(func() {
		s.keeper.stopWaiting()
		busy = s.busy
		for _, g := range s.gens {
			longest = max(longest, time.Duration(g.rel.Manifest.Spec.Run.StopAfter))
		}
	})
	s.notify.ExtendTimeout(longest + 2*killTimeout)
	if busy != nil {
		<-busy.done // its context has ended with ours
	}
	s.endAll(false)
	s.do(s.listeners.closeAll)
}

// stoppedThisBoot tells whether an operator's stop still holds: a reboot starts everything again, as systemd does.
func stoppedThisBoot(st store.State) bool {
	id, err := store.BootID()
	return err == nil && st.Stopped != nil && st.Stopped.BootID == id
}
