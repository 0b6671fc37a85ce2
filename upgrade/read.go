package upgrade

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Read implements net.Conn. It never returns bytes of one message together with the end of the one before.
func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.inRead > 0 { // another Read
			c.awaitLocked(0)
			continue
		}
		if c.state != running || c.offer != nil || c.parking {
			if wait, err := c.gateLocked(len(p)); err != nil {
				return 0, err
			} else if wait {
				continue
			}
		}
		if c.in.block != nil {
			if n := c.in.deliver(p); n > 0 {
				return n, nil
			}
			if c.scanLocked() {
				continue
			}
		}
		if c.readErr != nil {
			return 0, c.readErr.error
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
		c.settledLocked()
		return true, c.restLocked()
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
		return os.ErrDeadlineExceeded // bare: net/http's watching Read comes here, on a small stack that would have to grow
	}
	c.awaitLocked(c.readBy)
	return nil
}

// restLocked waits for a change that is not the client's to make: the app's deadline rests meanwhile, unless the app sets another one.
func (c *conn) restLocked() error {
	if c.readBy.expired() {
		return os.ErrDeadlineExceeded // bare, as in waitLocked
	}
	by, since := c.readBy, time.Now()
	c.awaitLocked(0)
	if by != 0 && c.readBy == by {
		c.readBy += instant(time.Since(since))
		c.unarmed = true
	}
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
	since := time.Now()
	c.awaitLocked(0)
	c.parked = false
	if c.readBy != 0 { // a pause is not the client's fault: the app's deadlines rest
		c.readBy += instant(time.Since(since))
	}
	c.unarmed = true
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
	if c.in.block == nil && c.wide != nil && len(p) < wideRead {
		return 0, c.wideLocked(len(p))
	}
	if b := c.in.ahead(); len(b) > 0 {
		if h, ok := c.codec.(*httpCodec); ok && h.taken(len(p)) {
			c.giveUpLocked(b)
			return 0, nil
		}
		if len(p) < readAhead {
			return 0, c.fetchLocked()
		}
	}
	if c.in.block != nil {
		if more := c.codec.missing(); more > int64(len(p)) && c.in.mayJournal(more) && c.codec.replays() {
			return 0, c.aheadLocked(int(more))
		}
	}
	n, err := c.receiveLocked(p, nil)
	if n > 0 {
		return c.arrivedLocked(p[:n], n == len(p)), nil
	}
	if err == nil {
		return 0, nil
	}
	return 0, c.laterLocked(err)
}

// laterLocked keeps an error until the bytes that are held have been delivered.
func (c *conn) laterLocked(err error) error {
	if len(c.in.ahead()) > 0 && !isTimeout(err) {
		c.readErr, err = &lateError{err}, nil
	}
	return err
}

// aheadLocked reads more of a message under way, as much of it as there is, where it is kept anyway: libraries come for it in small pieces, and
// each would be a system call. It never reads beyond the message.
func (c *conn) aheadLocked(more int) error {
	c.in.room(more)
	have := len(c.in.block.b)
	n, err := c.receiveLocked(c.in.block.b[have:have+more], nil)
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
	n, err := c.receiveLocked(b.b[:cap(b.b)], nil)
	if n > 0 {
		c.in.add(b.b[:n])
		return nil
	}
	if err != nil {
		err = c.laterLocked(err)
	}
	return err
}

// receiveLocked is one read from the socket, without the lock, into p or by w. Woken by us it returns nothing.
func (c *conn) receiveLocked(p []byte, w *wideReader) (n int, err error) {
	if c.unarmed {
		c.unarmed = false
		c.armLocked()
	}
	c.inRead = int32(min(len(p), wholeRead))
	if w != nil {
		c.inRead = wholeRead
	}
	c.mu.Unlock()
	if w != nil {
		n, err = w.receive(c.sock)
	} else {
		n, err = c.sock.Read(p)
	}
	c.mu.Lock()
	rests := c.parking && c.restsLocked()
	c.inRead = 0
	if c.changed != nil {
		c.notifyLocked()
	}
	if n > 0 && c.idle != nil {
		c.askedLocked()
	}
	if c.waking {
		c.waking, c.unarmed = false, true // it moves, most likely, and needs no deadline any more
		if n == 0 && isTimeout(err) {
			err = nil
		}
	}
	if n == 0 && rests {
		err = nil // what ends the connection can wait as long as it is parked
	}
	return n, err
}

// wideReader reads more at a time than the library asks for, into memory of ours, where messages are longer than its buffer. Each byte is copied
// once more, but there are fewer system calls; and the start of an unfinished message is kept for replay without another copy. While nothing comes
// there is no buffer.
type wideReader struct {
	raw   syscall.RawConn
	read  func(fd uintptr) bool
	block *block
	err   error
}

// wideRead is how much is read at a time.
const wideRead = 16 << 10

// widenLocked begins to read more at a time.
func (c *conn) widenLocked() {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return
	}
	w := &wideReader{raw: raw}
	w.read = func(fd uintptr) bool {
		b := newBlock(wideRead)
		n, err := unix.Read(int(fd), b.b[:cap(b.b)])
		for err == unix.EINTR {
			n, err = unix.Read(int(fd), b.b[:cap(b.b)])
		}
		if n > 0 {
			b.b = b.b[:n]
			w.block = b
		} else {
			b.free()
		}
		w.err = err
		return err != unix.EAGAIN
	}
	c.wide = w
}

// receive waits, and leaves what has come in the block.
func (w *wideReader) receive(s socket) (int, error) {
	err := w.raw.Read(w.read)
	switch {
	case w.block != nil:
		return len(w.block.b), nil
	case isTimeout(err):
		return 0, opError("read", s, os.ErrDeadlineExceeded)
	case err != nil:
		return 0, opError("read", s, net.ErrClosed)
	case w.err != nil:
		return 0, opError("read", s, os.NewSyscallError("read", w.err))
	}
	return 0, io.EOF
}

// wideLocked reads what follows into the inbox, which is empty. A Read of size bytes would not have been enough, or from now on will be again.
func (c *conn) wideLocked(size int) error {
	w := c.wide
	n, err := c.receiveLocked(nil, w)
	c.in.block, w.block = w.block, nil
	if n > 0 && n <= size {
		c.wide = nil
	}
	return err
}

// arrivedLocked decides what of b, which is in the app's buffer, is delivered: the rest is kept here. whole: there was no room for more.
func (c *conn) arrivedLocked(b []byte, whole bool) int {
	if len(c.in.ahead()) > 0 || c.parking { // a held head goes on; or nothing does
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
		if whole && len(b) < wideRead && c.wide == nil {
			c.widenLocked()
		}
	}
	return n
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// pokeLocked makes a blocked Read look at the state again.
func (c *conn) pokeLocked() {
	c.notifyLocked()
	if c.inRead > 0 && !c.waking {
		c.waking = true
		c.sock.SetReadDeadline(past)
	}
}

// opError makes an error as package net does.
func opError(op string, s socket, err error) error {
	return &net.OpError{Op: op, Net: s.LocalAddr().Network(), Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}
