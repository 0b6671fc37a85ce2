package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	ctl "github.com/hotdeploy/hotdeploy/upgrade/control"
)

// generation is an app with shared state, an echo of lines, and the supervisor's end of its control channel.
type generation struct {
	t       *testing.T
	u       *Upgrader
	l       net.Listener
	control *ctl.Conn
	wrong   error // what OnThaw says

	mu     sync.Mutex // protects what follows
	state  string
	events []string
}

// newGeneration starts one. takes is the mode of the one before it.
func newGeneration(t *testing.T, state, takes string, changes ...func(*Options)) *generation {
	t.Helper()
	ours, theirs, err := ctl.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	g := &generation{t: t, control: ours, state: state}
	g.u = &Upgrader{inherited: &inheritance{}, term: make(chan os.Signal, 1), exit: make(chan struct{}), stop: make(chan struct{})}
	g.u.opt = Options{Mode: Barrier, States: []uint32{1}, OnFreeze: g.freeze, OnThaw: g.thaw, Log: t.Logf,
		OnRollback: func(_ context.Context, moved int) { g.note("rollback, moved %d", moved) }}.withDefaults()
	for _, change := range changes {
		change(&g.u.opt)
	}
	if g.u.control, err = ctl.NewConn(theirs); err != nil {
		t.Fatal(err)
	}
	g.u.waiting = g.u.awaits(takes)
	if g.l, err = g.u.Listen("tcp", "127.0.0.1:0", Named("test"), Lines()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.l.Close() })
	go g.serve()
	if err := g.u.Ready(); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *generation) serve() {
	for {
		c, err := g.l.Accept()
		if err != nil {
			return
		}
		if !SessionOfConn(c).Resumed() {
			g.note("accepted")
		}
		go func() {
			defer c.Close()
			io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
		}()
	}
}

func (g *generation) freeze(context.Context) (uint32, []byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return 1, []byte(g.state), nil
}

func (g *generation) thaw(_ context.Context, _ uint32, state []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.wrong != nil {
		return g.wrong
	}
	g.state = string(state)
	g.events = append(g.events, "thawed "+g.state)
	return nil
}

func (g *generation) note(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, fmt.Sprintf(format, args...))
}

// happened compares what has, in order, and forgets it.
func (g *generation) happened(want ...string) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if strings.Join(g.events, ", ") != strings.Join(want, ", ") {
		g.t.Errorf("it happened: %q; wanted: %q", g.events, want)
	}
	g.events = nil
}

// client connects: at once, but it may have to wait for an answer.
func (g *generation) client() net.Conn {
	g.t.Helper()
	c, err := net.Dial("tcp", g.l.Addr().String())
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	say(g.t, c, "hello\n")
	return c
}

func (g *generation) tell(m ctl.Message) {
	g.t.Helper()
	if err := g.control.Send(m, nil, patience); err != nil {
		g.t.Fatal(err)
	}
}

// give moves everything from g to another one, as a supervisor does.
func (g *generation) give(to *generation) ctl.Message {
	g.t.Helper()
	gives, takes, err := ctl.HandoffPair()
	if err != nil {
		g.t.Fatal(err)
	}
	m := ctl.Message{Type: ctl.Take, ID: 1, TimeoutMS: patience.Milliseconds()}
	if err := to.control.Send(m, takes, patience); err != nil {
		g.t.Fatal(err)
	}
	m.Type = ctl.Give
	if err := g.control.Send(m, gives, patience); err != nil {
		g.t.Fatal(err)
	}
	gives.Close()
	takes.Close()
	for {
		m, _, err := g.control.ReceiveBy(time.Now().Add(patience))
		if err != nil {
			g.t.Fatal(err)
		}
		if m.Type == ctl.Given {
			return m
		}
	}
}

// waits checks that a client has no answer yet. It cannot wait for what must never come: the doors that are open answer within this time.
func waits(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a client is let in too early: %d, %v", n, err)
	}
	c.SetDeadline(time.Now().Add(patience))
}

func TestBarrier_NobodyIsLetInBeforeTheSharedStateIsThere(t *testing.T) {
	old, next := newGeneration(t, "one", ""), newGeneration(t, "nothing", "barrier")
	member := old.client()
	expect(t, member, "hello\n")
	old.happened("accepted")
	early := next.client()
	waits(t, early)
	if m := old.give(next); m.Moved != 1 || m.Error != "" {
		t.Fatalf("%+v", m)
	}
	expect(t, early, "hello\n")
	next.happened("thawed one", "accepted")
	say(t, member, "there\n")
	expect(t, member, "there\n")

	late := old.client()
	next.mu.Lock()
	next.state = "two"
	next.mu.Unlock()
	old.tell(ctl.Message{Type: ctl.Proceed, Takes: true})
	waits(t, late)
	if m := next.give(old); m.Moved != 2 || m.Error != "" {
		t.Fatalf("back: %+v", m)
	}
	expect(t, late, "hello\n")
	old.happened("thawed two", "accepted")
	say(t, member, "again\n")
	expect(t, member, "again\n")
}

func TestBarrier_NoHandoffComes_ProceedLetsThemIn(t *testing.T) {
	for _, tell := range []func(*generation){
		func(g *generation) { g.tell(ctl.Message{Type: ctl.Proceed}) },
		func(g *generation) { g.control.Close() }, // the supervisor is gone
	} {
		g := newGeneration(t, "one", "rolling")
		c := g.client()
		waits(t, c)
		tell(g)
		expect(t, c, "hello\n")
	}
}

// An older generation that still has connections, or was started and told to give back, must not overwrite what others work with.
func TestBarrier_StateThatIsOlderIsRefused(t *testing.T) {
	old, next := newGeneration(t, "one", ""), newGeneration(t, "nothing", "barrier")
	next.wrong = errors.New("it makes no sense")
	member := old.client()
	expect(t, member, "hello\n")
	if m := old.give(next); m.Moved != 0 || m.Kept[string(ReasonFrozen)] != 1 || m.Error != string(ReasonFrozen) {
		t.Fatalf("%+v", m)
	}
	old.happened("accepted", "rollback, moved 0")
	old.tell(ctl.Message{Type: ctl.Proceed, Takes: true})
	expect(t, old.client(), "hello\n") // it has given nothing, so there is nothing to wait for
	if m := next.give(old); m.Error != string(ReasonFrozen) {
		t.Errorf("the other one has overwritten the state: %+v", m)
	}
	old.happened("accepted")
	say(t, member, "still\n")
	expect(t, member, "still\n")
}

// The time that handlers get is theirs, whatever the app's hooks take of the time for the handoff.
func TestBarrier_HookTakesLongerThanPatience_ConnectionsMove(t *testing.T) {
	old := newGeneration(t, "one", "", func(o *Options) {
		o.OnPark = func(context.Context) error {
			<-time.After(o.Patience)
			return nil
		}
	})
	next := newGeneration(t, "nothing", "barrier")
	member := old.client()
	expect(t, member, "hello\n")
	if m := old.give(next); m.Moved != 1 || m.Error != "" {
		t.Errorf("%+v", m)
	}
	next.happened("thawed one")
}

// Without connections the state moves all the same.
func TestBarrier_NobodyIsConnected_TheStateMoves(t *testing.T) {
	old, next := newGeneration(t, "one", ""), newGeneration(t, "nothing", "barrier")
	early := next.client()
	if m := old.give(next); m.Error != "" {
		t.Fatalf("%+v", m)
	}
	expect(t, early, "hello\n")
	next.happened("thawed one", "accepted")
}

// An app that answers and does not read has not rebuilt its session, as far as anybody can tell.
func TestBarrier_AppThatDoesNotRead_IsRefused(t *testing.T) {
	old, next := newTestListener(t, MQTT()), newTestListener(t, MQTT())
	client, c := pair(t, old)
	say(t, client, "\x10\x05hello")
	expect(t, c, "\x10\x05hello")
	say(t, c, "\x20\x02\x00\x00")
	expect(t, client, "\x20\x02\x00\x00")
	go func() {
		if _, err := c.Read(make([]byte, 10)); err == ErrHandoff {
			c.Close()
		}
	}()
	go func() {
		c, err := next.Accept()
		if err != nil {
			return
		}
		io.ReadFull(c, make([]byte, 7))
		io.WriteString(c, "\x20\x02\x00\x00")
	}()
	opt := Options{Mode: Barrier}
	kept, err := Deploy(within(t), Side{Options: opt, Listener: old}, Side{Options: opt, Listener: next})
	if err != nil || kept[ReasonSlow] != 1 {
		t.Errorf("kept: %v, %v", kept, err)
	}
}
