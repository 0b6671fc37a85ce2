package supervisor

import (
	"context"
	"fmt"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/probe"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

// awaitReady waits until g says or shows that it is ready, within the release's time limit (which the app may extend).
func (s *Supervisor) awaitReady(ctx context.Context, g *generation) error {
	spec := g.rel.Manifest.Spec.Ready
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	shown := make(chan error, 1)
	ready := g.ready
	switch spec.Check {
	case release.CheckNotify, release.CheckDelay:
	default:
		s.background(func() { shown <- probe.WaitReady(ctx, spec, g.target()) })
	}
	limit := time.Duration(spec.Timeout)
	if spec.Check == release.CheckDelay {
		limit = time.Duration(spec.Delay)
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	deadline := g.started.Add(limit)
	for {
		select {
		case <-ready:
			if spec.Check == release.CheckNotify {
				return s.isReady(g)
			}
			ready = nil // it speaks sd_notify, but its release asked for another proof
		case err := <-shown:
			if err == nil {
				return s.isReady(g)
			}
			shown = nil // only the end of ctx ends it with an error; the cases below tell why
		case d := <-g.extend:
			if later := time.Now().Add(d); later.After(deadline) {
				deadline = later
				timer.Reset(d)
			}
		case <-timer.C:
			if spec.Check == release.CheckDelay {
				return s.isReady(g)
			}
			cancel()
			return s.notReady(g, spec, limit, shown)
		case <-g.group.Done():
			return g.endedEarly(api.ErrStart, "before it was ready")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *Supervisor) isReady(g *generation) error {
	now := time.Now()
	for _, k := range g.sockets {
		if err := k.Relisten(); err != nil {
			s.logf("lengthen the queue of listener %s again: %v", k.Listener.Name, err)
		}
	}
	s.moves(g) // what it said of itself is worth more than one supervisor's life
	s.do(func() { g.readyAt, g.state = &now, api.GenSoaking })
	s.emit(api.Event{Type: api.EventGeneration, Generation: g.number,
		Text: fmt.Sprintf("generation %d (%s) is ready after %s", g.number, g.rel.Version, now.Sub(g.started).Round(time.Millisecond))})
	return nil
}

func (s *Supervisor) notReady(g *generation, spec release.Ready, limit time.Duration, shown <-chan error) error {
	text := fmt.Sprintf("release %s was not ready within %s", g.rel.Version, limit)
	if spec.Check == release.CheckNotify {
		text += ": it did not send READY=1"
	} else if shown != nil {
		if err := <-shown; err != nil {
			text += ": " + err.Error()
		}
	}
	e := api.ErrNotReady.With(text)
	e.Hint = "see its log, or give it more time: ready.timeout in hotdeploy.toml"
	return e
}

// healthOf is the check during the soak: the release's own, or else the probe that showed it ready.
func healthOf(spec release.Spec) *release.Health {
	if spec.Health != nil {
		return spec.Health
	}
	switch spec.Ready.Check {
	case release.CheckTCP, release.CheckHTTP, release.CheckCommand:
		return &release.Health{Probe: spec.Ready.Probe, Interval: release.DefaultHealthInterval,
			Timeout: release.DefaultHealthTimeout, Failures: release.DefaultHealthFailures}
	}
	return nil
}

// soak watches g for the release's soak time: it must stay up, and its health check must not fail several times in a row. A
// soak does not end in a doubt: a failed check is followed by others until it is known.
func (s *Supervisor) soak(ctx context.Context, g *generation) error {
	spec := g.rel.Manifest.Spec
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := time.NewTimer(time.Duration(spec.Soak.Duration))
	defer over.Stop()
	checks := s.checkHealth(ctx, g)
	healthy, ended := checks == nil, false
	failures := 0
	for {
		select {
		case <-g.group.Done():
			return exitedInSoak(g)
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-checks:
			if healthy = err == nil; healthy {
				failures = 0
			} else if failures++; failures >= healthOf(spec).Failures {
				return api.ErrUnhealthy.With(fmt.Sprintf("release %s is unhealthy: %d checks in a row failed: %v", g.rel.Version, failures, err))
			}
		case <-over.C:
			ended = true
		}
		if ended && healthy {
			return nil
		}
	}
}

func exitedInSoak(g *generation) error {
	return g.endedEarly(api.ErrExited, fmt.Sprintf("in the soak, %s after it was ready", time.Since(*g.readyAt).Round(time.Millisecond)))
}

// checkHealth runs g's health check at its interval until ctx ends or g has ended; nil if the release has none.
func (s *Supervisor) checkHealth(ctx context.Context, g *generation) <-chan error {
	h := healthOf(g.rel.Manifest.Spec)
	if h == nil {
		return nil
	}
	results := make(chan error)
	s.background(func() {
		tick := time.NewTicker(time.Duration(h.Interval))
		defer tick.Stop()
		for {
			one, cancel := context.WithTimeout(ctx, time.Duration(h.Timeout))
			err := probe.Check(one, h.Probe, g.target())
			cancel()
			if ctx.Err() != nil {
				return // the soak is over: this one was cut short and says nothing
			}
			text := "ok"
			if err != nil {
				text = err.Error()
			}
			s.do(func() { g.health = text })
			select {
			case results <- err:
			case <-ctx.Done():
				return
			case <-g.group.Done():
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			case <-g.group.Done():
				return
			}
		}
	})
	return results
}

// target is what a probe needs to know of g.
func (g *generation) target() probe.Target {
	t := probe.Target{Pid: g.group.Pid(), Pids: g.group.Pids, Dir: g.rel.FilesDir, Env: g.env, Sockets: map[string]*sockets.Socket{}}
	for i, k := range g.sockets {
		t.Sockets[g.rel.Manifest.Spec.Listeners[i].Name] = k.Socket
	}
	if len(g.sockets) > 0 {
		t.First = g.sockets[0].Socket
	}
	return t
}
