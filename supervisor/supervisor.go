package supervisor

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/bundle"
	"github.com/hotdeploy/hotdeploy/internal/config"
	"github.com/hotdeploy/hotdeploy/internal/failpoint"
	"github.com/hotdeploy/hotdeploy/internal/procs"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/internal/sockets"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
	"github.com/hotdeploy/hotdeploy/systemd"
)

// Options is what the daemon's main knows and the supervisor needs.
type Options struct {
	Config  config.Daemon
	Version string      // of the daemon
	Helper  []string    // argv of the launch helper
	Cgroup  string      // in which directory generations get theirs; empty: the one that is delegated to us, if any
	Sockets []*os.File  // passed by systemd, named; the supervisor closes them
	Environ []string    // the unit's environment, without what systemd meant for the daemon alone
	Journal bool        // the app's output goes straight to the journal
	Output  *os.File    // else it is relayed here; not closed
	Log     *log.Logger // one line for each event
	Stored  []*os.File  // what systemd's fd store kept for us; the supervisor closes them

	Flip *Flip // how another supervisor takes over; nil: none does
}

// Supervisor is one service on one machine. Make it with New, run it with Run.
type Supervisor struct {
	opt          Options
	store        *store.Store
	notify       systemd.Notifier
	bind         func(l release.Listener, runDir string) (*sockets.Socket, error) // sockets.Bind
	notified     *systemd.NotifySocket
	started      time.Time
	bootID       string
	events       *eventLog
	teller       *teller
	printed      *printed // without a journal
	patience     patience
	sample       time.Duration     // usualSample
	step         func(name string) // an instruction at which tests interfere; it does nothing
	large        chan struct{}     // one for each request that may be a large one
	followers    followers
	control      *net.UnixListener // where commands come from
	leaving      func()            // ends Run
	inheritedAPI *os.File          // the control socket of the supervisor before this one
	legacy       legacy            // what an earlier supervisor left, until Run has settled it
	moving       turn              // who has it may move connections

	unkeepMu sync.Mutex // held while systemd closes listeners, so that an address is free afterwards
	stuckMu  sync.Mutex // protects stuck; it is held while systemd is told
	stuck    []string   // what systemd keeps and should not any more
	stateMu  sync.Mutex // serialises changes of the state file; it is held while the file is written, and nothing else waits for it

	calls   chan func()
	stopped chan struct{}   // closed when the loop has ended
	ctx     context.Context // ends when Run is asked to end; everything started here stops with it
	wg      sync.WaitGroup  // goroutines other than the loop
	wgMu    sync.Mutex      // protects ending; nothing blocks under it
	ending  bool            // wg is being waited for

	handoffs      atomic.Int64  // numbers them
	handoffWithin time.Duration // handoffTimeout

	// owned by the loop
	state         store.State
	gens          map[int]*generation
	serving       *generation
	listeners     *listenerSet
	held          []*socket // the committed release's, so that clients can wait in the queue while no generation runs
	busy          *upgrade  // in flight
	last          *api.Upgrade
	stopping      *stopping       // an operator's stop under way
	pruning       <-chan struct{} // closed when old releases have been removed; nil: nobody removes any
	keeper        keeper
	replacing     string   // who replaces this daemon by another one; nothing begins meanwhile
	successor     int      // to whom everything was left
	closed        []string // listeners that systemd still keeps
	startFailure  string   // why the last start failed; empty since something serves
	recorded      []byte   // the ledger as it was written last
	recordFailure string   // why it could not be, the last time
	recordNothing bool     // before Run, and when another supervisor has taken over
	adopted       []string // what was found at the start, in lines for people
	counts        map[upgradeCount]int
	crashes       int
	moved         int // connections, since the start
	refused       int
	kept          map[string]int
	longestPause  time.Duration // of the last handoff
	text          string        // the status text as systemd knows it
}

// New takes the service's folders under its lock. A second daemon for the same service gets store.ErrLocked, a damaged state
// file store.ErrStateDamaged; both tell what to type. Call Run next; it releases what New took.
func New(opt Options) (_ *Supervisor, err error) {
	in := newInheritance(opt.Stored)
	st, err := store.OpenLocked(opt.Config.Root, opt.Config.Service, in.take(lockName))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			st.Close()
		}
	}()
	st.Warn = func(err error) { opt.Log.Print(err) }
	s := &Supervisor{
		opt: opt, store: st, bind: sockets.Bind, started: time.Now(), events: newEventLog(), teller: newTeller(), printed: newPrinted(),
		patience: usualPatience, sample: usualSample, handoffWithin: handoffTimeout, step: func(string) {}, large: make(chan struct{}, maxLarge), moving: make(turn, 1),
		calls: make(chan func()), stopped: make(chan struct{}), gens: map[int]*generation{}, counts: map[upgradeCount]int{}, kept: map[string]int{},
		keeper: keeper{policy: defaultRestart()}, recordNothing: true,
	}
	s.listeners = newListenerSet(opt.Config.RunDir, opt.Sockets, func(k *socket) {
		s.emit(api.Event{Type: api.EventService, Text: fmt.Sprintf("closed listener %s (%s)", k.as.Name, k.Addr)})
		s.closed = append(s.closed, listenerName(k.id))
		s.background(s.unkeepClosed)
	})
	if s.state, err = st.LoadState(); err != nil {
		return nil, err
	}
	if s.bootID, err = store.BootID(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opt.Config.RunDir, 0o750); err != nil {
		return nil, fmt.Errorf("make the run directory: %w", err)
	}
	s.inheritedAPI = in.take(apiName)
	if err := s.adopt(in); err != nil {
		return nil, err
	}
	failpoint.At("inherited")
	return s, nil
}

// Run serves the control API and supervises until ctx ends; then it ends every generation in order and returns. The
// service counts as started (READY=1) as soon as the control socket answers and the committed release's
// listeners are bound: from then on a client waits in the queue at worst.
func (s *Supervisor) Run(ctx context.Context) error {
	defer s.store.Close()
	defer func() {
		if s.successor != 0 {
			s.notified.Abandon()
		} else {
			s.notified.Close()
		}
	}()
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithCancel(ctx)
	defer cancel()
	s.leaving = cancel

	reserveThreads()
	control, err := s.listenControl()
	if err != nil {
		return err
	}
	s.background(s.readNotifications)
	loopCtx, endLoop := context.WithCancel(context.Background())
	go s.loop(loopCtx)
	told := make(chan struct{})
	go func() {
		defer close(told)
		s.teller.run(loopCtx.Done(), s.logf)
	}()
	s.settle()
	failpoint.At("settled")
	s.recoverUpgrade()
	if s.legacy.from == nil { // else whoever pushed them may still be there, and is about to ask for the upgrade
		s.withdrawLeftovers()
	}
	s.bindCommitted()
	failpoint.At("adopted")
	s.resume()
	failpoint.At("resumed")
	st := s.status()
	s.notify.Ready(st.Text)
	s.sayCgroup()
	if s.opt.Flip != nil && !s.opt.Flip.Follows() { // before anybody can ask to replace this one
		if err := s.opt.Flip.alone(); err != nil {
			s.logf("%v", err)
		}
	}
	server := s.serveControl(control)
	s.do(s.ensure)

	<-s.ctx.Done()
	successor := 0
	s.do(func() { successor = s.successor })
	if successor != 0 { // what runs is that one's
		server.shutdown()
		endLoop()
		<-s.stopped
		<-told
		return s.leaveToSuccessor(successor)
	}
	s.notify.Stopping("stopping")
	s.shutdown()
	server.shutdown()
	s.notified.Close() // ends readNotifications
	s.wait()
	endLoop()
	<-s.stopped
	<-told
	return nil
}

// sayCgroup tells why generations have no cgroups of their own, if they have none: who leaves its session then is found less surely.
func (s *Supervisor) sayCgroup() {
	if s.opt.Cgroup != "" {
		return
	}
	if _, err := procs.Delegated(); err != nil {
		s.logf("generations get no cgroup each, their processes are found by session: %v", err)
	}
}

// loop is the one goroutine that owns the state. It feeds systemd's watchdog, so that a stuck loop is noticed.
func (s *Supervisor) loop(ctx context.Context) {
	defer close(s.stopped)
	var feed <-chan time.Time
	if every, err := systemd.WatchdogInterval(); err == nil && every > 0 {
		t := time.NewTicker(every)
		defer t.Stop()
		feed = t.C
	}
	for {
		select {
		case f := <-s.calls:
			f()
		case <-feed:
			s.teller.watchdog()
		case <-ctx.Done():
			return
		}
	}
}

// do runs f on the loop and waits for it. Never call it from the loop, and do nothing in f that may block.
func (s *Supervisor) do(f func()) {
	done := make(chan struct{})
	select {
	case s.calls <- func() { defer close(done); f(); s.record() }:
		<-done
	case <-s.stopped:
	}
}

// background starts f, which must end soon after s.ctx does or when what it watches has ended. When Run already waits for the
// last ones nothing is started any more: nobody would wait for it.
func (s *Supervisor) background(f func()) (started bool) {
	s.wgMu.Lock()
	defer s.wgMu.Unlock()
	if !s.ending {
		s.wg.Go(f)
	}
	return !s.ending
}

// enter is for what is called from outside, and tells whether that may still begin; wg.Done goes with it.
func (s *Supervisor) enter() bool {
	s.wgMu.Lock()
	defer s.wgMu.Unlock()
	if !s.ending {
		s.wg.Add(1)
	}
	return !s.ending
}

// wait lets nothing begin any more and waits until all has ended.
func (s *Supervisor) wait() {
	s.wgMu.Lock()
	s.ending = true
	s.wgMu.Unlock()
	s.wg.Wait()
}

// after calls f on the loop when d has passed, unless the returned function is called before, on the loop, or the supervisor
// ends.
func (s *Supervisor) after(d time.Duration, f func()) (cancel func()) {
	cancelled := false // owned by the loop
	t := time.AfterFunc(d, func() {
		s.do(func() {
			if !cancelled {
				f()
			}
		})
	})
	return func() { cancelled = true; t.Stop() }
}

// changeState writes a changed state to disk, then makes it the current one. On an error nothing has changed.
func (s *Supervisor) changeState(change func(*store.State)) error {
	s.stateMu.Lock()
	defer s.stateMu.Unlock()
	var next store.State
	left := false
	s.do(func() { next, left = s.state, s.successor != 0 })
	if left {
		return api.ErrStopping.With("this daemon has made way for another one")
	}
	change(&next)
	if err := s.store.SaveState(next); err != nil {
		return err
	}
	s.do(func() { s.state = next })
	return nil
}

// recoverUpgrade closes the books on an upgrade that a crash or a power cut interrupted: without its commit on the disk the release
// before it is the one that boots. Without such an upgrade the last is that of the history: who lost the line still asks for it.
func (s *Supervisor) recoverUpgrade() {
	var interrupted *api.Upgrade
	s.do(func() {
		if interrupted = s.state.Upgrade; s.busy != nil && interrupted != nil && s.busy.record.ID == interrupted.ID {
			interrupted = nil // it is not over
		}
	})
	if interrupted == nil {
		s.recallLast()
		return
	}
	u, err := s.store.FindUpgrade(interrupted.ID) // it may have ended, and only that was not noted any more
	if err != nil {
		u = closed(*interrupted, time.Now())
		if err := s.store.AppendHistory(u); err != nil {
			s.logf("record the interrupted upgrade: %v", err)
		}
	}
	if err := s.changeState(func(st *store.State) { st.Upgrade = nil }); err != nil {
		s.logf("forget the interrupted upgrade: %v", err)
	}
	s.do(func() { s.last = &u })
	s.emit(api.Event{Type: api.EventUpgrade, Upgrade: &u, Text: fmt.Sprintf("%s of %s was interrupted: %s", u.Kind, u.To.Version, u.Outcome)})
}

// closed is an upgrade as it ended when the supervisor did. The disk knows one phase of it for sure: the commit.
func closed(u api.Upgrade, now time.Time) api.Upgrade {
	u.Finished, u.Outcome = &now, api.Done
	if u.Phase != api.PhaseCommit {
		u.Outcome = api.NothingChanged
		u.Error = api.ErrInternal.With(fmt.Sprintf("the supervisor ended during the %s of %s, before it was committed", u.Kind, u.To.Version))
	}
	return u
}

// recallLast takes the newest upgrade of the history for the last one.
func (s *Supervisor) recallLast() {
	const enough = 100 // failed starts after crashes are in it too
	list, err := s.store.History(enough)
	if err != nil {
		s.logf("read the history: %v", err)
	}
	for _, u := range list {
		if u.Kind != api.KindStart {
			s.do(func() { s.last = &u })
			return
		}
	}
}

func (s *Supervisor) logf(format string, args ...any) { s.opt.Log.Printf(format, args...) }

// emit tells everyone who listens, and the log.
func (s *Supervisor) emit(e api.Event) {
	if e.Text != "" {
		s.opt.Log.Print(e.Text)
	}
	s.events.add(e)
}

func daemonInfo(s *Supervisor) api.Daemon {
	d := api.Daemon{Version: s.opt.Version, PID: os.Getpid(), Started: s.started, Bundles: bundle.Format, Systemd: s.notify.Enabled(),
		OS: runtime.GOOS, Arch: runtime.GOARCH, Journal: s.opt.Journal, Adopted: s.adopted}
	if d.Systemd {
		d.Unit = s.opt.Config.Service + ".service"
	}
	return d
}
