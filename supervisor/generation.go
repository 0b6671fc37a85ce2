package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/failpoint"
	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
	"github.com/hotdeploy/hotdeploy/systemd"
	"github.com/hotdeploy/hotdeploy/upgrade/control"
)

// generationCgroup is how the cgroup of a generation begins; its number follows.
const generationCgroup = "generation-"

// generation is one running instance of a release.
type generation struct {
	number  int
	rel     *store.Release
	group   *procs.Group
	env     []string
	sockets []*socket // lent to it
	output  *output   // its last lines; nil where they go to the journal
	line    *line     // its control channel
	takes   string    // in which mode another one is to give it connections; "": there is none

	goneBefore bool // its main process had ended when it was adopted
	started    time.Time
	oomBefore  *int64 // oomKills when it was started, if it was us who started it and the kernel tells

	ready  chan struct{}      // closed at READY=1
	extend chan time.Duration // EXTEND_TIMEOUT_USEC, the newest; capacity one
	gone   chan struct{}      // closed when no process of it is left and its sockets are returned

	// owned by the loop
	saidReady   bool
	told        bool // to finish, by SIGTERM
	saidEnd     bool // its end has been told
	failed      bool // its upgrade was taken back
	saidAccepts bool // that it goes on accepting
	sampled     int  // connections at the last look while it drains; -1: unknown
	state       string
	readyAt     *time.Time
	draining    *time.Time
	deadline    *time.Time
	retire      chan bool // an operator ends the drain; true: at once
	text        string
	health      string
	handoff     *api.Handoff // when it gave its connections away, the last time
	taken       *api.Handoff // when it got some, the last time
}

// start runs rel as a new generation and watches it. The caller owns s.busy. The listeners that the release adds are bound
// first; if anything fails they are closed again and nothing has changed.
func (s *Supervisor) start(u *upgrade, rel *store.Release) (*generation, error) {
	mode, err := s.giving(u, rel)
	if err != nil {
		return nil, err
	}
	lent, err := s.lend(rel.Manifest.Spec.Listeners)
	if err != nil {
		return nil, err
	}
	g := &generation{takes: mode, number: u.number, rel: rel, sockets: lent, started: time.Now(), state: api.GenStarting, sampled: -1,
		ready: make(chan struct{}), extend: make(chan time.Duration, 1), gone: make(chan struct{}), retire: make(chan bool, 1)}
	if kills, err := oomKills(); err == nil {
		g.oomBefore = &kills
	}
	failpoint.At("start")
	if err := s.launch(u, g); err != nil {
		s.unkeep(processName(g.number), controlName(g.number))
		s.do(func() {
			delete(s.gens, g.number)
			s.listeners.release(g.sockets)
		})
		return nil, err
	}
	s.background(func() { s.watch(g) })
	failpoint.At("started")
	s.emit(api.Event{Type: api.EventGeneration, Generation: g.number, Text: fmt.Sprintf("generation %d (%s) started, pid %d", g.number, rel.Version, g.group.Pid())})
	return g, nil
}

// born makes g one of the living, for us and for whoever comes after us. Only then does its process become the app. What serves
// already must be restarted even if nothing can be written down.
func (s *Supervisor) born(u *upgrade, g *generation, group *procs.Group) error {
	g.group = group
	pidfd, err := group.Pidfd()
	if err != nil {
		return err
	}
	defer pidfd.Close()
	s.keep(processName(g.number), pidfd)
	s.keep(controlName(g.number), g.line)
	failpoint.At("born")
	s.do(func() {
		u.record.Generation = g.number
		s.gens[g.number] = g
		if err = s.record(); u.record.Kind == api.KindStart {
			err = nil
		}
	})
	failpoint.At("recorded")
	return err
}

// launch makes the process. Its environment is the unit's, the release's and the host's env file: nothing of the
// generation before.
func (s *Supervisor) launch(u *upgrade, g *generation) error {
	spec := g.rel.Manifest.Spec
	fromFiles, warnings, err := s.store.Env(s.opt.Environ, spec)
	if err != nil {
		return api.ErrEnvironment.With(err.Error())
	}
	for _, w := range warnings {
		s.logf("%s", w)
	}
	out, stream, err := s.openOutput(g)
	if err != nil {
		return fmt.Errorf("open the output of generation %d: %w", g.number, err)
	}
	defer stream.Close()
	g.output = out

	names := make([]string, len(g.sockets))
	files := make([]*os.File, len(g.sockets))
	for i, k := range g.sockets {
		names[i], files[i] = spec.Listeners[i].Name, k.File
	}
	g.env = append(fromFiles,
		"HOTDEPLOY_VERSION="+g.rel.Version,
		"HOTDEPLOY_GENERATION="+strconv.Itoa(g.number),
		"HOTDEPLOY_RELEASE="+g.rel.FilesDir,
		"NOTIFY_SOCKET="+s.notified.Path(),
	)
	env := g.env
	if len(files) > 0 {
		env = append(env[:len(env):len(env)], "LISTEN_FDS="+strconv.Itoa(len(files)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	if s.opt.Journal {
		if v, err := systemd.JournalStreamEnv(stream); err == nil {
			env = append(env, "JOURNAL_STREAM="+v)
		}
	}
	l, theirs, err := openLine()
	if err != nil {
		stream.Close() // its end of file is what the relay waits for
		out.close()
		return fmt.Errorf("make the control channel of generation %d: %w", g.number, err)
	}
	defer theirs.Close()
	g.line = l
	if g.takes != "" {
		env = append(env[:len(env):len(env)], control.EnvTakes+"="+g.takes)
	}
	env = append(env[:len(env):len(env)], control.Env+"="+strconv.Itoa(3+len(files))) // behind the listeners
	files = append(files, theirs)
	command := spec.Run.Command
	_, err = procs.Launch(procs.Spec{
		Helper: s.opt.Helper, Name: fmt.Sprint(generationCgroup, g.number), Cgroup: s.opt.Cgroup,
		Path: procs.Find(command[0], g.rel.FilesDir, env), Args: command, Env: env, Dir: g.rel.FilesDir,
		Files: files, Stdout: stream, Stderr: stream,
		Born: func(group *procs.Group) error { return s.born(u, g, group) },
	})
	if err != nil {
		l.close()
		stream.Close()
		out.close()
		return launchError(command[0], err)
	}
	return nil
}

func launchError(command string, err error) error {
	if e := cmp.Or(shortage(err), noProcess(err)); e != nil {
		return e
	}
	e := api.ErrStart.With(fmt.Sprintf("cannot start %s: %v", command, err))
	var exec *procs.ExecError
	if errors.As(err, &exec) {
		switch {
		case errors.Is(err, os.ErrNotExist):
			e.Hint = "check run.command in hotdeploy.toml, and that pack.files contains it"
		case errors.Is(err, os.ErrPermission):
			e.Hint = "make it executable and push again: chmod +x " + command
		}
	}
	return e
}

// watch waits for the end of g's main process, ends what it left behind, and returns its sockets.
func (s *Supervisor) watch(g *generation) {
	<-g.group.Done()
	s.do(func() { s.exited(g) })
	if err := s.killRest(g); err != nil {
		s.logf("generation %d: processes are left: %v", g.number, err)
	}
	if err := g.group.Remove(); err != nil {
		s.logf("generation %d: %v", g.number, err)
	}
	g.output.close()
	g.line.close()
	s.unkeep(processName(g.number), controlName(g.number))
	s.do(func() {
		delete(s.gens, g.number)
		s.listeners.release(g.sockets)
		close(g.gone)
		s.refreshStatusText()
	})
}

// killRest ends what g's main process left behind. What cannot be done for want of descriptors, say, is tried until it can.
func (s *Supervisor) killRest(g *generation) error {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
		err := g.group.Kill(ctx)
		cancel()
		if shortage(err) == nil {
			return err
		}
		select {
		case <-time.After(time.Second):
		case <-s.ctx.Done():
			return err
		}
	}
}

// killTimeout is how long SIGKILL may take: a process in an uninterruptible wait ends only when the kernel lets it.
const killTimeout = 10 * time.Second

// exited is called on the loop when g's main process has ended. An upgrade that waits for g sees it by itself. One that was
// told to stop has not crashed.
func (s *Supervisor) exited(g *generation) {
	crashed := s.serving == g && g.state != api.GenStopping
	typ := api.EventGeneration
	if crashed {
		typ = api.EventService
	}
	if !g.saidEnd {
		g.saidEnd = true
		text := fmt.Sprintf("generation %d (%s) %s", g.number, g.rel.Version, g.group.Exit())
		if g.goneBefore {
			text += " while no supervisor ran"
		}
		s.emit(api.Event{Type: typ, Generation: g.number, Text: text})
	}
	if crashed {
		s.crashes++
		s.keeper.crashed(time.Now())
	}
	if s.serving == g {
		s.serving = nil
	}
	s.ensure()
}

// hasEnded tells whether the main process has.
func (g *generation) hasEnded() bool {
	select {
	case <-g.group.Done():
		return true
	default:
		return false
	}
}

// journalIdentifier is under which name the output of a release is found in the journal (journalctl -t).
func journalIdentifier(service, version string) string { return service + "/" + version }

// openOutput is where g's standard output and error go: straight to the journal, so that they survive the supervisor, or
// without one through a relay that keeps the last lines. The caller closes the file when the process has it.
func (s *Supervisor) openOutput(g *generation) (*output, *os.File, error) {
	if !s.opt.Journal {
		return newOutput(g.rel.Version, s.opt.Output, s.printed)
	}
	f, err := systemd.OpenJournalStream(journalIdentifier(s.opt.Config.Service, g.rel.Version), journal.PriInfo)
	if err == nil {
		return nil, f, nil
	}
	// The app must come up all the same; its lines are then among ours, which journald took when it was well.
	s.logf("generation %d prints to the supervisor's own output: %v", g.number, err)
	f, err = dup(s.opt.Output)
	return nil, f, err
}
