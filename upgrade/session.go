package upgrade

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// Session is what an app knows of a connection across releases. Its methods may be called by any goroutine and do not block. The nil Session is one
// of a connection that cannot move, since it did not come from our listener: its methods may be called too, and do nothing.
type Session struct{ c *conn }

// session is the state that came with a connection, and how to get the one to send along.
type session struct {
	version     uint32
	state       []byte
	saveVersion uint32
	save        func() ([]byte, error)
}

// SessionOf returns the session of the connection that an HTTP request came on; ctx is the request's, or made from it. It is nil if the server did
// not get the connection from [Upgrader.Listen].
func SessionOf(ctx context.Context) *Session {
	addr, _ := ctx.Value(http.LocalAddrContextKey).(net.Addr)
	return live.session(addr)
}

// SessionOfConn returns the session of a connection that Accept has returned, also of one that wraps it and passes LocalAddr on. It is nil for
// any other, and when the connection has been closed.
func SessionOfConn(c net.Conn) *Session { return live.session(c.LocalAddr()) }

// Resumed says that the client has been connected since an earlier release (or has come back to this one): its opening
// is as old as the connection, and so are the tokens in it.
func (s *Session) Resumed() bool { return s != nil && s.c.resumed }

// State returns what the release before has saved and the version that it gave it; 0 and nil if there is nothing, as for a new client. The bytes
// must not be changed. After Save there is nothing any more: what the release before knew is what the app makes of it now.
func (s *Session) State() (version uint32, state []byte) {
	if s == nil {
		return 0, nil
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.c.session == nil {
		return 0, nil
	}
	return s.c.session.version, s.c.session.state
}

// Save registers how to get the state that travels with the connection, at most [MaxState] bytes; a later Save takes the place of one before.
// The function is called when the connection moves, at most once, in a goroutine of ours and after the handler has closed the connection: it needs no lock against the
// handler. What it returns must not change afterwards. It is not called when a connection ends. With an error (or a panic) the connection stays, for
// [ReasonState], and its handler runs again without state. If the move fails otherwise, the handler runs again with the state.
//
// The version is the app's own, from 1 on. A connection is only offered to a release that has it in [Options.States]. A handler that does not
// call Save passes on what it has got, unread.
func (s *Session) Save(version uint32, save func() ([]byte, error)) {
	if s == nil {
		return
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.c.session == nil {
		s.c.session = &session{}
	}
	s.c.session.saveVersion, s.c.session.save = version, save
	s.c.session.state = nil // from now on it is the app's
}

// live finds connections by their local address: each has one of its own, and the pointer to it is what net/http puts into a request's context.
var live = registry{byAddr: map[net.Addr]*conn{}}

type registry struct {
	mu      sync.RWMutex // protects what follows
	byAddr  map[net.Addr]*conn
	changed chan struct{} // closed when one has gone and somebody waits for it
}

// lingering counts connections that are closed for the app and still write; they are in no list.
var lingering atomic.Int64

// change returns a channel that is closed when the next connection has gone.
func (r *registry) change() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.changed
}

func (r *registry) notify() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notifyLocked()
}

func (r *registry) notifyLocked() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

func (r *registry) session(addr net.Addr) *Session {
	if addr == nil {
		return nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if c := r.byAddr[addr]; c != nil {
		return &Session{c}
	}
	return nil
}

func (r *registry) add(conns ...*conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		r.byAddr[c.LocalAddr()] = c
	}
}

// remove takes c out, unless another has followed it on the same socket.
func (r *registry) remove(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if addr := c.LocalAddr(); r.byAddr[addr] == c {
		delete(r.byAddr, addr)
		r.notifyLocked()
	}
}

// of returns the connections of a listener.
func (r *registry) of(l *listener) []*conn {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var list []*conn
	for _, c := range r.byAddr {
		if c.listener == l {
			list = append(list, c)
		}
	}
	return list
}
