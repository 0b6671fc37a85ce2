package upgrade

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socketListener is what a listener wraps: a *net.TCPListener or a *net.UnixListener.
type socketListener interface {
	net.Listener
	syscall.Conn
	SetDeadline(time.Time) error
}

// listener gives the app new connections and those of the release before.
type listener struct {
	base     socketListener
	name     string
	protocol Protocol

	mu      sync.Mutex // protects what follows; taken after a conn's
	adopted []*conn    // not accepted yet
	paused  bool       // new ones stay in the kernel's queue
	closed  bool
	retired bool          // the socket is closed, and Accept waits: only connections that come back are accepted
	asking  int           // calls of Accept that are in the socket, or hold what came out of it
	changed chan struct{} // closed when something changed while Accept waits without the socket
	still   chan struct{} // closed when asking is 0
}

func newListener(base socketListener, name string, p Protocol) *listener {
	return &listener{base: base, name: name, protocol: p}
}

// Accept implements net.Listener. Adopted connections come first.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, wait, err := l.next()
		switch {
		case err != nil:
			return nil, err
		case c != nil:
			return c, nil
		case wait != nil:
			<-wait
			continue
		}
		raw, err := l.base.Accept()
		var accepted net.Conn
		if err == nil {
			accepted = l.wrap(raw)
		}
		retired := l.asked()
		if err == nil {
			return accepted, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) && !retired {
			return nil, err
		}
	}
}

// next returns an adopted connection, or what to wait for; neither: the socket may be asked.
func (l *listener) next() (c *conn, wait <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.adopted) > 0 {
		c, l.adopted[0], l.adopted = l.adopted[0], nil, l.adopted[1:]
		return c, nil, nil
	}
	if l.closed {
		return nil, nil, opErrorListener(l)
	}
	l.adopted = nil
	if l.paused || l.retired {
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		return nil, l.changed, nil
	}
	l.base.SetDeadline(time.Time{})
	control(l.base, keepNonblocking)
	l.asking++
	return nil, nil, nil
}

// keepNonblocking undoes what others may do to the socket that we have in common: systemd makes the sockets of a .socket unit blocking whenever it
// starts the service again, and os/exec those that it passes on. An Accept that blocks in the kernel hears of no deadline.
func keepNonblocking(fd uintptr) {
	if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err == nil && flags&unix.O_NONBLOCK == 0 {
		unix.SetNonblock(int(fd), true)
	}
}

// asked is called when an Accept has come back from the socket, and what it got is in the list.
func (l *listener) asked() (retired bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asking--; l.asking == 0 && l.still != nil {
		close(l.still)
		l.still = nil
	}
	return l.retired
}

// rest waits until no Accept is in the socket any more: after it, all connections are in the list. Pause or retire it before.
func (l *listener) rest() {
	l.mu.Lock()
	if l.asking == 0 {
		l.mu.Unlock()
		return
	}
	if l.still == nil {
		l.still = make(chan struct{})
	}
	still := l.still
	l.mu.Unlock()
	<-still
}

// retire gives the socket back for good. The app's Accept does not notice: it waits, so that an app that takes an error there for its end lives
// as long as its connections.
func (l *listener) retire() {
	l.mu.Lock()
	l.retired = true
	l.wakeLocked()
	l.mu.Unlock()
	l.base.Close()
	l.rest()
}

func opErrorListener(l *listener) error {
	return &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
}

// wrap makes an accepted connection one that can move.
func (l *listener) wrap(raw net.Conn) net.Conn {
	switch s := raw.(type) {
	case *net.TCPConn:
		return l.add(s)
	case *net.UnixConn:
		return l.add(s)
	}
	return raw
}

func (l *listener) add(s socket) *conn {
	c := newConn(s, l)
	live.add(c)
	return c
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.mu.Lock()
	waiting := l.adopted
	l.adopted, l.closed = nil, true
	l.wakeLocked()
	l.mu.Unlock()
	for _, c := range waiting {
		c.abandon()
	}
	return l.base.Close()
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.base.Addr() }

// pause leaves new connections in the kernel's queue, for whoever else listens there. Adopted ones are still accepted.
func (l *listener) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused = true
	l.wakeLocked()
}

// proceed undoes pause.
func (l *listener) proceed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused = false
	l.wakeLocked()
}

// wakeLocked makes Accept look again.
func (l *listener) wakeLocked() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	if !l.closed {
		l.base.SetDeadline(past)
	}
}

// deliver hands adopted connections to the app. Their listeners wake once.
func deliver(conns []*conn) {
	live.add(conns...)
	for len(conns) > 0 {
		l := conns[0].listener
		n := 1
		for n < len(conns) && conns[n].listener == l {
			n++
		}
		l.deliver(conns[:n])
		conns = conns[n:]
	}
}

func (l *listener) deliver(conns []*conn) {
	l.mu.Lock()
	ok := !l.closed
	if ok {
		l.adopted = append(l.adopted, conns...)
		l.wakeLocked()
	}
	l.mu.Unlock()
	if ok {
		return
	}
	for _, c := range conns { // nobody will accept them
		go c.abandon()
	}
}

// adopt makes a connection of a record and its descriptor, and hands it to the app.
func (l *listener) adopt(r *record, fd int) (*conn, error) {
	c, err := l.makeAdopted(&replay{record: r}, fd)
	if err != nil {
		return nil, err
	}
	deliver([]*conn{c})
	c.leaveRetired()
	return c, nil
}

// leaveRetired gives an adopted connection up if nothing is to come here any more. It is called only when it is in the list: who finds the list empty
// and ends the process has retired the listener before.
func (c *conn) leaveRetired() {
	l := c.listener
	l.mu.Lock()
	retired := l.retired
	l.mu.Unlock()
	if retired {
		c.abandon()
	}
}

// conns returns the connections that are alive.
func (l *listener) conns() []*conn { return live.of(l) }

func (l *listener) remove(c *conn) { live.remove(c) }
