package upgrade

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// socketListener is what a listener wraps: a *net.TCPListener or a *net.UnixListener.
type socketListener interface {
	net.Listener
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
	changed chan struct{} // closed when something changed while Accept waits without the socket
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
		if err == nil {
			return l.wrap(raw), nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
	}
}

// next returns an adopted connection, or what to wait for; neither: the socket may be asked.
func (l *listener) next() (c *conn, wait <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.adopted) > 0 {
		c, l.adopted = l.adopted[0], l.adopted[1:]
		return c, nil, nil
	}
	if l.closed {
		return nil, nil, opErrorListener(l)
	}
	l.adopted = nil
	if l.paused {
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		return nil, l.changed, nil
	}
	l.base.SetDeadline(time.Time{})
	return nil, nil, nil
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

// deliver hands an adopted connection to the app.
func (l *listener) deliver(c *conn) {
	live.add(c)
	l.mu.Lock()
	ok := !l.closed
	if ok {
		l.adopted = append(l.adopted, c)
		l.wakeLocked()
	}
	l.mu.Unlock()
	if !ok {
		go c.abandon() // nobody will accept it
	}
}

// adopt makes a connection of a record and its descriptor, which is ours from here on, also with an error.
func (l *listener) adopt(r *record, fd int) (*conn, error) {
	s, err := newFDSocket(fd)
	if err != nil {
		return nil, err
	}
	if r.listener != l.name || r.protocol != l.protocol.name {
		s.Close()
		return nil, fmt.Errorf("adopt a connection of listener %q (%s) at listener %q (%s)", r.listener, r.protocol, l.name, l.protocol.name)
	}
	c := newAdopted(s, l, r)
	l.deliver(c)
	return c, nil
}

// conns returns the connections that are alive.
func (l *listener) conns() []*conn { return live.of(l) }

func (l *listener) remove(c *conn) { live.remove(c) }
