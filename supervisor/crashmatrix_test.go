package supervisor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/testdata/load"
)

// scene is what goes on while somebody is killed.
type scene string

const (
	pushing   scene = "push"
	failing   scene = "failed push"  // the release fails its soak, so that it is taken back
	adopting  scene = "adopt"        // the supervisor was killed in the soak, and the next one comes to the step
	replacing scene = "self-upgrade" // old is the generation that serves, new the supervisor to come
)

// victim is who is killed.
type victim string

const (
	theSupervisor victim = "supervisor"
	theOld        victim = "old"
	theNew        victim = "new"
	theCommand    victim = "command"
	oldToo        victim = "old too" // and the supervisor
	newToo        victim = "new too"
)

var victims = []victim{theSupervisor, theOld, theNew, theCommand, oldToo, newToo}

// What became of it. Beside these there are the outcomes of upgrades.
const (
	neverBegun  = "never begun" // nobody was told that it began
	nobody      = "-"           // there is none of that kind at that step
	alreadyGone = "(had ended)" // by itself
	stayed      = "stayed"      // the supervisor
	replaced    = "replaced"    // by the new one
	restarted   = "restarted"   // as after any crash
)

var (
	unbegun   = []string{neverBegun}
	undone    = []string{string(api.NothingChanged), string(api.RolledBack)}
	finished  = []string{string(api.Done)}
	takenBack = []string{string(api.RolledBack)}
	either    = slices.Concat(undone, finished)
)

// step is an instruction at which somebody is killed, and what may be true then of an upgrade in which it was: of the supervisor, the old one, the new
// one, the command. A nil list: there is none of that kind at that moment. Behind a name + is for both, ? for late.
type step struct {
	scene scene
	name  string
	may   [4][]string
	both  bool // the supervisor is killed with a generation, too
	late  bool // the generation that leaves may have ended
}

func rows(sc scene, supervisor, old, new, command []string, names ...string) (list []step) {
	for _, name := range names {
		name, both := strings.CutSuffix(name, "+")
		name, late := strings.CutSuffix(name, "?")
		list = append(list, step{sc, name, [4][]string{supervisor, old, new, command}, both, late})
	}
	return list
}

// steps are all of them, in their order.
var steps = slices.Concat(
	// upload and its verification
	rows(pushing, unbegun, finished, nil, unbegun, "write manifest.json", "receiving", "received", "parts", "rebuilt", "arrived", "dirs", "placed", "sync", "publish", "published", "synced"),
	// verify
	rows(pushing, []string{neverBegun, string(api.NothingChanged)}, finished, nil, finished, "verify"),
	rows(pushing, undone, finished, nil, finished, "verified", "start"),
	// start, ready, handoff, soak
	rows(pushing, undone, finished, either, finished, "born", "recorded"), // not yet the app: it is launched once more
	rows(pushing, finished, finished, undone, finished, "started", "ready+"),
	rows(pushing, undone, finished, undone, finished, "handoff", "handed over+"),
	rows(pushing, finished, finished, undone, finished, "soak+", "soaked", "commit"),
	// commit, drain
	rows(pushing, finished, finished, finished, finished, "committed+", "drain", "told?", "promoted?", "current?", "pointed?", "conclude?", "append?", "in history?", "remembered?"),
	rows(pushing, finished, finished, finished, nil, "prune?", "removing?", "pruned?"),

	rows(failing, takenBack, undone, takenBack, takenBack, "take back", "hand back", "drain", "told?", "conclude?", "in history?", "remembered?"),
	rows(failing, takenBack, undone, nil, nil, "withdraw", "kept", "withdrawn"),

	rows(adopting, finished, finished, undone, finished, "inherited", "settled", "adopted", "resumed"),

	rows(replacing, []string{restarted}, []string{replaced}, nil, []string{replaced}, "replace"),
	rows(replacing, []string{restarted}, []string{replaced}, []string{stayed}, []string{replaced}, "inherited", "proving"),
	rows(replacing, []string{restarted}, []string{replaced}, []string{restarted}, []string{replaced}, "proved", "main pid"),
	rows(replacing, []string{replaced}, []string{replaced}, []string{restarted}, []string{replaced}, "gone"),
	rows(replacing, nil, []string{replaced}, []string{restarted}, nil, "settled", "resumed"),
)

// allowed is nil where nobody of that kind is there.
func (at step) allowed(v victim) []string {
	if i := slices.Index(victims, v); i < len(at.may) {
		return at.may[i]
	}
	if at.both {
		return either
	}
	return nil
}

// matrix is what was tried.
type matrix struct {
	mu    sync.Mutex
	cells map[string]string
}

func (m *matrix) note(at step, v victim, what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cells[fmt.Sprint(at.scene, at.name, v)] = what
}

func (m *matrix) String() string {
	var b strings.Builder
	line := func(scene, name string, cell func(v victim) string) {
		text := fmt.Sprintf("%-13s %-20s", scene, name)
		for _, v := range victims {
			text += fmt.Sprintf(" %-16s", cell(v))
		}
		fmt.Fprintln(&b, strings.TrimRight(text, " "))
	}
	line("during", "killed at | who:", func(v victim) string { return string(v) })
	for _, at := range steps {
		line(string(at.scene), at.name, func(v victim) string {
			if what, tried := m.cells[fmt.Sprint(at.scene, at.name, v)]; tried || at.allowed(v) != nil {
				return what
			}
			return nobody
		})
	}
	fmt.Fprintf(&b, "%d tried; after each one: the service answers, one release is committed, nothing is left over, and no connection was lost but those of a killed app\n", len(m.cells))
	return b.String()
}

// matrixRigs is how many services are deployed to at the same time; most of the time they wait for each other's processes.
const matrixRigs = 4

// TestCrashMatrix kills, at each step, one after the other: the supervisor (and then the next one, as soon as it has taken over), the old generation,
// the new one, the command that asked, and at some both a generation and the supervisor. Every time it happens under load.
func TestCrashMatrix(t *testing.T) {
	type try struct {
		at step
		v  victim
	}
	tries := make(chan try, len(steps)*len(victims))
	for _, at := range steps {
		for _, v := range victims {
			if at.allowed(v) != nil {
				tries <- try{at, v}
			}
		}
	}
	close(tries)
	m := &matrix{cells: map[string]string{}}
	var rigs []*crashRig
	for range matrixRigs {
		rigs = append(rigs, newMatrixRig(t))
	}
	var wg sync.WaitGroup
	for i := range rigs {
		wg.Go(func() {
			for c := range tries {
				r := rigs[i]
				ok := t.Run(fmt.Sprintf("%s, %s, %s", c.at.scene, c.at.name, c.v), func(t *testing.T) {
					r.t = t
					m.note(c.at, c.v, "FAILED")
					m.note(c.at, c.v, r.try(c.at, c.v))
				})
				if r.t = t; !ok { // what it left would be taken for the next one's
					r.destroy()
					rigs[i] = newMatrixRig(t)
				}
			}
		})
	}
	wg.Wait()
	for _, r := range rigs { // before any of them looks at what is left in this process
		r.endAll()
	}
	fmt.Println(m)
}

// newMatrixRig is a service with so many releases that each push removes one.
func newMatrixRig(t *testing.T) *crashRig {
	r := newCrashRig(t, crashModes[0])
	for range 3 {
		r.carryOut(r.draft(r.nextVersion()))
	}
	return r
}

func (r *crashRig) nextVersion() string {
	r.serial++
	return fmt.Sprint(r.serial)
}

// carryOut lets a command do what it can.
func (r *crashRig) carryOut(o *order) {
	r.t.Helper()
	if err := o.carryOut(r.ctx()); err != nil {
		r.t.Errorf("the command fails: %v", err)
	}
}

// unhealthy lets a release fail its soak.
func unhealthy(s *release.Spec) {
	env("WSLIVE_UNHEALTHY", "1")(s)
	s.Health = &release.Health{Probe: release.Probe{Check: release.CheckHTTP, Path: "/healthz"}, Interval: release.Duration(20 * time.Millisecond),
		Timeout: release.Duration(5 * time.Second), Failures: 2}
	s.Soak.Duration = release.Duration(time.Minute)
}

func (r *crashRig) orderFor(sc scene) *order {
	switch sc {
	case replacing:
		return &order{RunDir: r.cfg.RunDir, Replace: true}
	case failing:
		return r.draft(r.nextVersion(), unhealthy)
	}
	return r.draft(r.nextVersion())
}

// try kills v at a step and returns what became of it, after the audit.
func (r *crashRig) try(at step, v victim) string {
	r.rests()
	before := r.status()
	l, err := load.Start(r.ctx(), load.Options{Addr: r.addr, WebSockets: 10, NewConnsPerSecond: 20, MessageInterval: 100 * time.Millisecond,
		RequestTimeout: 30 * time.Second, Held: load.MayMove})
	if err == nil {
		err = l.Ready(r.ctx())
	}
	if err != nil {
		r.t.Fatal(err)
	}
	o := r.orderFor(at.scene)
	if at.scene == adopting {
		r.arm("soak", "stop")
	} else {
		r.arm(at.name, "stop")
	}
	c := r.issue(o, v == theCommand)
	defer c.stop()
	stopped := r.struck(c)
	if at.scene == adopting {
		r.killAll([]int{stopped})
		r.arm(at.name, "stop")
		r.spawn()
		stopped = r.struck(c)
	}
	pids, held := r.victims(v, before.Generations[0].Number, stopped, c)
	if len(pids) == 0 && at.late && (v == theOld || v == theNew) {
		held = nobodyKilled
	} else if len(pids) == 0 {
		r.t.Fatalf("there is no %s to be killed", v)
	}
	r.successor = append(r.otherDaemons(), 0)[0]
	r.killAll(pids)
	if v == theSupervisor && at.scene != replacing {
		r.arm("resumed", "kill")
	}
	if !slices.Contains(pids, stopped) {
		if err := syscall.Kill(stopped, syscall.SIGCONT); err != nil {
			r.t.Fatal(err)
		}
	}
	// A replacement goes on without the command that asked for it: whoever killed that one has to wait until it has begun.
	alone := at.scene == replacing && v == theCommand
	for limit := time.Now().Add(30 * time.Second); !c.hasEnded() || alone && r.answersAs(before.Daemon.PID); r.asSystemd() {
		if time.Now().After(limit) {
			r.t.Fatalf("the command has not ended (%v), or nothing became of it", c.hasEnded())
		}
		<-time.After(2 * time.Millisecond)
	}
	became := r.became(at.scene, o, before)
	r.noticed(l, max(held, 0))
	if !slices.Contains(at.allowed(v), became) {
		r.t.Errorf("it was %s, may be %q", became, at.allowed(v))
	}
	want := before.Committed.Version
	if became == string(api.Done) {
		want = o.Version
	}
	r.consistent(want)
	if at.scene == pushing && became != string(api.Done) || became == restarted || became == stayed { // and the same command works
		again := r.status()
		r.carryOut(o)
		if became = became + ", again " + r.became(at.scene, o, again); !strings.HasSuffix(became, "again done") && !strings.HasSuffix(became, "again replaced") {
			r.t.Error(became)
		}
		became, _, _ = strings.Cut(became, ",")
	}
	if at.scene == replacing {
		r.endAfterReplacing(r.status().Daemon.PID)
	}
	if held == nobodyKilled {
		return alreadyGone
	}
	return became
}

const nobodyKilled = -1 // instead of a number of connections

// became waits until nothing is in flight and tells what was made of the command.
func (r *crashRig) became(sc scene, o *order, before api.Status) string {
	r.t.Helper()
	st := r.quiet()
	if sc == replacing {
		for daemons, _ := r.processes(); len(daemons) != 1; daemons, _ = r.processes() { // the old one may still answer
			r.asSystemd()
			<-time.After(5 * time.Millisecond)
		}
		switch st = r.quiet(); st.Daemon.PID {
		case before.Daemon.PID:
			return stayed
		case r.cmd.Process.Pid:
			return restarted
		}
		return replaced
	}
	list, err := r.client.History(r.ctx(), 10)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, u := range list {
		if u.Kind == api.KindPush && u.To.Version == o.Version {
			return string(u.Outcome)
		}
	}
	return neverBegun
}

// rests waits until no release is being removed any more, or a daemon would come to its step for an upgrade that is long over.
func (r *crashRig) rests() {
	r.t.Helper()
	_, err := r.client.Upgrade(r.ctx(), api.UpgradeRequest{Kind: api.KindRollback, Version: "none", By: "tester"})
	if !errors.Is(err, api.ErrNotFound) { // which is found out after that
		r.t.Fatalf("roll back to a release that is not there: %v", err)
	}
}

// answersAs tells whether it is this daemon that still answers.
func (r *crashRig) answersAs(pid int) bool {
	st, err := r.client.Status(r.ctx())
	return err == nil && st.Daemon.PID == pid
}

// quiet waits until one generation serves, and nothing else goes on.
func (r *crashRig) quiet() (st api.Status) {
	r.t.Helper()
	err := errors.New("nothing")
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); <-time.After(5 * time.Millisecond) {
		if st, err = r.client.Status(r.ctx()); err == nil && st.Upgrade == nil && st.State == api.StateServing && isAlive(st.Daemon.PID) {
			return st
		}
		r.asSystemd()
	}
	r.t.Fatalf("it does not serve again: %s, %v", st.Text, err)
	return st
}

// noticed looks at what the clients have seen. So many connections were in processes that were killed.
func (r *crashRig) noticed(l *load.Load, held int) {
	r.t.Helper()
	report := l.Stop(r.ctx())
	if held == 0 {
		if err := report.Err(); err != nil {
			r.t.Error(err)
		}
		return
	}
	lost := report.Closed + int(report.RequestsFailed)
	if lost > held || report.Kept+report.Closed != report.Total || report.RequestsDue+report.Doubled+report.Reordered+report.Miscounted+report.Wrong > 0 {
		r.t.Errorf("%d connections were in what was killed, and %v", held, report.Err())
	}
}
