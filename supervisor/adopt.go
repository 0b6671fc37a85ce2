package supervisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
	"github.com/hotdeploy/hotdeploy/systemd"
	"github.com/hotdeploy/hotdeploy/upgrade/control"
)

// This file is how a supervisor goes on where another one ended, however that came about: what runs is told by the ledger, and how to
// reach it by descriptors, which come from systemd's fd store or from the supervisor that hands over to us. Where there are none, the
// kernel may give us what it can: a pidfd by the pid, a listener out of the process that serves on it.
//
// Adopting has two halves. adopt, in New, only looks: it proves that this supervisor can go on, or says why not, and nothing has
// changed. settle and resume, in Run, act.

// legacy is what an earlier supervisor left.
type legacy struct {
	from       *ledger         // nil: nothing
	files      map[string]bool // the names of all descriptors that came with it
	stale      []string        // of those, what nothing in the ledger means
	spare      []*socket       // listeners without a user, until it is known who wants them
	awaited    *os.File        // to whoever would end what runs if no supervisor came
	lines      []string        // what was adopted and what was lost, for people
	upgrade    *upgrade        // in flight
	generation *generation     // the one that the upgrade started, if it did
}

// inheritance is a source of descriptors.
type inheritance map[string]*os.File

func newInheritance(files []*os.File) inheritance {
	in := inheritance{}
	for _, f := range files {
		if in[f.Name()] != nil { // one name is one thing
			f.Close()
			continue
		}
		in[f.Name()] = f
	}
	return in
}

// take returns nil if there is none of that name. The file is the caller's.
func (in inheritance) take(name string) *os.File {
	f := in[name]
	delete(in, name)
	return f
}

// adopt makes of what is left the state of this supervisor. It changes nothing outside of it.
func (s *Supervisor) adopt(in inheritance) error {
	s.legacy.files = map[string]bool{}
	for name := range in {
		s.legacy.files[name] = true
	}
	s.legacy.awaited = in.take(awaitName)
	defer func() {
		s.legacy.stale = slices.Sorted(maps.Keys(in))
		if s.legacy.awaited != nil {
			s.legacy.stale = append(s.legacy.stale, awaitName)
		}
		for _, f := range in {
			f.Close()
		}
	}()
	l, err := readLedger(s.opt.Config.RunDir, s.opt.Config.Service)
	if err != nil {
		return err
	}
	if l != nil {
		if err := s.inherit(in, l); err != nil {
			return err
		}
	}
	return s.adoptNotify(in)
}

func (s *Supervisor) adoptNotify(in inheritance) (err error) {
	path := filepath.Join(s.opt.Config.RunDir, notifyName)
	if f := in.take(notifyName); f != nil {
		if s.notified, err = systemd.NotifyAdopt(f, path); err == nil {
			return nil
		}
		s.legacy.files[notifyName] = false
	}
	if s.notified, err = systemd.NotifyListen(path); err != nil {
		return fmt.Errorf("listen for the app's notifications: %w", err)
	}
	return nil
}

func (s *Supervisor) inherit(in inheritance, l *ledger) error {
	s.legacy.from = l
	s.handoffs.Store(l.Handoffs)
	k := l.Keeper
	s.keeper.attempts, s.keeper.crashes, s.keeper.servingFrom, s.keeper.upgraded = k.Attempts, k.Crashes, k.ServingFrom, k.Upgraded
	all := map[int]*socket{}
	for _, r := range l.Listeners {
		all[r.ID] = s.adoptListener(in, r, l.Generations)
	}
	for _, r := range l.Generations {
		g, err := s.adoptGeneration(in, r, all)
		if err != nil {
			return err
		}
		s.gens[g.number] = g
	}
	s.serving = s.gens[l.Serving]
	if held := use(all, l.Held); slices.ContainsFunc(held, func(k *socket) bool { return k.lost }) {
		s.listeners.release(held) // they are bound anew, as far as that is possible
	} else if len(held) > 0 {
		s.held = held
	}
	for _, r := range l.Listeners {
		if k := all[r.ID]; k.users == 0 && !k.lost {
			k.users = 1
			s.legacy.spare = append(s.legacy.spare, k)
		}
	}
	s.adoptUpgrade(l.Upgrade)
	return nil
}

// use returns the sockets of ids with one more user each.
func use(all map[int]*socket, ids []int) []*socket {
	ks := make([]*socket, len(ids))
	for i, id := range ids {
		ks[i] = all[id]
		ks[i].users++
	}
	return ks
}

func (s *Supervisor) lost(format string, args ...any) {
	s.legacy.lines = append(s.legacy.lines, "lost: "+fmt.Sprintf(format, args...))
}

// adoptListener finds a descriptor of the socket. One that nobody gives us is lost for the next release: the generations that have it
// serve on.
func (s *Supervisor) adoptListener(in inheritance, r ledgerListener, gens []ledgerGeneration) *socket {
	s.listeners.lastID = max(s.listeners.lastID, r.ID)
	k := &socket{as: r.As, fromSystemd: r.Systemd, id: r.ID, recorded: r.Socket}
	f, err := s.findListener(in, r, gens)
	if err == nil {
		if k.Socket, err = sockets.Restore(f, r.Socket); err != nil {
			f.Close()
		}
	}
	if err != nil {
		k.lost, k.Socket = true, &sockets.Socket{Listener: r.Socket.Listener, Addr: r.Socket.Addr}
		if errors.Is(err, errNobodyHasIt) { // it can be bound anew
			return k
		}
		s.lost("listener %s (%s): %v; the generations that have it serve on, a new one cannot have it before they end", r.As.Name, r.Socket.Addr, err)
		return k
	}
	if r.Systemd {
		k.users++ // systemd's own stay open: one user for ever
	}
	s.listeners.open = append(s.listeners.open, k)
	return k
}

func (s *Supervisor) findListener(in inheritance, r ledgerListener, gens []ledgerGeneration) (*os.File, error) {
	if f := in.take(listenerName(r.ID)); f != nil {
		return f, nil
	}
	if r.Systemd {
		for i, f := range s.listeners.passed {
			if f.Name() == r.Socket.Listener.Name {
				s.listeners.passed = slices.Delete(slices.Clone(s.listeners.passed), i, i+1)
				return f, nil
			}
		}
	}
	var errs []error
	for _, g := range gens {
		if !slices.Contains(g.Listeners, r.ID) || !g.Process.Lives() {
			continue
		}
		f, err := sockets.Take(g.Process.Pid, r.Socket)
		if err == nil {
			return f, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errNobodyHasIt
	}
	return nil, errors.New("no descriptor of it was kept; " + joined(errs))
}

var errNobodyHasIt = errors.New("nobody has it")

// joined is one line.
func joined(errs []error) string {
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (s *Supervisor) adoptGeneration(in inheritance, r ledgerGeneration, all map[int]*socket) (*generation, error) {
	g := &generation{number: r.Number, sockets: use(all, r.Listeners), started: r.Started, state: r.State, sampled: -1,
		ready: make(chan struct{}), extend: make(chan time.Duration, 1), gone: make(chan struct{}), retire: make(chan bool, 1),
		saidReady: r.SaidReady, readyAt: r.Ready, draining: r.Draining, deadline: r.Deadline, told: r.Told, failed: r.Failed, text: r.Text,
		handoff: r.Handoff, line: &line{hello: r.Hello}}
	if g.saidReady {
		close(g.ready)
	}
	g.rel = s.adoptRelease(r, g.sockets)
	pidfd := in.take(processName(r.Number))
	var err error
	if g.group, err = procs.Adopt(r.Process, pidfd); pidfd != nil {
		pidfd.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("generation %d: %w", r.Number, err)
	}
	g.goneBefore = g.hasEnded()
	s.adoptLine(in, g)
	if g.env, _, err = s.store.Env(s.opt.Environ, g.rel.Manifest.Spec); err != nil {
		s.lost("the environment of generation %d, for its health checks: %v", g.number, err)
	}
	if !s.opt.Journal && !g.hasEnded() {
		if g.output, err = reopenOutput(g.rel.Version, r.Process.Pid, s.opt.Output, s.printed); err != nil {
			s.lost("the output of generation %d: %v", g.number, err)
		}
	}
	return g, nil
}

// adoptRelease falls back to a release that says nothing but how long its generation may take to stop.
func (s *Supervisor) adoptRelease(r ledgerGeneration, ks []*socket) *store.Release {
	rel, err := s.store.Release(r.Release.Version)
	if err == nil && rel.Digest != r.Release.Digest {
		err = fmt.Errorf("it has digest %.12s, not %.12s", rel.Digest, r.Release.Digest)
	}
	if err == nil && len(rel.Manifest.Spec.Listeners) != len(r.Listeners) {
		err = fmt.Errorf("it has %d listeners, not %d", len(rel.Manifest.Spec.Listeners), len(r.Listeners))
	}
	if err == nil {
		return rel
	}
	s.lost("the manifest of release %s, which generation %d runs: %v; the defaults count", r.Release.Version, r.Number, err)
	m := &release.Manifest{Version: r.Release.Version, Service: s.opt.Config.Service}
	m.Spec.SetDefaults()
	m.Spec.Run.StopAfter = r.StopAfter
	for _, k := range ks {
		m.Spec.Listeners = append(m.Spec.Listeners, k.as)
	}
	return &store.Release{Ref: r.Release, Manifest: m}
}

func (s *Supervisor) adoptLine(in inheritance, g *generation) {
	f := in.take(controlName(g.number))
	if f != nil {
		c, err := control.NewConn(f)
		if err == nil {
			g.line.Conn = c
			return
		}
		s.lost("the control channel of generation %d: %v", g.number, err)
	}
	if g.line.hello != nil && !g.hasEnded() {
		s.lost("the control channel of generation %d: its connections will not move to the next release, they drain", g.number)
	}
}

// adoptUpgrade finds out how far the upgrade in flight had come. One whose outcome is in the history has ended.
func (s *Supervisor) adoptUpgrade(r *ledgerUpgrade) {
	if r == nil {
		return
	}
	if _, err := s.store.FindUpgrade(r.Record.ID); err == nil {
		return
	}
	u := &upgrade{done: make(chan struct{}), record: r.Record, committed: r.Committed, failure: r.Error, gave: s.gens[r.Gave]}
	s.busy, s.legacy.upgrade, s.legacy.generation = u, u, s.gens[r.Record.Generation]
}

// settle puts the descriptors in order, ends what nothing is known of, and tells what was found. Nobody commands us yet.
func (s *Supervisor) settle() {
	if s.legacy.awaited != nil {
		s.legacy.awaited.Write([]byte{1}) // nobody else need end what runs
		s.legacy.awaited.Close()
	}
	os.Remove(announcement(s.opt.Config.RunDir))
	s.do(func() { s.recordNothing = false })
	s.unkeep(s.legacy.stale...)
	if !s.legacy.files[notifyName] {
		s.keep(notifyName, s.notified)
	}
	var gens []*generation
	var open []*socket
	s.do(func() {
		gens, open = s.ordered(), slices.Clone(s.listeners.open)
		s.adopted = s.report()
	})
	for _, k := range open {
		if !k.fromSystemd && !s.legacy.files[listenerName(k.id)] {
			s.keep(listenerName(k.id), k.File)
		}
	}
	for _, g := range gens {
		if pidfd, err := g.group.Pidfd(); err == nil && !s.legacy.files[processName(g.number)] {
			s.keep(processName(g.number), pidfd)
			pidfd.Close()
		}
	}
	for _, line := range s.adopted {
		s.emit(api.Event{Type: api.EventService, Text: line})
	}
	s.endStrays(gens)
	if len(gens) == 0 && s.notify.Enabled() {
		s.store.ClearTmp()
	}
}

// endStrays ends what a launch left that nobody could write down any more, and what somebody else left in our cgroup.
func (s *Supervisor) endStrays(gens []*generation) {
	var known []string
	for _, g := range gens {
		known = append(known, g.group.Cgroup())
	}
	for _, dir := range procs.Strays(s.opt.Cgroup, generationCgroup, known) {
		g := procs.Stray(dir)
		if pids := g.Pids(); len(pids) > 0 {
			s.emit(api.Event{Type: api.EventService, Text: fmt.Sprintf("killing processes that no record tells of: %v in %s", pids[:min(len(pids), 10)], dir)})
		}
		ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
		if err := errors.Join(g.Kill(ctx), g.Remove()); err != nil {
			s.logf("%v", err)
		}
		cancel()
	}
}

// report is what was adopted and what was not, a line each. On the loop.
func (s *Supervisor) report() []string {
	l := s.legacy.from
	if l == nil {
		return nil
	}
	var what []string
	for _, g := range s.ordered() {
		state := g.state
		if g.hasEnded() {
			state = g.group.Exit().String() + " meanwhile"
		}
		what = append(what, fmt.Sprintf("generation %d (%s, %s)", g.number, g.rel.Version, state))
	}
	if n := len(s.listeners.open); n > 0 {
		what = append(what, plural(n, "listener"))
	}
	if u := s.legacy.upgrade; u != nil {
		what = append(what, fmt.Sprintf("the %s of %s in phase %s", u.record.Kind, u.record.To.Version, u.record.Phase))
	}
	if len(what) == 0 {
		return s.legacy.lines
	}
	first := fmt.Sprintf("went on from the supervisor before (%s, pid %d) with %s", l.Daemon, l.PID, strings.Join(what, ", "))
	return append([]string{first}, s.legacy.lines...)
}

// resume lets what was adopted go on: generations are watched and seen off, the upgrade in flight is finished or undone.
func (s *Supervisor) resume() {
	s.do(func() {
		s.listeners.release(s.legacy.spare)
		s.legacy.spare = nil
		for _, g := range s.ordered() {
			s.resumeGeneration(g)
		}
		if u, g := s.legacy.upgrade, s.legacy.generation; u != nil && g != nil && !u.committed && s.isCommitted(u) {
			s.promote(u, g, s.listeners.share(g.sockets))
		}
		for _, g := range s.ordered() {
			s.background(func() { s.watch(g) })
		}
		if s.stopping == nil && !s.running() && len(s.gens)+len(s.held) > 0 {
			s.resumeStop()
		}
		if u := s.legacy.upgrade; u != nil {
			u.ctx, u.cancel = context.WithCancelCause(s.ctx)
			s.background(func() { s.resumeUpgrade(u, s.legacy.generation) })
		}
	})
}

// resumeGeneration goes on with g's end, if that had begun. On the loop.
func (s *Supervisor) resumeGeneration(g *generation) {
	spec := g.rel.Manifest.Spec
	stop := time.Duration(spec.Run.StopAfter)
	if g.failed {
		s.background(func() {
			select {
			case <-g.gone:
				<-s.withdrawLater(g.rel.Ref)
			case <-s.ctx.Done():
			}
		})
	}
	switch {
	case g.hasEnded():
	case g.state == api.GenDraining:
		s.tell(g) // if the word did not get out any more
		s.background(func() { s.seeOff(g) })
	case g.state == api.GenStopping && g.draining != nil:
		s.background(func() { s.closeRest(g, time.Duration(spec.Drain.Spread), stop, "was being closed") })
	case g.state == api.GenStopping:
		s.background(func() { s.end(g, stop) })
	}
}

// resumeStop goes on with an operator's stop, which is on the disk. On the loop.
func (s *Supervisor) resumeStop() {
	mine := &stopping{by: s.state.Stopped.By, since: time.Now(), done: make(chan struct{})}
	s.stopping = mine
	s.background(func() {
		s.endAll(false)
		s.do(func() {
			s.listeners.release(s.held)
			s.held, s.stopping = nil, nil
			s.ensure()
		})
		close(mine.done)
	})
}

// resumeUpgrade finishes the upgrade that an earlier supervisor was at, where that is known to be safe, or undoes it.
func (s *Supervisor) resumeUpgrade(u *upgrade, g *generation) {
	u.phased = time.Now()
	at := s.copyOf(u).Phase
	s.emit(api.Event{Type: api.EventUpgrade, Upgrade: s.copyOf(u), Text: ""})
	interrupted := api.ErrInternal.With(fmt.Sprintf("the supervisor ended during the %s of %s, in phase %s", u.record.Kind, u.record.To.Version, at))
	interrupted.Hint = "try it again"
	var err error
	if at != api.PhaseStart && at != api.PhaseReady && g != nil { // else the handoff takes it
		if err = s.moving.take(u.ctx); err == nil {
			u.moves = true
		}
	}
	switch {
	case err != nil:
	case u.failure != nil:
		err = u.failure
	case u.committed:
	case at == api.PhaseHandoff && g != nil && !g.hasEnded() && u.gave != nil && u.gave.hasEnded(): // the new one has whatever there was
		s.letIn(g)
		err = s.onward(u, g, api.PhaseSoak)
	case g == nil, at == api.PhaseHandoff, at == api.PhaseStart && g.hasEnded():
		err = interrupted
	case at == api.PhaseStart:
		err = s.onward(u, g, api.PhaseReady)
	default:
		err = s.onward(u, g, at)
	}
	s.finish(u, g, err)
}

// isCommitted tells whether the disk has u's release as the one that boots, because of u. On the loop.
func (s *Supervisor) isCommitted(u *upgrade) bool {
	return s.state.Upgrade != nil && s.state.Upgrade.ID == u.record.ID && s.state.Upgrade.Phase == api.PhaseCommit
}
