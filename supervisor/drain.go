package supervisor

import (
	"context"
	"fmt"
	"sort"
	"sync"
	"syscall"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

// drain asks g to stop accepting, finish and exit, and sees to it that it does within its release's policy. On the loop.
func (s *Supervisor) drain(g *generation) {
	if g.draining != nil {
		return
	}
	now := time.Now()
	g.state, g.draining = api.GenDraining, &now
	if age := time.Duration(g.rel.Manifest.Spec.Drain.MaxAge); age > 0 {
		d := now.Add(age)
		g.deadline = &d
	}
	if err := g.group.Signal(syscall.SIGTERM); err != nil {
		s.logf("generation %d: ask it to finish: %v", g.number, err)
	}
	s.background(func() { s.seeOff(g) })
}

// The kernel is asked for a draining generation's connections this often: from the first to the second, so rarely that it
// costs at most about one percent of a core.
const (
	drainSample    = time.Second
	maxDrainSample = 30 * time.Second
)

// seeOff waits for the end of a draining generation. One without connections gets the stop timeout to end by itself, one
// that is over its deadline, or retired by an operator, has what is left closed.
func (s *Supervisor) seeOff(g *generation) {
	stop := time.Duration(g.rel.Manifest.Spec.Run.StopAfter)
	var deadline <-chan time.Time
	if g.deadline != nil {
		t := time.NewTimer(time.Until(*g.deadline))
		defer t.Stop()
		deadline = t.C
	}
	sample := time.NewTimer(drainSample)
	defer sample.Stop()
	lastBusy := time.Now()
	for {
		select {
		case <-g.gone:
			return
		case <-s.ctx.Done(): // shutdown ends it
			return
		case <-sample.C:
			began := time.Now()
			if n, err := g.connections(); err != nil || n > 0 {
				lastBusy = began
			}
			if began.Sub(lastBusy) >= stop {
				s.kill(g, "has no connections left and did not exit")
				return
			}
			sample.Reset(min(max(100*time.Since(began), drainSample), maxDrainSample, max(stop, drainSample)))
			s.do(func() { s.refreshStatusText() })
		case <-deadline:
			s.closeRest(g, time.Duration(g.rel.Manifest.Spec.Drain.Spread), "is over its drain deadline")
			return
		case now := <-g.retire:
			spread := time.Duration(g.rel.Manifest.Spec.Drain.Spread)
			if now {
				spread = 0
			}
			s.closeRest(g, spread, "was retired")
			return
		}
	}
}

// closeRest closes g's connections spread over a time, since a reconnect storm is an outage too, then ends it.
func (s *Supervisor) closeRest(g *generation, spread time.Duration, why string) {
	s.do(func() { g.state = api.GenStopping })
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	go func() {
		select {
		case <-g.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	s.emit(api.Event{Type: api.EventGeneration, Generation: g.number,
		Text: fmt.Sprintf("generation %d (%s) %s: closing its connections over %s", g.number, g.rel.Version, why, spread)})
	if n, err := sockets.CloseConnections(ctx, g.group.Pids(), g.listening(), spread); err != nil && ctx.Err() == nil {
		s.logf("generation %d: closed %d connections one by one, the rest ends with it: %v", g.number, n, err)
	}
	timer := time.NewTimer(time.Duration(g.rel.Manifest.Spec.Run.StopAfter))
	defer timer.Stop()
	select {
	case <-g.gone:
	case <-s.ctx.Done():
	case <-timer.C:
		s.kill(g, "did not exit after its connections were closed")
	}
}

// kill ends g's whole process tree at once; watch notices.
func (s *Supervisor) kill(g *generation, why string) {
	s.emit(api.Event{Type: api.EventGeneration, Generation: g.number,
		Text: fmt.Sprintf("generation %d (%s) %s: killing it", g.number, g.rel.Version, why)})
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	if err := g.group.Kill(ctx); err != nil {
		s.logf("generation %d: %v", g.number, err)
	}
}

// limitDraining ends the oldest draining generations until at most limit drain. On the loop.
func (s *Supervisor) limitDraining(limit int) {
	if limit <= 0 {
		return
	}
	var draining []*generation
	for _, g := range s.gens {
		if g.state == api.GenDraining {
			draining = append(draining, g)
		}
	}
	sort.Slice(draining, func(i, j int) bool { return draining[i].number < draining[j].number })
	for _, g := range draining[:max(0, len(draining)-limit)] {
		g.askToRetire(false)
	}
}

func (g *generation) askToRetire(now bool) {
	select {
	case g.retire <- now:
	default: // asked already
	}
}

// retire ends one draining generation by an operator's wish.
func (s *Supervisor) retire(number int, now bool) error {
	var err error
	s.do(func() {
		g := s.gens[number]
		switch {
		case g == nil:
			e := api.ErrNotFound.With(fmt.Sprintf("there is no generation %d", number))
			e.State, e.Hint = s.servingText(), "see them: hotdeploy status"
			err = e
		case g.draining == nil:
			e := api.ErrConflict.With(fmt.Sprintf("generation %d is %s, not draining", number, g.state))
			e.State, e.Hint = s.servingText(), "push another release first, or end the service: hotdeploy stop"
			err = e
		default:
			g.askToRetire(now)
		}
	})
	return err
}

// end stops g in order: SIGTERM, the time its release asks for, SIGKILL. With grace zero it is killed at once.
func (s *Supervisor) end(g *generation, grace time.Duration) {
	if grace > 0 {
		s.do(func() { g.state = api.GenStopping })
		if err := g.group.Signal(syscall.SIGTERM); err != nil {
			s.logf("generation %d: ask it to stop: %v", g.number, err)
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-g.gone:
			return
		case <-timer.C:
		}
	}
	s.kill(g, "is to stop")
	<-g.gone
}

// endAll stops every generation, all at the same time.
func (s *Supervisor) endAll(now bool) {
	var all []*generation
	s.do(func() {
		for _, g := range s.gens {
			all = append(all, g)
		}
	})
	var wg sync.WaitGroup
	for _, g := range all {
		grace := time.Duration(g.rel.Manifest.Spec.Run.StopAfter)
		if now {
			grace = 0
		}
		wg.Go(func() { s.end(g, grace) })
	}
	wg.Wait()
}

func (g *generation) listening() []*sockets.Socket {
	ks := make([]*sockets.Socket, len(g.sockets))
	for i, k := range g.sockets {
		ks[i] = k.Socket
	}
	return ks
}

// connections counts what g accepted on its listeners and still holds open, as the kernel sees it.
func (g *generation) connections() (int, error) {
	return sockets.Connections(g.group.Pids(), g.listening())
}
