package upgrade

import (
	"net"
	"sync"
	"syscall"
	"time"
)

// socket is what a conn needs of what it wraps: a *net.TCPConn, a *net.UnixConn, or a descriptor that was adopted.
type socket interface {
	net.Conn
	syscall.Conn
}

// state says who owns a connection and how far its move has come.
//
//	replaying ─ the app has answered ─► answered ─ opened ─► running ─ Read gave ErrHandoff ─► told ─ Close ─► sealed ─► gone
//	    └─────────── refused ───────────────┴────────────────── closed ◄── Close ──┘
type state uint8

const (
	running   state = iota
	replaying       // adopted: the app is told the opening again; the socket is not ours, or not to be touched
	answered        // the app has accepted; the socket is not ours yet
	told            // the app knows that the connection moves; still ours
	sealed          // the app has closed; still ours
	gone            // somebody else's: another process, or the conn that follows this one here
	refused         // adopted, and the app would not have it, or it was taken back: never ours
	closed
)

// conn is a connection that can move. It is a net.Conn for the app and has a second set of methods for whoever moves it
// (begin, confirm, resume; verdict, open, abandon).
//
// mu protects everything below it and is never held while anything blocks; inRead and writing make readers and writers wait for each other.
type conn struct {
	sock     socket
	listener *listener

	mu       sync.Mutex
	state    state
	writing  bool // a Write is under way, or who must not meet one
	inWrite  bool // and in the socket
	waking   bool // the read deadline is ours, to wake a Read
	unarmed  bool // the read deadline is ours, and no Read is in the socket
	stopping bool // the write deadline is ours
	flushing bool // a goroutine writes the tail, and the write deadline is ours
	parking  bool // Read shall wait between messages
	parked   bool // and does
	ending   bool // closed by the app, while bytes are still unsent

	inRead  int32   // a Read is in the socket, with room for so many bytes (or more than wholeRead)
	readBy  instant // as the app wants it
	writeBy instant
	changed chan struct{} // closed when something changed that somebody waits for
	readErr *lateError
	codec   codec
	in      inbox
	wide    *wideReader // nil as long as messages fit into the library's buffer
	tail    []byte      // written by the app, not taken by the kernel; goes first
	replay  *replay
	idle    *idle
	offer   *offer
	session *session
	resumed bool
}

func newConn(sock socket, l *listener) *conn {
	return &conn{sock: sock, listener: l, codec: l.protocol.codec()}
}

func (c *conn) LocalAddr() net.Addr  { return c.sock.LocalAddr() }
func (c *conn) RemoteAddr() net.Addr { return c.sock.RemoteAddr() }

// SyscallConn gives the app the descriptor, for socket options. What it reads or writes there we do not see.
func (c *conn) SyscallConn() (syscall.RawConn, error) { return c.sock.SyscallConn() }

// NetConn returns the connection below, of which the same is true.
func (c *conn) NetConn() net.Conn { return c.sock }

// lateError is an error of the wire that came after bytes that are still in the inbox.
type lateError struct{ error }

// instant is a time.Time in a third of the room: nanoseconds since the process began, 0 for none.
type instant int64

var began = time.Now()

func instantOf(t time.Time) instant {
	if t.IsZero() {
		return 0
	}
	if i := instant(t.Sub(began)); i != 0 {
		return i
	}
	return 1
}

func (i instant) time() time.Time {
	if i == 0 {
		return time.Time{}
	}
	return began.Add(time.Duration(i))
}

func (i instant) expired() bool { return i != 0 && time.Since(began) >= time.Duration(i) }

// opening is what is replayed; nil for protocols without.
func (c *conn) opening() []byte {
	switch k := c.codec.(type) {
	case *wsCodec:
		return k.shake.opening
	case *mqttCodec:
		if !k.connecting { // else what there is of it is kept
			return k.opening
		}
	}
	return nil
}

// past is a deadline that wakes whoever blocks.
var past = time.Unix(1, 0)

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn. While our own deadline wakes a Read the app's is only noted.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == told || c.state == sealed {
		return nil // what was in force when the app was told goes along
	}
	c.readBy = instantOf(t)
	if c.state == running && !c.waking && !c.parked {
		c.unarmed = false
		return c.armLocked()
	}
	c.notifyLocked()
	return c.deadErrorLocked("set")
}

// armLocked gives the socket the read deadline that is in force.
func (c *conn) armLocked() error {
	if c.idle != nil {
		return c.sock.SetReadDeadline(c.idle.by)
	}
	return c.sock.SetReadDeadline(c.readBy.time())
}

// idle is an HTTP connection that has moved while nothing was asked. Its server takes it for a new one and gives it little time for a first
// request; in truth the time that the one before allowed goes on.
type idle struct {
	by    time.Time // as the server before would have it
	since time.Time
}

// askedLocked ends it: the server's own limit starts with the first byte.
func (c *conn) askedLocked() {
	if c.readBy != 0 {
		c.readBy += instant(time.Since(c.idle.since))
	}
	c.idle = nil
	c.armLocked()
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBy = instantOf(t)
	if c.state == running && !c.stopping && !c.flushing {
		return c.sock.SetWriteDeadline(t)
	}
	c.notifyLocked()
	return c.deadErrorLocked("set")
}

// deadErrorLocked is what a call gets after Close.
func (c *conn) deadErrorLocked(op string) error {
	if c.state == closed || c.ending {
		return opError(op, c.sock, net.ErrClosed)
	}
	return nil
}

// Close ends the connection; or, after a Read has returned ErrHandoff, seals it: then it lives on elsewhere.
func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state {
	case told:
		c.sealLocked()
		return nil
	case sealed, gone:
		return nil
	case replaying, refused:
		c.refuseLocked(ReasonRefused)
		return nil
	case answered:
		c.ending = true // it is not ours to close yet
		c.settledLocked()
		c.notifyLocked()
		return nil
	case closed:
		return opError("close", c.sock, net.ErrClosed)
	}
	if len(c.tail) > 0 && !c.ending {
		c.lingerLocked()
		return nil
	}
	return c.closeLocked(ReasonClosed)
}

// CloseWrite ends the writing half, as servers do that want the client to read an error to its end.
func (c *conn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beginWriteLocked()
	defer c.endWriteLocked()
	s, ok := c.sock.(interface{ CloseWrite() error })
	if c.state != running || !ok {
		return c.deadErrorLocked("close")
	}
	c.codec = rawCodec{ReasonClosing}
	c.stayLocked(ReasonClosing)
	return s.CloseWrite()
}

// closeLocked ends the connection for the client too.
func (c *conn) closeLocked(why Reason) error {
	if c.state == closed {
		return nil
	}
	c.state = closed
	c.forgetLocked()
	c.stayLocked(why)
	return c.sock.Close()
}

// forgetLocked lets go of memory and of the listener's list.
func (c *conn) forgetLocked() {
	c.listener.remove(c)
	c.tail = nil
	c.notifyLocked()
}

// notifyLocked wakes who waits in awaitLocked.
func (c *conn) notifyLocked() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// awaitLocked lets go of the lock until something has changed or by has come.
func (c *conn) awaitLocked(by instant) {
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	changed := c.changed
	c.mu.Unlock()
	defer c.mu.Lock()
	if by == 0 {
		<-changed
		return
	}
	timer := time.NewTimer(time.Until(by.time()))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	}
}

// control lends the descriptor, without taking it out of non-blocking mode as File().Fd() would.
func control(s syscall.Conn, use func(fd uintptr)) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(use)
}
