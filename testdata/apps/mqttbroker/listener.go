package main

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/hotdeploy/hotdeploy/upgrade"
)

// listener passes connections on to mochi and knows which are open.
type listener struct {
	broker *broker
	base   net.Listener

	mu    sync.Mutex // protects conns
	conns map[*conn]bool
}

func newListener(b *broker, base net.Listener) *listener {
	return &listener{broker: b, base: base, conns: map[*conn]bool{}}
}

func (l *listener) Init(*slog.Logger) error { return nil }
func (l *listener) ID() string              { return "mqtt" }
func (l *listener) Address() string         { return l.base.Addr().String() }
func (l *listener) Protocol() string        { return "tcp" }

// Serve runs until the listener is closed. It gets the connections of the release before too.
func (l *listener) Serve(establish listeners.EstablishFn) {
	for {
		raw, err := l.base.Accept()
		if err != nil {
			return
		}
		c := newConn(l.broker, raw)
		l.mu.Lock()
		l.conns[c] = true
		l.mu.Unlock()
		go func() {
			establish(l.ID(), c) // its error is that of the client's connection
			close(c.done)
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.conns, c)
		}()
	}
}

// Close is called when the broker stops.
func (l *listener) Close(closeClients listeners.CloseFn) {
	closeClients(l.ID())
	l.base.Close()
}

func (l *listener) all() (list []*conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		list = append(list, c)
	}
	return list
}

// conn is a connection that may have come from another process, and may leave for one.
type conn struct {
	net.Conn
	broker  *broker
	session *upgrade.Session
	id      string                      // of the client, if the connection came with its session
	client  atomic.Pointer[mqtt.Client] // nil before its CONNECT
	done    chan struct{}               // closed when mochi is through with it
	cutting atomic.Bool

	// from the CONNECT until the session is there, for its own goroutine
	clean         bool
	found         bool // there is a session to go on with
	inflight      []packets.Packet
	receive, send int32
}

func newConn(b *broker, raw net.Conn) *conn {
	c := &conn{Conn: raw, broker: b, session: upgrade.SessionOfConn(raw), done: make(chan struct{})}
	if _, id := c.session.State(); c.session.Resumed() {
		c.id = string(id)
	}
	return c
}

// Read is called by the client's own goroutine, which will clean up after the client when it gets an error.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if cl := c.client.Load(); cl != nil && err != nil && (errors.Is(err, upgrade.ErrHandoff) || c.cutting.Load()) {
		c.broker.keep(cl)
	}
	return n, err
}

// cut ends the connection for the client too, but not its session: that is elsewhere.
func (c *conn) cut() {
	c.cutting.Store(true)
	c.Conn.Close()
}

// disconnect ends the connection as mochi would, and returns when all consequences are drawn.
func (c *conn) disconnect() {
	c.client.Load().Stop(packets.ErrPendingClientWritesExceeded)
	<-c.done
}
