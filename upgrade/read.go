package upgrade

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// Read implements net.Conn. It never returns bytes of one message together with the end of the one before.
func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if wait, err := c.gateLocked(len(p)); err != nil {
			return 0, err
		} else if wait {
			continue
		}
		if n := c.in.deliver(p); n > 0 {
			return n, nil
		}
		if c.scanLocked() {
			continue
		}
		if c.readErr != nil {
			return 0, c.readErr
		}
		if n, err := c.fillLocked(p); n > 0 || err != nil {
			return n, err
		}
	}
}

// gateLocked decides whether a Read may go on. wait: it has waited, look again.
func (c *conn) gateLocked(size int) (wait bool, err error) {
	switch c.state {
	case running:
		if c.offer == nil && !c.parking {
			return false, nil
		}
		return c.pauseLocked(size)
	case replaying:
		return c.rehearseLocked()
	case answered:
		if c.ending {
			return false, opError("read", c.sock, net.ErrClosed)
		}
		if !c.arrived {
			c.arrived = true
			c.notifyLocked()
		}
		return true, c.waitLocked()
	case refused:
		return false, io.EOF
	case closed:
		return false, opError("read", c.sock, net.ErrClosed)
	}
	return false, ErrHandoff
}

// waitLocked waits for a change, as long as the app's deadline allows.
func (c *conn) waitLocked() error {
	if c.readBy.expired() {
		return opError("read", c.sock, os.ErrDeadlineExceeded)
	}
	c.awaitLocked(c.readBy)
	return nil
}

// pauseLocked parks a Read, or tells it that the connection moves, if it may move just now.
func (c *conn) pauseLocked(size int) (wait bool, err error) {
	if c.codec.busy(size) || c.in.lost || c.in.read < c.in.scanned {
		return false, nil // what may be delivered is, so that a frame that came whole is not torn here
	}
	if why := c.codec.stays(); why != "" {
		c.stayLocked(why)
		return false, nil
	}
	if c.offer != nil {
		c.state, c.offer.told = told, time.Now()
		c.notifyLocked()
		return false, ErrHandoff
	}
	c.parked = true
	c.notifyLocked()
	c.awaitLocked(0) // a pause is not the client's fault: the app's deadlines rest
	c.parked = false
	c.armLocked()
	return true, nil
}

// scanLocked looks at bytes that came ahead. false: there are none, or they tell nothing without more.
func (c *conn) scanLocked() bool {
	b := c.in.ahead()
	if len(b) == 0 {
		return false
	}
	n, end, err := c.codec.in(b)
	if err != nil {
		c.giveUpLocked(b)
		n, end = len(b), false
	}
	if n == 0 && !end {
		if c.readErr == nil {
			return false
		}
		n = len(b) // nothing more will come
	}
	if !c.replaceLocked(n) {
		c.in.approve(n, end)
	}
	if !c.in.end && (!c.codec.replays() || len(c.in.kept()) > MaxKept) {
		c.in.forget()
	}
	return true
}

// replaceLocked delivers an edited head in the place of the one that has just been scanned.
func (c *conn) replaceLocked(n int) bool {
	h, ok := c.codec.(*httpCodec)
	if !ok || h.edited == nil {
		return false
	}
	c.in.replace(n, h.edited)
	h.edited = nil
	return true
}

// giveUpLocked: b is not the protocol we know. Everything passes, and the connection stays.
func (c *conn) giveUpLocked(b []byte) {
	why := ReasonUnknown
	switch {
	case !c.in.between() || len(b) == 0:
	case b[0] == tlsHandshake:
		why = ReasonTLS
	case bytes.HasPrefix(b, http2Preface):
		why = ReasonHTTP2
	}
	c.codec = rawCodec{why}
	c.stayLocked(why)
}

const tlsHandshake = 0x16 // first byte of a TLS connection

var http2Preface = []byte("PRI * HTTP/2.0\r\n\r\n")

// fillLocked reads from the wire, into p if possible. Without bytes and without an error: look again.
func (c *conn) fillLocked(p []byte) (int, error) {
	if len(c.in.ahead()) > 0 && len(p) < readAhead {
		return 0, c.fetchLocked()
	}
	if more := c.codec.missing(); more > int64(len(p)) && c.in.mayJournal(more) && c.codec.replays() {
		return 0, c.aheadLocked(int(more))
	}
	n, err := c.receiveLocked(p)
	if n > 0 {
		return c.arrivedLocked(p[:n]), nil
	}
	if err == nil {
		return 0, nil
	}
	return 0, c.laterLocked(err)
}

// laterLocked keeps an error until the bytes that are held have been delivered.
func (c *conn) laterLocked(err error) error {
	if len(c.in.ahead()) > 0 && !isTimeout(err) {
		c.readErr, err = err, nil
	}
	return err
}

// aheadLocked reads more of a message under way, as much of it as there is, where it is kept anyway: libraries come for it in small pieces, and
// each would be a system call. It never reads beyond the message.
func (c *conn) aheadLocked(more int) error {
	c.in.room(more)
	have := len(c.in.block.b)
	n, err := c.receiveLocked(c.in.block.b[have : have+more])
	if c.in.block.b = c.in.block.b[:have+n]; n > 0 {
		return nil
	}
	return err
}

// readAhead is how much room a Read must have to get the rest of a held head directly: net/http watches with one byte.
const readAhead = 512

// fetchLocked reads more of a held head into the inbox.
func (c *conn) fetchLocked() error {
	b := newBlock(32 * readAhead)
	defer b.free()
	n, err := c.receiveLocked(b.b[:cap(b.b)])
	if n > 0 {
		c.in.add(b.b[:n])
		return nil
	}
	if err != nil {
		err = c.laterLocked(err)
	}
	return err
}

// receiveLocked is one read from the socket, without the lock. Woken by us it returns nothing.
func (c *conn) receiveLocked(p []byte) (int, error) {
	c.inRead = true
	c.mu.Unlock()
	n, err := c.sock.Read(p)
	c.mu.Lock()
	c.inRead = false
	if n > 0 && c.idle != nil {
		c.askedLocked()
	}
	if c.waking {
		c.waking = false
		c.armLocked()
		if n == 0 && isTimeout(err) {
			err = nil
		}
	}
	return n, err
}

// arrivedLocked decides what of b, which is in the app's buffer, is delivered: the rest is kept here.
func (c *conn) arrivedLocked(b []byte) int {
	if len(c.in.ahead()) > 0 { // a held head goes on
		c.in.add(b)
		return 0
	}
	n, end, err := c.codec.in(b)
	if err != nil {
		c.giveUpLocked(b)
		n, end = len(b), false
	}
	if h, ok := c.codec.(*httpCodec); ok && h.edited != nil {
		c.in.add(b)
		c.replaceLocked(n)
		return 0
	}
	switch {
	case end:
		c.in.add(b[n:])
		c.in.drop(len(c.in.kept()) - len(b[n:]))
	case n == 0:
		c.in.add(b)
	case !c.codec.replays():
		c.in.forget()
		c.in.add(b[n:])
	default:
		c.in.journal(b[:n], c.codec.missing())
		c.in.add(b[n:])
	}
	return n
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// pokeLocked makes a blocked Read look at the state again.
func (c *conn) pokeLocked() {
	c.notifyLocked()
	if c.inRead && !c.waking {
		c.waking = true
		c.sock.SetReadDeadline(past)
	}
}

// opError makes an error as package net does.
func opError(op string, s socket, err error) error {
	return &net.OpError{Op: op, Net: s.LocalAddr().Network(), Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}
