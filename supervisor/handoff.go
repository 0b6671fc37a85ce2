package supervisor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/upgrade/control"
)

// This file is the supervisor's part in moving live connections: it makes the channel between two generations, tells one to give and the other to
// take, and waits for the result. What is moved, and how, is theirs (upgrade/PROTOCOL.md). A generation that never said hello keeps
// its connections.

// handoffTimeout is how long a generation usually may take to give everything away; sendTimeout, to make room for a message.
const (
	handoffTimeout = 30 * time.Second
	sendTimeout    = time.Second
)

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

// handoff moves the serving generation's connections to g, if both can. From then on only g accepts, until [Supervisor.handBack].
func (s *Supervisor) handoff(u *upgrade, g *generation) error {
	var old *generation
	s.do(func() { old = s.serving })
	if old == nil || !s.moves(old) || !s.moves(g) {
		return nil
	}
	if !shareProtocol(old, g) {
		s.logf("generations %d and %d have no version of the handoff protocol in common: connections stay", old.number, g.number)
		return nil
	}
	s.do(func() { u.gave = old })
	s.phase(u, api.PhaseHandoff)
	s.at("handoff")
	h, err := s.move(old, g, g)
	s.do(func() { u.record.Handoff, u.text = h, handoffText(h) })
	s.at("handed over")
	return err
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
	s.at("hand back")
	if err := old.line.Send(control.Message{Type: control.Proceed}, nil, sendTimeout); err != nil {
		s.logf("generation %d: %v", old.number, err)
		return
	}
	select {
	case <-g.group.Done():
		return
	case <-old.group.Done():
		return
	default:
	}
	began := time.Now()
	h, err := s.move(g, old, g)
	if err != nil {
		s.logf("hand back: %v", err)
	}
	s.do(func() {
		u.record.HandedBack = h
		u.back = &api.PhaseTime{Phase: api.PhaseBack, Took: time.Since(began), Text: handoffText(h)}
	})
}

// move lets one generation give everything to another and returns what came of it. If one of the two hangs it is the newer one that is
// killed, whichever that is here: with it gone the older one has, or will have, what was not confirmed. With an error the newer
// one is not fit to serve.
func (s *Supervisor) move(from, to, newer *generation) (*api.Handoff, error) {
	began := time.Now()
	h := &api.Handoff{From: from.number, To: to.number}
	answer, err := s.order(from, to)
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
		from.handoff = h
		s.moved += h.Moved
		s.refused += h.Refused
		for why, n := range h.Kept {
			if _, ok := s.kept[why]; ok || len(s.kept) < maxReasons { // each becomes a metric
				s.kept[why] += n
			}
		}
		s.longestPause = h.LongestPause
	})
	s.emit(api.Event{Type: api.EventGeneration, Generation: from.number,
		Text: fmt.Sprintf("generation %d (%s) handed its connections to generation %d (%s): %s", from.number, from.rel.Version, to.number, to.rel.Version, handoffText(h))})
	return h, err
}

// errNoAnswer is about a giver that was told to give.
var errNoAnswer = errors.New("it does not say what it gave")

// order sends give and take, and waits for the giver's answer.
func (s *Supervisor) order(from, to *generation) (control.Message, error) {
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
	for by := time.Now().Add(s.handoffWithin); ; {
		m, f, err := from.line.ReceiveBy(by)
		if f != nil {
			f.Close()
		}
		if errors.Is(err, control.ErrMessage) {
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("%w: %w", errNoAnswer, err)
		}
		if err != nil || m.Type == control.Given && m.ID == id {
			return m, err
		}
	}
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

// handoffText is what came of a handoff, in a line.
func handoffText(h *api.Handoff) string {
	text := fmt.Sprintf("moved %d", h.Moved)
	kept := 0
	var reasons []string
	for why, n := range h.Kept {
		kept += n
		reasons = append(reasons, fmt.Sprintf("%s %d", why, n))
	}
	slices.Sort(reasons)
	if kept > 0 {
		text += fmt.Sprintf(", kept %d (%s)", kept, strings.Join(reasons, ", "))
	}
	if h.Moved > 0 {
		text += fmt.Sprintf(", longest pause %s", roundPause(h.LongestPause))
	}
	if h.Error != "" {
		text += ": " + h.Error
	}
	return text
}

func roundPause(d time.Duration) time.Duration {
	if d < 10*time.Millisecond {
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}
