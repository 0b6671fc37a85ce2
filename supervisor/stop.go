package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/failpoint"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
	"github.com/hotdeploy/hotdeploy/systemd"
)

// stopping is an operator's stop under way. Nothing begins until it has ended.
type stopping struct {
	by    string
	since time.Time
	done  chan struct{} // closed when it has ended
	err   error         // read after done
}

// stop ends the service by an operator's wish. It stays so until start, an upgrade, or the next boot of the machine. With an
// error nothing was stopped. Who asks a second time waits for the first.
func (s *Supervisor) stop(req api.StopRequest) error {
	mine := &stopping{by: req.By, since: time.Now(), done: make(chan struct{})}
	var other *stopping
	var busy *upgrade
	var replacing error
	s.do(func() {
		if other = s.stopping; other != nil {
			return
		}
		if s.replacing != "" {
			replacing = s.isBusy(s.replacing + " is replacing the daemon")
			return
		}
		s.stopping = mine
		s.keeper.stopWaiting()
		if busy = s.busy; busy != nil {
			busy.cancel(errCancelled)
		}
		s.emit(api.Event{Type: api.EventService, Text: req.By + " stops the service"})
		s.refreshStatusText()
	})
	if replacing != nil {
		return replacing
	}
	if other != nil {
		return s.joinStop(other, req.Now)
	}
	if busy != nil {
		<-busy.done
	}
	mine.err = s.stopNow(req)
	s.do(func() {
		s.stopping = nil
		s.ensure() // if it was not stopped after all
	})
	close(mine.done)
	return mine.err
}

// joinStop waits for a stop that somebody else asked for; now makes it a quick one.
func (s *Supervisor) joinStop(other *stopping, now bool) error {
	if now {
		s.endAll(true)
	}
	<-other.done
	return other.err
}

// stopNow is stop's part when nothing is in flight any more.
func (s *Supervisor) stopNow(req api.StopRequest) error {
	err := s.changeState(func(st *store.State) { st.Stopped = &store.Stopped{BootID: s.bootID, By: req.By} })
	if err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	s.endAll(req.Now)
	s.do(func() {
		failpoint.At("all ended")
		s.listeners.release(s.held)
		s.held = nil
	})
	s.unkeepClosed()
	s.emit(api.Event{Type: api.EventService, Text: "stopped by " + req.By})
	return nil
}

// startAgain undoes stop, and waits until the committed release serves or failed to.
func (s *Supervisor) startAgain(ctx context.Context, by string) error {
	if err := s.unstop(); err != nil {
		return err
	}
	u, err := s.begin(api.UpgradeRequest{Kind: api.KindStart, By: by})
	if errors.Is(err, errNotWanted) { // it serves
		return nil
	}
	if err != nil {
		s.do(s.ensure) // mayBegin may have stopped the back-off timer
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

// unstop lets the service be one that should run.
func (s *Supervisor) unstop() error {
	var err error
	var stopped bool
	s.do(func() {
		switch stopped = !s.running(); {
		case s.stopping != nil:
			err = s.isBusy(s.stopping.text())
		case s.replacing != "":
			err = s.isBusy(s.replacing + " is replacing the daemon")
		case s.state.Committed == nil:
			e := api.ErrNotFound.With("there is no release to start")
			e.State, e.Hint = s.servingText(), "push one: hotdeploy push HOST"
			err = e
		}
	})
	if err != nil || !stopped {
		return err
	}
	err = s.changeState(func(st *store.State) {
		s.do(func() {
			if s.stopping == nil { // one that begins now writes after us
				st.Stopped = nil
			}
		})
	})
	if err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	return nil
}

func (p *stopping) text() string {
	return fmt.Sprintf("%s is stopping the service since %s", p.by, p.since.Format(time.TimeOnly))
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
	defer extend(s.notify, longest+2*killTimeout, func() { s.do(func() {}) })()
	if busy != nil {
		<-busy.done // its context has ended with ours
	}
	s.endAll(false)
	s.do(s.leave)
}

// A stop may need more time than the unit allows, and gets it bit by bit: whoever hangs in the middle of it is found out soon.
const (
	extendEvery = time.Second
	extendBy    = 5 * time.Second
)

// extend asks systemd for the time that a stop needs, up to most, until the returned function is called. alive blocks if we hang.
func extend(n systemd.Notifier, most time.Duration, alive func()) (end func()) {
	ended := make(chan struct{})
	go func() {
		tick := time.NewTicker(extendEvery)
		defer tick.Stop()
		for limit := time.Now().Add(most); time.Now().Before(limit); {
			alive()
			n.ExtendTimeout(min(extendBy, max(time.Until(limit), time.Microsecond)))
			select {
			case <-tick.C:
			case <-ended:
				return
			}
		}
	}()
	return func() { close(ended) }
}

// leave closes the listeners, after an orderly end. Where systemd keeps duplicates of them the next supervisor finds them by the
// ledger: at a restart clients wait in the queue meanwhile. The path of a unix socket is gone with it. On the loop.
func (s *Supervisor) leave() {
	s.held = nil
	s.listeners.open = slices.DeleteFunc(s.listeners.open, func(k *socket) bool {
		if k.recorded.Path != 0 {
			k.Close()
		}
		return k.recorded.Path != 0
	})
	if (systemd.FDStore{}).Enabled() && len(s.listeners.open) > 0 {
		s.record()
	} else {
		os.Remove(ledgerPath(s.opt.Config.RunDir))
	}
	s.recordNothing = true
	s.listeners.closeAll()
}

// running tells whether the service should run: no operator stopped it since the machine booted. A reboot starts everything
// again, as systemd does. On the loop.
func (s *Supervisor) running() bool {
	return s.state.Stopped == nil || s.state.Stopped.BootID != s.bootID
}
