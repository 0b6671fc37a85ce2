package upgrade

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// This file is the side that gives a connection away. The order, for whoever carries it to the other process:
//
//	o := c.begin()              the app is told at its next Read
//	r, why := o.seal(ctx)       its handler has returned and closed; with a reason instead of a record, c sees to itself
//	... r and the descriptor (c.control) go over; the other app accepts ...
//	c.confirm()                 or, if that fails at any point: c.resume()
//
// Between seal and confirm or resume nobody touches the socket.

// offer is one attempt to give a connection away.
type offer struct {
	conn *conn
	told time.Time // when the app was: the client's pause began
	why  Reason

	// Who hears that it is sealed or stays: either whoever waits, or a giver.
	done   chan struct{}
	giver  *giver
	sealed *sealedConn
}

// begin wakes the app's Read, which returns ErrHandoff as soon as the connection may move. It does not block. A connection that has just
// come, and whose app has not answered, is waited for.
func (c *conn) begin() *offer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.offer != nil && c.offer.done != nil {
		return c.offer
	}
	o := &offer{conn: c, done: make(chan struct{})}
	c.beginLocked(o)
	return o
}

// beginWith is begin for a giver.
func (c *conn) beginWith(o *offer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beginLocked(o)
}

func (c *conn) beginLocked(o *offer) {
	if c.offer != nil { // somebody else is at it
		o.endLocked(ReasonUnsettled)
		return
	}
	c.offer = o
	switch c.state {
	case running:
		if why := c.codec.stays(); why != "" {
			c.stayLocked(why)
			return
		}
		if len(c.tail) > MaxUnsent { // its app would not get another word in, and never come to an end
			c.stayLocked(ReasonUnsent)
			return
		}
		c.pokeLocked()
		c.interruptLocked()
	case sealed, gone, refused, closed:
		c.stayLocked(ReasonClosed)
	}
}

// endLocked tells that the attempt has come to its end, with the connection's lock held.
func (o *offer) endLocked(why Reason) {
	o.why = why
	if o.done != nil {
		close(o.done)
	}
	if o.giver != nil {
		o.giver.settled(o.sealed)
	}
}

// stayLocked ends the attempt under way, if there is one.
func (c *conn) stayLocked(why Reason) {
	if o := c.offer; o != nil {
		c.offer = nil
		o.endLocked(why)
		c.notifyLocked()
		c.flushLocked()
	}
}

// seal waits until the app has let go of the connection, and returns what the next owner needs to know. When ctx ends first, or the
// connection cannot move, it returns why. A handler that was told and closes later finds its connection taken up
// again by its own process.
func (o *offer) seal(ctx context.Context) (*record, Reason) {
	select {
	case <-o.done:
	case <-ctx.Done():
		o.withdraw()
		<-o.done
	}
	if o.why != "" {
		return nil, o.why
	}
	r, err := o.conn.pack()
	if err != nil {
		o.conn.resume(r)
		return nil, ReasonState
	}
	return r, ""
}

// withdraw ends an attempt that took too long.
func (o *offer) withdraw() {
	c := o.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.offer != o {
		return
	}
	switch c.state {
	case sealed:
	case told:
		c.stayLocked(ReasonStuck)
	case replaying, answered:
		c.stayLocked(ReasonUnsettled)
	default:
		c.stayLocked(ReasonBusy)
	}
}

// sealLocked is the app's Close after ErrHandoff.
func (c *conn) sealLocked() {
	if !c.codec.settled() {
		c.closeLocked(ReasonHalfWritten)
		return
	}
	c.state = sealed
	c.notifyLocked()
	if c.offer != nil {
		c.offer.endLocked("")
		return
	}
	go c.resumeLate()
}

// pack makes the record of a sealed connection. The state comes from the app, whose handler has returned. With an error the
// record is without it.
func (c *conn) pack() (*record, error) {
	c.mu.Lock()
	c.beginWriteLocked() // one that had begun before the seal is over
	c.endWriteLocked()
	r := &record{
		listener: c.listener.name, protocol: c.listener.protocol.name,
		opening: c.opening(), kept: append([]byte(nil), c.in.kept()...), unsent: c.tail,
		local: addrPort(c.sock.LocalAddr()), remote: addrPort(c.sock.RemoteAddr()),
	}
	switch k := c.codec.(type) {
	case *wsCodec:
		r.extensions, r.subprotocol = k.shake.extensions, k.shake.protocol
	case *mqttCodec:
		r.answer = k.answer
	case *httpCodec:
		by := c.readBy.time()
		if c.idle != nil { // it has moved before: what our server wants is of a first request
			by = c.idle.by
		}
		if !by.IsZero() {
			r.idle = max(time.Until(by), time.Millisecond)
		}
	}
	s := c.session
	c.mu.Unlock()
	return r, r.addState(s)
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok && t != nil {
		return t.AddrPort()
	}
	return netip.AddrPort{}
}

// addState calls the app's function, outside of any lock of ours.
func (r *record) addState(s *session) (err error) {
	switch {
	case s == nil:
		return nil
	case s.save == nil:
		r.stateVersion, r.state = s.version, s.state // nobody has taken it up yet: it travels on
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("save the state of a connection: %v", p)
		}
	}()
	state, err := s.save()
	if err == nil && len(state) > MaxState {
		err = fmt.Errorf("save the state of a connection: %d bytes, more than %d", len(state), MaxState)
	}
	if err == nil {
		r.stateVersion, r.state = s.saveVersion, state
	}
	return err
}

// confirm lets go of a sealed connection whose next owner has it. Our descriptor is closed without a word to the client.
func (c *conn) confirm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == sealed {
		c.state = gone
		c.forgetLocked()
		c.sock.Close() // no shutdown, no linger: the description lives on
	}
}

// resume takes a sealed connection up again, by the same replay into the app of this process, and returns the conn that follows it.
func (c *conn) resume(r *record) *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != sealed {
		return nil
	}
	c.state = gone
	next := newAdopted(&conn{}, c.sock, c.listener, &replay{record: r, opened: true})
	c.sock.SetDeadline(time.Time{}) // what this one may have left
	deliver([]*conn{next})          // before this one is forgotten: a process without connections may end
	c.forgetLocked()
	return next
}

// resumeLate is for a handler that closed when nobody waited for it any more.
func (c *conn) resumeLate() {
	r, _ := c.pack()
	c.resume(r)
}

// control lends the descriptor for sending it.
func (c *conn) control(use func(fd uintptr)) error { return control(c.sock, use) }

// park makes Read wait at the next place where the connection could move, without telling the app, so that it can finish what it has.
// Writes go on, and do not block: a handler that waits for a slow client would never come to a Read. It returns at once; whether it has come to that is
// asked of [conn.atRest]. A Read that waits for the client at such a place is left alone: it gives nothing any more.
func (c *conn) park() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parking = true
	c.interruptLocked()
	if !c.restsLocked() {
		c.pokeLocked()
	}
}

// restsLocked says that a Read of a parked connection waits, here or in the socket.
func (c *conn) restsLocked() bool {
	return c.parked || c.inRead > 0 && !c.waking && !c.in.lost && !c.codec.busy(int(c.inRead))
}

// unpark undoes park.
func (c *conn) unpark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parking = false
	c.notifyLocked()
	c.flushLocked()
}

// atRest waits until a parked connection's Read waits, or will never.
func (c *conn) atRest(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.parking && !c.restsLocked() && c.state == running && c.codec.stays() == "" {
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
			c.mu.Lock()
		case <-ctx.Done():
			c.mu.Lock()
			return ctx.Err()
		}
	}
	return nil
}
