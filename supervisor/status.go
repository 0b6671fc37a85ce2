package supervisor

import (
	"fmt"
	"os"
	"sort"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

// status is the whole picture. What the kernel must be asked for is asked outside the loop.
func (s *Supervisor) status() api.Status {
	var st api.Status
	var gens []*generation
	s.do(func() {
		st = api.Status{API: api.Version, Daemon: daemonInfo(s), Service: s.opt.Config.Service, State: s.stateWord(),
			Committed: s.state.Committed, Previous: s.state.Previous, Last: s.last, Listeners: s.listenerInfo()}
		if s.busy != nil {
			c := s.busy.record
			c.Phases = append([]api.PhaseTime(nil), c.Phases...)
			st.Upgrade = &c
		}
		gens = s.ordered()
		for _, g := range gens {
			st.Generations = append(st.Generations, g.info())
		}
	})
	st.Daemon.RSS = procs.ResidentBytes(os.Getpid())
	askKernel(gens, st.Generations)
	st.Seq = s.events.last()
	st.Text = statusText(&st)
	return st
}

// ordered returns the generations as an operator wants to read them: serving, then starting, then draining from new to old.
func (s *Supervisor) ordered() []*generation {
	var gens []*generation
	for _, g := range s.gens {
		gens = append(gens, g)
	}
	rank := func(g *generation) int {
		switch g.state {
		case api.GenServing:
			return 0
		case api.GenStarting, api.GenSoaking:
			return 1
		}
		return 2
	}
	sort.Slice(gens, func(i, j int) bool {
		if a, b := rank(gens[i]), rank(gens[j]); a != b {
			return a < b
		}
		return gens[i].number > gens[j].number
	})
	return gens
}

func (g *generation) info() api.Generation {
	return api.Generation{Number: g.number, Release: g.rel.Ref, State: g.state, PID: g.group.Pid(), Started: g.started,
		Ready: g.readyAt, Draining: g.draining, Deadline: g.deadline, Text: g.text, Health: g.health, Connections: -1, RSS: -1}
}

// askKernel fills in what the kernel knows of gens: processes, memory, connections.
func askKernel(gens []*generation, infos []api.Generation) {
	for i, g := range gens {
		pids := g.group.Pids()
		infos[i].Processes = len(pids)
		infos[i].RSS = g.group.RSS()
		if n, err := sockets.Connections(pids, g.listening()); err == nil {
			infos[i].Connections = n
		}
	}
}

func (s *Supervisor) listenerInfo() []api.Listener {
	var ls []api.Listener
	for _, k := range s.listeners.open {
		l := api.Listener{Listener: k.Listener, Source: "bound", Bound: k.Addr}
		if k.fromSystemd {
			l.Source = "systemd"
		}
		ls = append(ls, l)
	}
	return ls
}

// stateWord is the state of the service. On the loop.
func (s *Supervisor) stateWord() string {
	switch {
	case s.serving != nil:
		return api.StateServing
	case !s.running:
		return api.StateStopped
	case s.state.Committed == nil:
		return api.StateEmpty
	case s.keeper.attempts > 0 && s.busy == nil:
		return api.StateCrashed
	}
	return api.StateStarting
}

// statusText is the sentence of systemctl status and of hotdeploy status.
func statusText(st *api.Status) string {
	var text string
	switch st.State {
	case api.StateServing:
		g := st.Generations[0]
		text = fmt.Sprintf("serving %s (generation %d)", g.Release.Version, g.Number)
	case api.StateEmpty:
		text = "no release yet: hotdeploy push"
	case api.StateStopped:
		text = "stopped by an operator"
	case api.StateCrashed:
		text = st.Committed.Version + " crashed and is about to be restarted"
	default:
		text = "starting " + st.Committed.Version
	}
	if u := st.Upgrade; u != nil && u.Kind != api.KindStart {
		text += fmt.Sprintf(", %s of %s in phase %s", u.Kind, u.To.Version, u.Phase)
	}
	draining, connections, known := 0, 0, true
	for _, g := range st.Generations {
		if g.Draining != nil {
			draining++
			connections += max(g.Connections, 0)
			known = known && g.Connections >= 0
		}
	}
	switch {
	case draining > 0 && known:
		text += fmt.Sprintf(", %d draining with %s", draining, plural(connections, "connection"))
	case draining > 0:
		text += fmt.Sprintf(", %d draining", draining)
	}
	return text
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// servingText is the state line of an error: what is serving now. On the loop.
func (s *Supervisor) servingText() string {
	switch s.stateWord() {
	case api.StateServing:
		return fmt.Sprintf("release %s is serving (generation %d)", s.serving.rel.Version, s.serving.number)
	case api.StateEmpty:
		return "nothing is serving: no release was ever committed"
	case api.StateStopped:
		return "nothing is serving: the service is stopped"
	}
	return fmt.Sprintf("nothing is serving: release %s is to be started", s.state.Committed.Version)
}

// refreshStatusText tells systemd what systemctl status shows, in the background since asking the kernel takes its time.
// Requests that come meanwhile are served by the one after. On the loop.
func (s *Supervisor) refreshStatusText() {
	if s.refreshing {
		s.refreshAgain = true
		return
	}
	if !s.notify.Enabled() {
		return
	}
	s.refreshing = true
	s.background(func() {
		st := s.status()
		var changed bool
		s.do(func() {
			changed, s.statusText = s.statusText != st.Text, st.Text
			s.refreshing = false
			if s.refreshAgain {
				s.refreshAgain = false
				s.refreshStatusText()
			}
		})
		if changed {
			if err := s.notify.Status(st.Text); err != nil {
				s.logf("%v", err)
			}
		}
	})
}
