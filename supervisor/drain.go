package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"syscall"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/failpoint"
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
	s.emit(api.Event{Type: api.EventGeneration, Generation: g.number, Text: fmt.Sprintf("generation %d (%s) is draining", g.number, g.rel.Version)})
	s.record()
	failpoint.At("drain")
	s.tell(g)
	s.background(func() { s.seeOff(g) })
}

// tell asks g to finish. Not twice, not even by two supervisors: to many apps a second SIGTERM means at once. On the loop.
func (s *Supervisor) tell(g *generation) {
	if g.told {
		return
	}
	if err := g.group.Signal(syscall.SIGTERM); err != nil {
		s.logf("generation %d: ask it to finish: %v", g.number, err)
	}
	g.told = true
	s.record()
	failpoint.At("told")
}

// usualSample is how often the kernel is asked for a draining generation's connections at most, and maxSample how often at
// least; in between so rarely that all who drain together cost at most about one percent of a core.
const (
	usualSample = time.Second
	maxSample   = 30 * time.Second
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
	sample := time.NewTimer(s.sample)
	defer sample.Stop()
	w := watcher{began: *g.draining, lastBusy: time.Now(), connections: -1}
	spread := time.Duration(g.rel.Manifest.Spec.Drain.Spread)
	for {
		select {
		case <-g.gone:
			return
		case <-s.ctx.Done(): // shutdown ends it
			return
		case <-sample.C:
			began := time.Now()
			accepts := w.look(g, stop)
			if began.Sub(w.lastBusy) >= stop {
				s.kill(g, "has no connections left and did not exit")
				return
			}
			if accepts && s.stillAccepts(g) {
				s.closeRest(g, spread, 0, "goes on accepting connections although it failed") // it had its time to stop
				return
			}
			others := 1
			s.do(func() { g.sampled = w.connections; others = s.drainers(); s.refreshStatusText() })
			sample.Reset(min(max(time.Duration(others)*100*time.Since(began), s.sample), maxSample, max(stop, s.sample)))
		case <-deadline:
			s.closeRest(g, spread, stop, "is over its drain deadline")
			return
		case now := <-g.retire:
			if now {
				spread = 0
			}
			s.closeRest(g, spread, stop, "was retired")
			return
		}
	}
}

// watcher follows a draining generation's connections from look to look.
type watcher struct {
	began, lastBusy time.Time
	connections     int // at the last look; -1: unknown
}

// look counts, and tells whether g accepted new ones although its time to stop that is long over. More than before can be
// nothing else.
func (w *watcher) look(g *generation, stop time.Duration) (accepts bool) {
	now := time.Now()
	n, err := g.connections()
	if err != nil {
		n = -1
	}
	if n != 0 {
		w.lastBusy = now
	}
	accepts = w.connections >= 0 && n > w.connections && now.Sub(w.began) >= stop
	w.connections = n
	return accepts
}

// stillAccepts is about a draining generation that takes new clients. One whose upgrade failed must not have them; an old
// one serves them as well as ever, and somebody should know.
func (s *Supervisor) stillAccepts(g *generation) (failed bool) {
	s.do(func() {
		failed = g.failed
		if !failed && !g.saidAccepts {
			g.saidAccepts = true
			s.emit(api.Event{Type: api.EventGeneration, Generation: g.number,
				Text: fmt.Sprintf("generation %d (%s) goes on accepting connections after SIGTERM; end it: hotdeploy retire", g.number, g.rel.Version)})
		}
	})
	return failed
}

// drainers is how many generations drain. On the loop.
func (s *Supervisor) drainers() (n int) {
	for _, g := range s.gens {
		if g.draining != nil {
			n++
		}
	}
	return n
}

// closeRest moves what can move of g's connections, closes the others spread over a time, since a reconnect storm is an outage too, and ends it if it has not ended by
// itself after the grace. An operator who retires it at once need not wait for that.
func (s *Supervisor) closeRest(g *generation, spread, grace time.Duration, why string) {
	s.do(func() { g.state = api.GenStopping })
	if s.moveRest(g, spread == 0) && spread > 0 {
		if s.letFinish(g, grace); g.isGone() {
			return
		}
	}
	s.keepRest(g)
	if n, err := g.connections(); err != nil || n > 0 {
		s.emit(api.Event{Type: api.EventGeneration, Generation: g.number,
			Text: fmt.Sprintf("generation %d (%s) %s: closing its connections over %s", g.number, g.rel.Version, why, spread)})
		if s.closeConnections(g, spread) {
			s.closeConnections(g, 0)
		}
	} else {
		s.emit(api.Event{Type: api.EventGeneration, Generation: g.number,
			Text: fmt.Sprintf("generation %d (%s) %s: it has no connections left", g.number, g.rel.Version, why)})
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	for {
		select {
		case <-g.gone:
			return
		case <-s.ctx.Done():
			return
		case now := <-g.retire:
			if now {
				s.kill(g, "is to end at once")
				return
			}
		case <-timer.C:
			s.kill(g, "did not exit after its connections were closed")
			return
		}
	}
}

// letFinish waits for a generation that has just given away what it could: what it has left may be a request that ends in a moment.
func (s *Supervisor) letFinish(g *generation, grace time.Duration) {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-g.gone:
	case <-s.ctx.Done():
	case <-timer.C:
	case now := <-g.retire:
		g.askToRetire(now) // whoever closes the rest wants to know, too
	}
}

// closeConnections tells whether it was interrupted by an operator who cannot wait.
func (s *Supervisor) closeConnections(g *generation, spread time.Duration) (hurry bool) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	closed := make(chan struct{})
	s.background(func() {
		defer close(closed)
		n, err := sockets.CloseConnections(ctx, g.group.Pids(), s.othersThan(g), g.listening(), spread)
		if err != nil && ctx.Err() == nil {
			s.logf("generation %d: closed %d connections one by one, the rest ends with it: %v", g.number, n, err)
		}
	})
	for {
		select {
		case <-closed:
			return hurry
		case <-g.gone:
			cancel()
			<-closed
			return false
		case now := <-g.retire:
			if now {
				hurry = true
				cancel()
			}
		}
	}
}

// othersThan returns a function that tells the processes of all generations but g: a connection that one of them has is not g's to end.
func (s *Supervisor) othersThan(g *generation) func() []int {
	return func() (pids []int) {
		var others []*generation
		s.do(func() {
			for _, o := range s.gens {
				if o != g {
					others = append(others, o)
				}
			}
		})
		for _, o := range others {
			pids = append(pids, o.group.Pids()...)
		}
		return pids
	}
}

// kill ends g's whole process tree at once; watch notices.
func (s *Supervisor) kill(g *generation, why string) {
	s.emit(api.Event{Type: api.EventGeneration, Generation: g.number,
		Text: fmt.Sprintf("generation %d (%s) %s: killing it", g.number, g.rel.Version, why)})
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	if err := errors.Join(g.group.Signal(syscall.SIGKILL), g.group.Kill(ctx)); err != nil { // also one whose cgroup is gone
		s.logf("generation %d: %v", g.number, err)
	}
}

// limitDraining ends the oldest draining generations until at most as many drain as the serving release allows. On the loop.
func (s *Supervisor) limitDraining() {
	if s.serving == nil || s.serving.rel.Manifest.Spec.Drain.MaxGenerations <= 0 {
		return
	}
	limit := s.serving.rel.Manifest.Spec.Drain.MaxGenerations
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

// end stops g in order: SIGTERM, unless it was told before, the time its release asks for, SIGKILL. With grace zero it is killed at once.
func (s *Supervisor) end(g *generation, grace time.Duration) {
	s.do(func() {
		g.state = api.GenStopping
		s.record()
	})
	failpoint.At("end")
	if grace > 0 {
		s.do(func() { s.tell(g) })
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
	pids, err := g.pids()
	if err != nil {
		return 0, err
	}
	return sockets.Connections(pids, g.listening())
}

// pids are g's living processes. Where the main process lives and is not among them, its cgroup is not what it was, and nobody can
// tell.
func (g *generation) pids() ([]int, error) {
	pids := g.group.Pids()
	if !g.hasEnded() && !slices.Contains(pids, g.group.Pid()) {
		return nil, fmt.Errorf("process %d is not where it was started", g.group.Pid())
	}
	return pids, nil
}
