package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

// Mode is how connections move.
type Mode string

// The modes.
const (
	Rolling Mode = "rolling" // the default: some at a time, each pauses for milliseconds
	Barrier Mode = "barrier" // all at once: for hubs and brokers, whose connections know each other
)

// Options is what an app may want to say. The zero value will do for an app whose connections have no state, or keep none.
type Options struct {
	// States are the versions of state that this release can read: of sessions ([Session.Save]) and of OnFreeze. A connection whose state has another one
	// stays where it is. So that a rollback moves connections back, the release before must list what this one saves: teach a release to read
	// a version before one saves it.
	States []uint32

	// Mode is Rolling or Barrier; if either release wants a barrier there is one. Then each handler must come to a Read within two seconds, or its connection
	// is refused. Under hotdeployd nobody is let into the next release before the barrier, unless it has to show its readiness by a connection (tcp, http).
	Mode     Mode
	Patience time.Duration // how long a request in flight, or a handler that is busy, is waited for; 0: two seconds

	// The hooks of barrier mode, in their order. All may block until their context ends, within the time for the handoff; nil: nothing to do. With
	// an error nothing moves, and the release goes on.
	//
	// OnPark is called in barrier mode when nothing more comes in: drain your queues, stop your tickers. Writes still go out.
	OnPark func(context.Context) error
	// OnFreeze returns what the app knows beyond single connections, at most 64 MiB, and its version.
	OnFreeze func(context.Context) (version uint32, state []byte, err error)
	// Freezes is that version, if it is always the same: then a release that does not list it is found out before anything stands still.
	Freezes uint32
	// OnThaw gets it in the next release, before the first connection. It must be done within five seconds.
	OnThaw func(ctx context.Context, version uint32, state []byte) error
	// OnRollback undoes OnPark: some connections stay in this release, or all. moved is how many have gone: where they are
	// those who stay have lost sight of them.
	OnRollback func(ctx context.Context, moved int)

	// Log gets a line, without a line feed, when something is out of the ordinary; nil: nobody, or the standard logger when no supervisor is there to say it.
	Log func(format string, args ...any)

	Standalone // what only a process that nobody supervises needs

	ctx    context.Context // of the process
	onOpen func()          // others may be let in
}

const defaultPatience = 2 * time.Second

func (o Options) withDefaults() Options {
	if o.Mode == "" {
		o.Mode = Rolling
	}
	if o.Patience <= 0 {
		o.Patience = defaultPatience
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	o.ctx = context.Background()
	return o
}

// Upgrader is this process's part in upgrades. Make one with New, before the listeners.
type Upgrader struct {
	opt       Options
	control   *ctl.Conn // nil: no supervisor, or one that moves nothing
	inherited *inheritance
	alone     *standalone // nil: somebody else makes the new process
	term      chan os.Signal
	exit      chan struct{}
	stop      chan struct{}
	exitOnce  sync.Once
	stopOnce  sync.Once
	giving    sync.RWMutex // held for reading until what was given is reported, and for writing by the end: nobody leaves without a word

	mu        sync.Mutex // protects what follows
	listeners []*listener
	packets   []packetConn
	giver     *giver
	callOff   context.CancelCauseFunc // ends the giving under way; nil: there is none
	ready     bool
	waiting   bool // the release before accepts and reads, until it gives; in barrier mode until it has given
	home      home // where the shared state is
	ending    bool // SIGTERM or Stop: we accept no more, ever
}

// New finds out who started this process and takes over SIGTERM: it stops accepting, and Exit is closed as soon
// as no connection is left. Three ways to run:
//
//   - Under hotdeployd (it has passed a control channel): the supervisor starts the next release, and connections move to it.
//   - With sockets from systemd, without hotdeployd: a restart finds the same sockets, and whoever connects meanwhile waits in their queues. Connections do not
//     move: at SIGTERM they drain, as long as TimeoutStopSec= allows.
//   - Alone: SIGHUP, which New takes over, starts the new process, and connections move to it. See [Standalone].
func New(opt Options) (*Upgrader, error) {
	u := &Upgrader{opt: opt.withDefaults(), term: make(chan os.Signal, 1), exit: make(chan struct{}), stop: make(chan struct{})}
	if u.opt.Mode != Rolling && u.opt.Mode != Barrier {
		return nil, fmt.Errorf("upgrade: mode %q is neither %q nor %q", opt.Mode, Rolling, Barrier)
	}
	var err error
	if u.inherited, err = inherit(); err != nil {
		return nil, err
	}
	if u.control, err = openControl(); err != nil {
		return nil, err
	}
	u.waiting = u.control != nil && u.awaits(os.Getenv(ctl.EnvTakes))
	os.Unsetenv(ctl.EnvTakes)
	if u.control == nil && !u.inherited.any {
		if opt.Log == nil {
			u.opt.Log = log.Printf
		}
		if err := u.startAlone(); err != nil {
			return nil, err
		}
	}
	signal.Notify(u.term, syscall.SIGTERM)
	go u.untilTerm()
	return u, nil
}

// openControl takes the control channel out of the environment. A number that is no such channel is an error: something is mixed up.
func openControl() (*ctl.Conn, error) {
	text, ok := os.LookupEnv(ctl.Env)
	if !ok || text == "" {
		return nil, nil
	}
	os.Unsetenv(ctl.Env)
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("upgrade: %s=%q: not a descriptor", ctl.Env, text)
	}
	unix.CloseOnExec(fd)
	return ctl.NewConn(os.NewFile(uintptr(fd), "control"))
}

// Ready tells whoever started us that we serve (READY=1), and which connections we can take. Call it when all listeners are there and served; calling it
// again is harmless. An error means that nobody was told. It does not wait: the connections of
// the release before come afterwards.
func (u *Upgrader) Ready() error {
	u.mu.Lock()
	first := !u.ready
	u.ready = true
	u.mu.Unlock()
	if u.alone != nil {
		return u.alone.ready(first)
	}
	if first && u.control != nil {
		if !u.isWaiting() {
			u.accept()
		}
		if err := u.control.Send(u.helloMessage(), nil, controlTime); err != nil {
			return err
		}
		go u.obey()
	}
	return notify("READY=1")
}

const controlTime = 10 * time.Second

// Exit is closed when nothing is left to do here: after SIGTERM or Stop, and when every connection has moved or ended.
func (u *Upgrader) Exit() <-chan struct{} { return u.exit }

// Stop ends what is left, spread over a time since clients that all come back at once are an outage too, and closes Exit. It returns when that is done or ctx ends.
func (u *Upgrader) Stop(ctx context.Context, spread time.Duration) error {
	u.stopOnce.Do(func() { close(u.stop) })
	u.retire()
	list := u.conns()
	for i, c := range list {
		if i > 0 && spread > 0 {
			select {
			case <-time.After(spread / time.Duration(len(list))):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		c.end()
	}
	select {
	case <-u.exit:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end closes a connection for its client, whatever its handler does.
func (c *conn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == running || c.state == told {
		c.closeLocked(ReasonClosed)
	}
}

func (u *Upgrader) helloMessage() ctl.Message {
	h := u.hello()
	m := ctl.Message{Type: ctl.Hello, Protocols: h.Protocols, Records: h.Records, States: h.States, Mode: h.Mode}
	for name, protocol := range h.Listeners {
		m.Listeners = append(m.Listeners, ctl.Listener{Name: name, Protocol: protocol})
	}
	return m
}

func (u *Upgrader) hello() hello {
	h := hello{Protocols: protocols, Records: records, States: u.opt.States, Mode: string(u.opt.Mode), Listeners: map[string]string{}}
	for _, l := range u.all() {
		h.Listeners[l.name] = l.protocol.name
	}
	return h
}

func (u *Upgrader) all() []*listener {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]*listener(nil), u.listeners...)
}

func (u *Upgrader) allPackets() []packetConn {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.packets)
}

func (u *Upgrader) conns() (list []*conn) {
	for _, l := range u.all() {
		list = append(list, l.conns()...)
	}
	return list
}

// obey does what the supervisor says, until it ends.
func (u *Upgrader) obey() {
	for {
		m, f, err := u.control.Receive()
		if errors.Is(err, ctl.ErrMessage) {
			u.opt.Log("%v", err)
			continue
		}
		if err != nil {
			if err != io.EOF {
				u.opt.Log("%v", err)
			}
			if u.alone == nil {
				u.open() // nobody will tell us
			}
			return
		}
		switch {
		case m.Type == ctl.Give && f != nil:
			ctx, done := u.beginGiving(m) // here, so that a proceed that follows finds it
			go func() {
				defer done()
				u.give(ctx, m, f)
			}()
		case m.Type == ctl.Take && f != nil:
			go u.take(m, f)
		case m.Type == ctl.Proceed:
			u.proceed(m.Takes)
		case u.alone != nil && f == nil:
			u.alone.obey(m)
		case f != nil:
			f.Close()
		}
	}
}

// errCalledOff is a handoff that ended early because the upgrade did.
var errCalledOff = errors.New("the handoff was called off")

// beginGiving returns the context of what m asks for, and what is to be called when that is done. The rest of its time is for taking back and reporting.
func (u *Upgrader) beginGiving(m ctl.Message) (context.Context, func()) {
	u.giving.RLock()
	ctx, callOff := context.WithCancelCause(u.opt.ctx)
	ctx, cancel := context.WithDeadline(ctx, time.Now().Add(m.Timeout()*3/4))
	u.mu.Lock()
	u.callOff = callOff
	u.mu.Unlock()
	return ctx, func() {
		u.mu.Lock()
		u.callOff = nil
		u.mu.Unlock()
		cancel()
		callOff(nil)
		u.giving.RUnlock()
	}
}

// give hands everything over and reports.
func (u *Upgrader) give(ctx context.Context, m ctl.Message, f *os.File) {
	answer := u.handOver(ctx, f)
	answer.ID = m.ID
	if err := u.control.Send(answer, nil, controlTime); err != nil {
		u.opt.Log("%v", err)
	}
}

// handOver stops accepting, gives everything to whoever is at the other end of f, and says what came of it.
func (u *Upgrader) handOver(ctx context.Context, f *os.File) ctl.Message {
	for _, p := range u.allPackets() {
		p.pause()
	}
	for _, l := range u.all() {
		l.pause()
		l.rest()
	}
	answer := ctl.Message{Type: ctl.Given}
	g, err := u.newGiver(ctx, f)
	if err != nil {
		answer.Error = err.Error()
		u.opt.Log("handoff: nothing has moved: %v", err)
		u.accept()
	} else {
		g.all(ctx, u.all())
		if tried, gone := g.shared(); tried {
			u.settle(gone)
		}
		if context.Cause(ctx) == errCalledOff {
			u.proceed(false)
		}
		g.report(&answer)
	}
	return answer
}

func (u *Upgrader) newGiver(ctx context.Context, f *os.File) (*giver, error) {
	ch, err := newChannel(f)
	if err != nil {
		return nil, err
	}
	by, _ := ctx.Deadline()
	stop := context.AfterFunc(ctx, func() { // nothing is offered yet
		ch.send(frameEnd, nil)
		ch.close()
	})
	g, err := newGiver(ch, u.hello(), u.opt, by)
	if !stop() && err == nil {
		g.end()
		err = context.Cause(ctx)
	}
	if err != nil {
		if ctx.Err() != nil { // then the channel was closed under it
			err = fmt.Errorf("before the next release said hello: %w", context.Cause(ctx))
		}
		return nil, err
	}
	u.mu.Lock()
	before := u.giver
	u.giver = g
	u.mu.Unlock()
	if before != nil {
		before.end()
	}
	return g, nil
}

func (g *giver) report(m *ctl.Message) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m.Moved, m.Refused, m.LongestPauseUS, m.PeerHangs = g.tally.moved, g.tally.refused, g.tally.longest.Microseconds(), g.hangs
	m.Kept = map[string]int{}
	for why, n := range g.tally.kept {
		m.Kept[string(why)] = n
	}
	switch {
	case g.hangs:
		m.Error = "the next release does not read what it is given"
	case g.broken == ReasonPeer:
		m.Error = "the next release ended"
	case g.broken != "":
		m.Error = string(g.broken)
	}
}

func (u *Upgrader) take(m ctl.Message, f *os.File) {
	ch, err := newChannel(f)
	if err != nil {
		u.opt.Log("%v", err)
		u.open()
		return
	}
	opt := u.opt
	if opt.OnThaw != nil {
		opt.OnThaw = u.thaw
	}
	opt.onOpen = u.open
	if _, err := take(ch, u.hello(), opt, u.all(), time.Now().Add(m.Timeout())); err != nil {
		u.opt.Log("handoff: %v", err)
	}
}

// proceed serves on as if nothing had been: the upgrade is off. takes: what we have given comes back at once, and where that is state
// nobody is let in before it is here.
func (u *Upgrader) proceed(takes bool) {
	u.mu.Lock()
	g, callOff := u.giver, u.callOff
	u.giver = nil
	hold := takes && u.home == away
	u.waiting = hold
	u.mu.Unlock()
	if callOff != nil {
		callOff(errCalledOff)
	}
	if !hold {
		u.accept()
	}
	if g != nil {
		go g.end()
	}
}

func (u *Upgrader) accept() {
	u.mu.Lock()
	ending := u.ending
	u.mu.Unlock()
	if ending {
		return
	}
	for _, l := range u.all() {
		l.proceed()
	}
	for _, p := range u.allPackets() {
		p.proceed()
	}
}

// open is accept for a process that has waited for its turn.
func (u *Upgrader) open() {
	u.mu.Lock()
	if u.waiting && u.home == unknown {
		u.home = here // such as it is: others rely on it from now on
	}
	u.waiting = false
	u.mu.Unlock()
	u.accept()
}

func (u *Upgrader) untilTerm() {
	select {
	case <-u.term:
	case <-u.stop:
	case <-u.alone.succeeded():
	}
	follows := u.alone.halt()
	u.retire()
	answered := make(chan struct{})
	go func() {
		u.leavePackets()
		close(answered)
	}()
	g := u.currentGiver()
	if follows {
		go u.hurry()
	} else {
		notify(fmt.Sprintf("STOPPING=1\nSTATUS=draining, %d connections left", len(u.conns())))
	}
	if g != nil && g.alive() {
		g.linger(u.all())
	} else {
		u.drain()
	}
	u.awaitEmpty()
	if g != nil {
		g.end()
	}
	<-answered
	u.giving.Lock() // and never unlocked: nothing begins any more
	u.alone.farewell()
	u.exitOnce.Do(func() { close(u.exit) })
}

func (u *Upgrader) currentGiver() *giver {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.giver
}

// retire accepts no more, and gives the sockets back.
func (u *Upgrader) retire() {
	u.mu.Lock()
	u.ending = true
	u.mu.Unlock()
	for _, l := range u.all() {
		l.retire()
	}
}

// leavePackets reads no more datagrams, and waits until the app has answered those that it has read.
func (u *Upgrader) leavePackets() {
	limited, cancel := context.WithTimeout(u.opt.ctx, u.opt.Patience)
	defer cancel()
	for _, p := range u.allPackets() {
		p.pause()
		p.answered(limited)
		if u.alone.last() { // else another process has the socket
			p.Close()
		}
	}
}

// drain ends HTTP connections between two requests; everything else lives until its client leaves.
func (u *Upgrader) drain() {
	for _, c := range u.conns() {
		go c.endWhenIdle(u.opt.ctx)
	}
}

// endWhenIdle closes an HTTP connection that has been answered and waits for the next request. One that has just come is to have its answer.
func (c *conn) endWhenIdle(ctx context.Context) {
	for owes := !c.resumed; c != nil && c.owe(owes); owes = true {
		r, why := c.begin().seal(ctx)
		if why != "" {
			return
		}
		if len(r.opening) == 0 && len(r.kept) == 0 && len(r.unsent) == 0 && !c.readable() {
			c.confirm()
			return
		}
		c = c.resume(r) // more has come meanwhile, or it has become a WebSocket
	}
}

// owe notes that an HTTP connection must answer once more (if it has never) before it counts as idle. false: it is something else.
func (c *conn) owe(owes bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.codec.(*httpCodec)
	if ok {
		h.owes = owes && !h.served
	}
	return ok
}

// readable says that bytes wait in the kernel: closing now would lose them.
func (c *conn) readable() (yes bool) {
	c.control(func(fd uintptr) {
		n, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		yes = err == nil && n > 0
	})
	return yes
}

// awaitEmpty waits until no connection is left.
func (u *Upgrader) awaitEmpty() {
	for {
		change := live.change()
		if len(u.conns()) == 0 && lingering.Load() == 0 {
			return
		}
		<-change
	}
}
