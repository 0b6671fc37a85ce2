package supervisor

import (
	"fmt"
	"os"
	"slices"
	"sort"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
)

// status is the whole picture. What the kernel must be asked for is asked outside the loop.
func (s *Supervisor) status() api.Status {
	var st api.Status
	var gens []*generation
	s.do(func() { st, gens = s.picture() })
	st.Daemon.RSS = procs.ResidentBytes(os.Getpid())
	askKernel(gens, st.Generations)
	st.Seq = s.events.last()
	st.Text = statusText(&st)
	return st
}

// picture is the status as far as the loop knows it, with the generations in the same order. Its text is not complete yet.
func (s *Supervisor) picture() (api.Status, []*generation) {
	st := api.Status{API: api.Version, Daemon: daemonInfo(s), Service: s.opt.Config.Service, State: s.stateWord(),
		Text: s.stateText(), Committed: s.state.Committed, Previous: s.state.Previous, Last: s.last, Listeners: s.listenerInfo()}
	if s.busy != nil {
		c := s.busy.copied()
		st.Upgrade = &c
	}
	gens := s.ordered()
	for _, g := range gens {
		st.Generations = append(st.Generations, g.info())
	}
	return st, gens
}

// ordered returns the generations as an operator wants to read them: serving, then starting, then draining from new to old.
func (s *Supervisor) ordered() []*generation {
	var gens []*generation
	for _, g := range s.gens {
		gens = append(gens, g)
	}
	rank := func(g *generation) int {
		switch {
		case g == s.serving:
			return 0
		case g.state == api.GenStarting, g.state == api.GenSoaking:
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
		Ready: g.readyAt, Draining: g.draining, Deadline: g.deadline, Text: g.text, Health: g.health, Connections: g.sampled, RSS: -1, Handoff: g.handoff, Taken: g.taken}
}

// askKernel fills in what the kernel knows of gens: processes, memory, connections.
func askKernel(gens []*generation, infos []api.Generation) {
	pids := map[int][]int{}
	var all []*sockets.Socket // each once
	for i, g := range gens {
		infos[i].Connections = -1
		own, err := g.pids()
		if err != nil {
			continue
		}
		pids[g.number] = own
		infos[i].Processes, infos[i].RSS = len(own), g.group.RSS()
		for _, k := range g.listening() {
			if !slices.Contains(all, k) {
				all = append(all, k)
			}
		}
	}
	counted, _ := sockets.ConnectionsOf(pids, all) // who is not in it stays unknown
	for i, g := range gens {
		if n, ok := counted[g.number]; ok {
			infos[i].Connections = n
		}
	}
}

func (s *Supervisor) listenerInfo() []api.Listener {
	var ls []api.Listener
	for _, k := range s.listeners.ordered(s.held) {
		l := api.Listener{Listener: k.as, Source: "bound", Bound: k.Addr}
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
	case !s.running():
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
	text := st.Text
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

// stateText is its first part. On the loop.
func (s *Supervisor) stateText() string {
	word := s.stateWord()
	switch {
	case s.stopping != nil:
		return "stopping, as " + s.stopping.by + " wishes"
	case word == api.StateServing:
		return fmt.Sprintf("serving %s (generation %d)", s.serving.rel.Version, s.serving.number)
	case word == api.StateEmpty:
		return "no release yet: hotdeploy push"
	case word == api.StateStopped:
		return "stopped by an operator"
	case s.startFailure != "":
		return s.state.Committed.Version + " does not come up and is tried again: " + s.startFailure
	case word == api.StateCrashed:
		return s.state.Committed.Version + " crashed and is about to be restarted"
	}
	return "starting " + s.state.Committed.Version
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

// refreshStatusText tells systemd what systemctl status shows, from what is known: the kernel is not asked for it. On the
// loop.
func (s *Supervisor) refreshStatusText() {
	if !s.notify.Enabled() {
		return
	}
	st, _ := s.picture()
	if text := statusText(&st); text != s.text {
		s.text = text
		s.teller.status(text)
	}
}
