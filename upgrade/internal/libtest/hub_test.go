package libtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// member is a client of a hub: each message of one goes to all. It checks that it gets what all of them say, once and in order.
type member struct{ id, of int }

func (member) again() bool { return false }

// spoken is what a member says: who, and which message.
type spoken struct {
	ID, N uint64
	Kind  kind
}

type kind uint64

const (
	inBetween kind = iota
	last
	greeting // before all others, to know when the hub has taken it up
)

func (m member) call(x *teller, rng *rand.Rand) error {
	c, err := m.join(x, rng)
	x.joined.Done()
	if err != nil {
		return err
	}
	defer c.conn.Close()
	x.joined.Wait() // what is said before a member has come it does not hear
	mine := make(chan struct{}, 4)
	written := make(chan error, 1)
	go func() { written <- m.speak(c, x.stop, mine) }()
	err = m.listen(c, mine)
	if err != nil {
		c.conn.Close()
	}
	close(c.over)
	return errors.Join(err, <-written)
}

// join comes back when the hub knows this member.
func (m member) join(x *teller, rng *rand.Rand) (*client, error) {
	c, err := x.dial(hostile{}, rng)
	if err != nil {
		return nil, err
	}
	if err := m.say(c, 0, greeting); err != nil {
		return nil, err
	}
	for {
		s, err := m.hear(c)
		if err != nil || s == (spoken{uint64(m.id), 0, greeting}) {
			return c, err
		}
	}
}

func (m member) say(c *client, n uint64, k kind) error {
	b, err := binary.Append(nil, binary.BigEndian, spoken{uint64(m.id), n, k})
	if err != nil {
		return err
	}
	return c.write(c.frame(nil, 0x82, b...))
}

func (m member) hear(c *client) (s spoken, err error) {
	c.conn.SetReadDeadline(time.Now().Add(c.patience))
	p, err := c.read()
	if err != nil {
		return s, err
	}
	if n, err := binary.Decode(p, binary.BigEndian, &s); err != nil || n != len(p) || s.ID >= uint64(m.of) {
		return s, fmt.Errorf("heard %q", p)
	}
	return s, nil
}

// speak says something as often as it has heard itself; mine holds what is under way.
func (m member) speak(c *client, stop <-chan struct{}, mine chan struct{}) error {
	for n, k := uint64(0), inBetween; k != last; n++ {
		select {
		case <-stop:
			k = last
		default:
		}
		select {
		case mine <- struct{}{}:
		case <-c.over:
			return nil
		}
		if err := m.say(c, n, k); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}

// listen hears everybody out.
func (m member) listen(c *client, mine <-chan struct{}) error {
	due := make([]uint64, m.of)
	for left := m.of; left > 0; {
		s, err := m.hear(c)
		switch {
		case err != nil:
			return fmt.Errorf("after %v: %w", due, err)
		case s.Kind == greeting:
			continue
		case s.N != due[s.ID]:
			return fmt.Errorf("of member %d came message %d where %d was due", s.ID, s.N, due[s.ID])
		case s.Kind == last:
			left--
		}
		due[s.ID]++
		if s.ID == uint64(m.id) {
			<-mine
			c.answer()
		}
	}
	return nil
}

// meeting is a story of a hub. Only a barrier keeps all members in one place.
func meeting(app string, members int) story {
	s := story{
		releases: func(int) release { return release{app: app, library: "hub", mode: "barrier"} },
		messages: 4000, handoffs: 16, back: 3,
	}
	for i := range members {
		s.clients = append(s.clients, member{i, members})
	}
	return s
}

func TestHub_EveryMemberHearsEverything(t *testing.T) { meeting(app(t), 8).tell(t) }
