package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/failpoint"
	"github.com/hotdeploy/hotdeploy/internal/release"
	"github.com/hotdeploy/hotdeploy/supervisor/store"
	"github.com/hotdeploy/hotdeploy/upgrade/control"
)

// This file is the supervisor's part in moving live connections: it makes the channel between two generations, tells one to give and the other to
// take, and waits for the result. What is moved, and how, is theirs (upgrade/PROTOCOL.md). A generation that never said hello keeps
// its connections.

// handoffTimeout is how long a generation usually may take to give everything away; callOffTimeout, to say what it has given when it
// is told to stop that; sendTimeout, to make room for a message.
const (
	handoffTimeout = 30 * time.Second
	callOffTimeout = 5 * time.Second
	sendTimeout    = time.Second
)

// turn is held while connections move, and by an upgrade until its outcome is known: whoever else wants to move some waits.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t turn) give() { <-t }

// line is one generation's control channel. Only the goroutine of the upgrade in flight reads it.
type line struct {
	*control.Conn                  // nil: it was lost with an earlier supervisor
	hello         *control.Message // owned by the loop
}

func (l *line) close() {
	if l.Conn != nil {
		l.Conn.Close()
	}
}

// openLine makes the channel; theirs is the child's end, and the caller's to close.
func openLine() (l *line, theirs *os.File, err error) {
	c, theirs, err := control.Pair()
	return &line{Conn: c}, theirs, err
}

// moves says whether g can give and take connections. It has said so before it was ready, if ever.
func (s *Supervisor) moves(g *generation) bool {
	if g.line.Conn == nil {
		return false
	}
	if g.line.hello == nil { // nobody else writes it
		g.line.Pending(func(m control.Message) {
			if m.Type == control.Hello && g.line.hello == nil {
				s.do(func() { g.line.hello = &m })
			}
		})
	}
	return g.line.hello != nil
}

// handoff moves the serving generation's connections to g, if both can. From then on only g accepts, until [Supervisor.handBack]. The turn
// to move is u's until the end.
func (s *Supervisor) handoff(u *upgrade, g *generation) (err error) {
	defer func() {
		if err == nil {
			s.letIn(g)
		}
	}()
	var old *generation
	s.do(func() { old = s.serving })
	if old == nil {
		return nil
	}
	if err := s.moving.take(u.ctx); err != nil {
		return err
	}
	u.moves = true
	if can, why := s.canMove(old, g); !can {
		s.do(func() { u.text = why })
		return nil
	}
	s.do(func() { u.gave = old })
	s.phase(u, api.PhaseHandoff)
	failpoint.At("handoff")
	h, err := s.move(u.ctx, old, g, g)
	s.do(func() { u.record.Handoff, u.text = h, movedText(h, old, g) })
	switch {
	case err != nil:
		return err
	case u.ctx.Err() != nil:
		return context.Cause(u.ctx)
	case h.Error == control.SharedState:
		e := api.ErrUnhealthy.With(fmt.Sprintf("what the connections of release %s share did not move to release %s", old.rel.Version, g.rel.Version))
		e.Hint = fmt.Sprintf("see what it says of that: hotdeploy logs --release %s", g.rel.Version)
		return e
	}
	failpoint.At("handed over")
	return nil
}

// letIn tells g to accept, if it has waited for what comes with the connections of another one, or would go on to.
func (s *Supervisor) letIn(g *generation) {
	if !s.moves(g) {
		return
	}
	if err := g.line.Send(control.Message{Type: control.Proceed}, nil, sendTimeout); err != nil && !g.hasEnded() {
		s.logf("generation %d: %v", g.number, err)
	}
}

// giving is in which mode the serving generation is to give its connections to one of rel; "" if it does not, or if that one has to accept before: where
// readiness is shown by a connection.
func (s *Supervisor) giving(u *upgrade, rel *store.Release) (mode string, err error) {
	switch rel.Manifest.Spec.Ready.Check {
	case release.CheckTCP, release.CheckHTTP:
		return "", nil
	}
	var old *generation
	if s.do(func() { old = s.serving }); old == nil {
		return "", nil
	}
	if err := s.moving.take(u.ctx); err != nil {
		return "", err
	}
	defer s.moving.give()
	if !s.moves(old) {
		return "", nil
	}
	return cmp.Or(old.line.hello.Mode, "rolling"), nil
}

// canMove tells whether connections can go from one generation to another, and if not why, where that is worth a word: it is not where
// neither knows of moving.
func (s *Supervisor) canMove(from, to *generation) (can bool, why string) {
	gives, takes := s.moves(from), s.moves(to)
	switch {
	case gives && !takes:
		why = to.rel.Version + " takes no connections"
	case !gives && takes:
		why = from.rel.Version + " gives no connections away"
	case gives && !shareProtocol(from, to):
		why = fmt.Sprintf("%s and %s have no version of the handoff protocol in common", from.rel.Version, to.rel.Version)
	default:
		return gives, ""
	}
	return false, fmt.Sprintf("%s: those of generation %d stay there and finish", why, from.number)
}

func shareProtocol(a, b *generation) bool {
	return slices.ContainsFunc(a.line.hello.Protocols, func(v int) bool { return slices.Contains(b.line.hello.Protocols, v) })
}

// handBack undoes a handoff: the old generation accepts again, and gets its connections back from the new one if that still lives.
func (s *Supervisor) handBack(u *upgrade, g *generation) {
	old := u.gave
	if old == nil || old.line.Conn == nil {
		return
	}
	failpoint.At("hand back")
	if err := old.line.Send(control.Message{Type: control.Proceed, Takes: true}, nil, sendTimeout); err != nil {
		s.logf("generation %d: %v", old.number, err)
		return
	}
	defer s.letIn(old)
	select {
	case <-g.group.Done():
		return
	case <-old.group.Done():
		return
	default:
	}
	if h := u.record.Handoff; h != nil && h.Moved == 0 && len(h.Kept) == 0 && h.Error != "" {
		return // the two have not even greeted each other; what the new one has accepted it sees off by itself
	}
	began := time.Now()
	h, err := s.move(context.WithoutCancel(u.ctx), g, old, g)
	if err != nil {
		s.logf("hand back: %v", err)
	}
	s.do(func() {
		u.record.HandedBack = h
		u.back = &api.PhaseTime{Phase: api.PhaseBack, Took: time.Since(began), Text: movedText(h, g, old)}
	})
}

// moveRest lets g, whose connections are about to be closed, give what it still has to the generation that serves, if both can: a release that could
// not have it may have been followed by one that can. It tells whether that was tried. Where an upgrade is in flight its end is waited for, unless an operator cannot wait.
func (s *Supervisor) moveRest(g *generation, hurry bool) (tried bool) {
	if !s.mayMove(g, hurry) {
		return false
	}
	defer s.moving.give()
	var to *generation
	s.do(func() { to = s.serving })
	if to == nil || to == g || g.hasEnded() {
		return false
	}
	if can, _ := s.canMove(g, to); !can {
		return false
	}
	if _, err := s.move(s.ctx, g, to, g); err != nil {
		s.logf("%v", err)
	}
	return true
}

// mayMove takes the turn for g, if it can be had before g ends or an operator cannot wait any more.
func (s *Supervisor) mayMove(g *generation, hurry bool) bool {
	for {
		select {
		case s.moving <- struct{}{}:
			return true
		default:
		}
		if hurry {
			return false
		}
		select {
		case s.moving <- struct{}{}:
			return true
		case hurry = <-g.retire:
			if hurry {
				g.askToRetire(true) // whoever closes the rest wants to know, too
			}
		case <-g.gone:
			return false
		case <-s.ctx.Done():
			return false
		}
	}
}

// keepRest lets g keep what it still has: a connection that is on its way must not be closed in that moment.
func (s *Supervisor) keepRest(g *generation) {
	if !s.moves(g) {
		return
	}
	if err := g.line.Send(control.Message{Type: control.Proceed}, nil, sendTimeout); err != nil && !g.hasEnded() {
		s.logf("generation %d: %v", g.number, err)
	}
}

// move lets one generation give everything to another and returns what came of it. If one of the two hangs it is the newer one that is
// killed, whichever that is here: with it gone the older one has, or will have, what was not confirmed. With an error the newer
// one is not fit to serve. When ctx ends what has not moved stays, and that is no error. The caller has the turn to move.
func (s *Supervisor) move(ctx context.Context, from, to, newer *generation) (*api.Handoff, error) {
	began := time.Now()
	h := &api.Handoff{From: from.number, To: to.number}
	answer, err := s.order(ctx, from, to)
	h.Took = time.Since(began)
	switch {
	case err == nil && !answer.PeerHangs:
		fill(h, answer)
	case errors.Is(err, os.ErrDeadlineExceeded), err == nil:
		fill(h, answer)
		h.Error = "it does not answer"
		if to == newer || errors.Is(err, errNoAnswer) { // else it has connections, and sees them off
			s.kill(newer, "hangs while connections move")
		}
		err = api.ErrUnhealthy.With(fmt.Sprintf("release %s hangs while connections move: %s", newer.rel.Version, h.Error))
	default: // the giver has ended: the taker has whatever had arrived
		h.Error, err = "the giving generation ended", nil
	}
	s.do(func() {
		from.handoff, to.taken = h, h
		s.moved += h.Moved
		s.refused += h.Refused
		for why, n := range h.Kept {
			if _, ok := s.kept[why]; ok || len(s.kept) < maxReasons { // each becomes a metric
				s.kept[why] += n
			}
		}
		s.longestPause = h.LongestPause
	})
	s.emit(api.Event{Type: api.EventGeneration, Generation: from.number, Handoff: h,
		Text: fmt.Sprintf("generation %d (%s) handed its connections to generation %d (%s): %s", from.number, from.rel.Version, to.number, to.rel.Version, movedText(h, from, to))})
	return h, err
}

// errNoAnswer is about a giver that was told to give.
var errNoAnswer = errors.New("it does not say what it gave")

// order sends give and take, and waits for the giver's answer. When ctx ends it tells the giver to stop, and still waits for what it has given.
func (s *Supervisor) order(ctx context.Context, from, to *generation) (control.Message, error) {
	gives, takes, err := control.HandoffPair()
	if err != nil {
		return control.Message{}, err
	}
	defer gives.Close()
	defer takes.Close()
	id := int(s.handoffs.Add(1))
	m := control.Message{Type: control.Take, ID: id, TimeoutMS: s.handoffWithin.Milliseconds()}
	if err := to.line.Send(m, takes, sendTimeout); err != nil {
		return m, err
	}
	takes.Close() // the taker's end is the giver's end of file
	m.Type = control.Give
	if err := from.line.Send(m, gives, sendTimeout); err != nil {
		return m, err
	}
	gives.Close()
	by := time.Now().Add(s.handoffWithin)
	calledOff := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(calledOff)
		if err := from.line.Send(control.Message{Type: control.Proceed}, nil, sendTimeout); err != nil {
			s.logf("generation %d: %v", from.number, err)
		}
	})()
	m, err = from.line.given(id, by, calledOff)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	return m, err
}

// given waits for the answer to a give; not for long any more when hurry is closed.
func (l *line) given(id int, by time.Time, hurry <-chan struct{}) (control.Message, error) {
	var waker sync.WaitGroup
	ended := make(chan struct{})
	waker.Go(func() {
		select {
		case <-hurry:
			l.Wake()
		case <-ended:
		}
	})
	defer waker.Wait()
	defer close(ended)
	for woken := false; ; {
		m, f, err := l.ReceiveBy(by)
		if f != nil {
			f.Close()
		}
		switch {
		case errors.Is(err, control.ErrMessage):
		case errors.Is(err, os.ErrDeadlineExceeded) && !woken && time.Now().Before(by):
			by, woken = earlier(by, time.Now().Add(callOffTimeout)), true
		case err != nil, m.Type == control.Given && m.ID == id:
			return m, err
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// fill takes over what an app says of itself, within limits.
func fill(h *api.Handoff, m control.Message) {
	h.Moved, h.Refused, h.Error = max(m.Moved, 0), max(m.Refused, 0), clip(m.Error)
	h.LongestPause = time.Duration(max(m.LongestPauseUS, 0)) * time.Microsecond
	h.Kept = map[string]int{}
	for why, n := range m.Kept {
		if len(h.Kept) < maxReasons && n > 0 {
			h.Kept[clip(why)] = n
		}
	}
}

const (
	maxReasons = 32 // also of all handoffs together
	maxReason  = 200
)

// clip makes what an app says fit for a log and a metric.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return s[:min(len(s), maxReason)]
}

// reasonVersion is how the SDK calls it that the taker cannot read the state of a connection. It finds out before it disturbs any.
const reasonVersion = "state version"

// movedText is what came of a handoff, in a line, with words for what somebody can do something about.
func movedText(h *api.Handoff, from, to *generation) string {
	text := h.Text()
	if n := h.Kept[reasonVersion]; n > 0 {
		text += fmt.Sprintf("; %s cannot read the state of %s that %s has saved (it reads %s): they finish in generation %d",
			to.rel.Version, plural(n, "connection"), from.rel.Version, to.readsText(), from.number)
	}
	return text
}

// readsText is which versions of state g has said that it can read.
func (g *generation) readsText() string {
	states := slices.Clone(g.line.hello.States)
	slices.Sort(states)
	var list []string
	for _, v := range slices.Compact(states) {
		if len(list) == maxReasons {
			return "state versions " + strings.Join(list, ", ") + " and more"
		}
		list = append(list, strconv.Itoa(int(v)))
	}
	switch len(list) {
	case 0:
		return "no state"
	case 1:
		return "state version " + list[0]
	}
	return "state versions " + strings.Join(list, ", ")
}
