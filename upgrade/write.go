package upgrade

import (
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Write implements net.Conn. Once a handoff has begun it does not block: what the kernel does not take at once goes along, and counts as
// written, as it would in the kernel's own buffer.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	if c.flushing && !c.awaitFlushLocked() {
		defer c.mu.Unlock()
		return c.joinLocked(p)
	}
	defer c.unlockWrite()
	c.beginWriteLocked()
	if c.state != running || c.ending {
		if c.state == replaying {
			return c.answerLocked(p)
		}
		c.roomLocked()
		if err := c.mayWriteLocked(); err != nil || c.state == refused {
			return len(p), err
		}
	}
	n := c.codec.out(p, c.state == told)
	c.afterOutLocked()
	sent, err := c.sendLocked(p[:n])
	if len(c.tail) > 0 {
		c.flushLocked()
	}
	if err != nil {
		return sent, err
	}
	if c.offer != nil {
		c.pokeLocked() // an answer may have been the last thing to wait for
	}
	return len(p), nil
}

func (c *conn) unlockWrite() {
	c.endWriteLocked()
	c.mu.Unlock()
}

// awaitFlushLocked waits until the tail is written, as long as the app's deadline allows.
func (c *conn) awaitFlushLocked() (gone bool) {
	for c.flushing && (c.state == running || c.state == told) {
		if c.writeBy.expired() {
			return false
		}
		c.awaitLocked(c.writeBy)
	}
	return true
}

// joinLocked puts p behind the tail, for a Write whose time is over: the app takes what is ahead of it for written, and would take its client for
// dead. If there is no room it is.
func (c *conn) joinLocked(p []byte) (int, error) {
	if len(c.tail)+len(p) > MaxUnsent {
		return 0, opError("write", c.sock, os.ErrDeadlineExceeded)
	}
	n := c.codec.out(p, c.state == told)
	c.afterOutLocked()
	c.tail = append(c.tail, p[:n]...)
	return len(p), nil
}

// beginWriteLocked waits until no other Write is under way. What is written stays in order.
func (c *conn) beginWriteLocked() {
	for c.writing || c.flushing {
		c.awaitLocked(0)
	}
	c.takeTurnLocked()
}

func (c *conn) takeTurnLocked() {
	for c.writing {
		c.awaitLocked(0)
	}
	c.writing = true
}

func (c *conn) endWriteLocked() {
	c.writing = false
	if c.changed != nil {
		c.notifyLocked()
	}
}

// ReadFrom implements io.ReaderFrom, so that net/http can have the kernel send files.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	if n, handled, err := c.sendFile(r); handled {
		return n, err
	}
	return io.Copy(struct{ io.Writer }{c}, r)
}

// sendFile leaves the body of an answer to the socket. Such a connection does not move, so nothing has to be known but the length.
func (c *conn) sendFile(r io.Reader) (n int64, handled bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beginWriteLocked()
	defer c.endWriteLocked()
	h, ok := c.codec.(*httpCodec)
	s, ok2 := c.sock.(io.ReaderFrom)
	if !ok || !ok2 || c.state != running || !h.answering || h.answer.step != bodyLength || len(c.tail) > 0 {
		return 0, false, nil
	}
	c.mu.Unlock()
	n, err = s.ReadFrom(r)
	c.mu.Lock()
	h.sent(n)
	if c.offer != nil {
		c.pokeLocked()
	}
	return n, true, err
}

// roomLocked slows the app down where it writes more than can go along.
func (c *conn) roomLocked() {
	for c.state != running && c.carriesLocked() && len(c.tail) > MaxUnsent && !c.writeBy.expired() {
		c.awaitLocked(c.writeBy)
	}
}

func (c *conn) mayWriteLocked() error {
	switch {
	case c.state == sealed, c.state == gone:
		return ErrHandoff
	case c.state == closed, c.ending:
		return opError("write", c.sock, net.ErrClosed)
	}
	return nil
}

// afterOutLocked follows an HTTP connection that has just become a WebSocket, or something that we do not know.
func (c *conn) afterOutLocked() {
	h, ok := c.codec.(*httpCodec)
	switch {
	case !ok || h.switched == nil && h.why == "":
		return
	case h.switched != nil:
		c.codec = h.switched
	}
	if len(c.in.ahead()) > 0 {
		c.pokeLocked() // bytes were held until it was known whose they are
	}
}

// sendLocked writes b after whatever is unsent. What cannot be written now is kept if the connection is on its way.
func (c *conn) sendLocked(b []byte) (int, error) {
	if c.carriesLocked() {
		return c.carryLocked(b)
	}
	for len(c.tail) > 0 {
		if n, err := c.transmitLocked(c.tail); err != nil {
			return 0, err
		} else if c.tail = c.tail[n:]; len(c.tail) == 0 {
			c.tail = nil
		}
		if c.carriesLocked() {
			return c.carryLocked(b)
		}
	}
	n, err := c.transmitLocked(b)
	if err == nil && n < len(b) {
		_, err = c.carryLocked(b[n:])
	}
	if err != nil {
		return n, err
	}
	return len(b), nil
}

// carriesLocked says that writes do not block but go along.
func (c *conn) carriesLocked() bool {
	if c.parking && c.state == running && c.codec.replays() && len(c.tail) <= MaxUnsent {
		return true
	}
	return c.state == answered || c.offer != nil && (c.state == told || c.codec.replays())
}

// transmitLocked is one write to the socket, without the lock; with less than b and no error if we stopped it.
func (c *conn) transmitLocked(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	c.inWrite = true
	c.mu.Unlock()
	n, err := c.sock.Write(b)
	c.mu.Lock()
	c.inWrite = false
	if c.stopping {
		c.stopping = false
		c.sock.SetWriteDeadline(c.writeBy.time())
		if isTimeout(err) {
			err = nil
		}
	}
	return n, err
}

// carryLocked writes what the kernel takes at once and keeps the rest.
func (c *conn) carryLocked(b []byte) (int, error) {
	if c.state != answered {
		if err := c.drainLocked(); err != nil {
			return 0, err
		}
	}
	k := 0
	if len(c.tail) == 0 && c.state != answered {
		var err error
		if k, err = c.sendNow(b); err != nil {
			return k, err
		}
	}
	c.tail = append(c.tail, b[k:]...)
	if len(c.tail) > MaxUnsent {
		c.tooMuchLocked()
	}
	return len(b), nil
}

// drainLocked writes as much of the tail as the kernel takes at once.
func (c *conn) drainLocked() error {
	n, err := c.sendNow(c.tail)
	if c.tail = c.tail[n:]; len(c.tail) == 0 {
		c.tail = nil
	}
	return err
}

// tooMuchLocked gives the handoff up if that still can be: the app is to be slowed down again.
func (c *conn) tooMuchLocked() {
	if c.state == running {
		c.stayLocked(ReasonUnsent)
		c.flushLocked()
	}
}

// sendNow writes without waiting, whatever the deadlines are.
func (c *conn) sendNow(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	cerr := control(c.sock, func(fd uintptr) {
		for n < len(b) && err == nil {
			var k int
			if k, err = unix.Write(int(fd), b[n:]); k > 0 {
				n += k
			}
			if err == unix.EINTR {
				err = nil
			}
		}
	})
	switch {
	case cerr != nil:
		return n, opError("write", c.sock, net.ErrClosed)
	case err == unix.EAGAIN:
		return n, nil
	case err != nil:
		return n, opError("write", c.sock, os.NewSyscallError("write", err))
	}
	return n, nil
}

// flushLocked starts writing the tail in the background.
func (c *conn) flushLocked() {
	if len(c.tail) > 0 && !c.flushing && c.flushableLocked() {
		c.flushing = true
		go c.flush()
	}
}

// flushableLocked: told but not waited for, a stuck handler's connection serves on.
func (c *conn) flushableLocked() bool {
	return (c.state == running || c.state == told) && !c.carriesLocked()
}

// flush writes the tail until it is gone, or goes along in a handoff, or the socket fails. It ends with the connection. The app's deadlines are about what it
// writes next.
func (c *conn) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.takeTurnLocked()
	defer c.endWriteLocked()
	defer func() {
		c.flushing = false
		if c.state == running && c.writeBy != 0 {
			c.sock.SetWriteDeadline(c.writeBy.time())
		}
	}()
	for len(c.tail) > 0 && (c.flushableLocked() || c.ending) {
		if !c.ending {
			c.sock.SetWriteDeadline(time.Time{})
		}
		n, err := c.transmitLocked(c.tail)
		if c.tail = c.tail[min(n, len(c.tail)):]; err != nil {
			break
		}
	}
	if len(c.tail) == 0 {
		c.tail = nil
	}
	if c.ending {
		c.ending = false
		c.sock.Close()
		lingering.Add(-1)
		live.notify()
	}
}

// lingerTime bounds how long a closed connection writes what its app believes to be written.
const lingerTime = time.Minute

// lingerLocked closes for the app at once and for the client after the last byte.
func (c *conn) lingerLocked() {
	c.state, c.ending = closed, true
	lingering.Add(1)
	c.sock.SetWriteDeadline(time.Now().Add(lingerTime))
	c.listener.remove(c)
	c.stayLocked(ReasonClosed)
	c.pokeLocked()
	if !c.flushing {
		c.flushing = true
		go c.flush()
	}
}

// interruptLocked stops a Write that blocks, so that the rest goes along.
func (c *conn) interruptLocked() {
	if c.inWrite && !c.stopping && c.carriesLocked() {
		c.stopping = true
		c.sock.SetWriteDeadline(past)
	}
}
