package upgrade

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// This file is the datagram sockets. Both processes have the same socket and the kernel has one queue for it, so that a datagram is read once, by one of
// the two, and none is lost between them. Who reads: the old process until it gives, the new one from then on; and the old one again if it is
// told to proceed. Whoever does not read can still write, and does not end before its readers have come back, so that an answer to what was read
// before goes out.

// gate is what makes a packet conn's reads wait.
type gate struct {
	sock interface {
		syscall.Conn
		SetReadDeadline(time.Time) error
		Close() error
	}

	mu      sync.Mutex // protects what follows
	shut    bool       // somebody else reads
	closed  bool
	readBy  time.Time     // as the app wants it
	reading int           // reads that are in the socket
	out     int           // datagrams that the app has got, and whose reader has not come back for another one
	back    chan struct{} // closed when out is 0
	changed chan struct{} // closed when something changed while a read waits
	still   chan struct{} // closed when reading is 0
}

// pause leaves what comes in the kernel's queue. It returns when no read is in the socket any more, or at proceed.
func (g *gate) pause() {
	g.set(true)
	g.mu.Lock()
	if g.reading == 0 {
		g.mu.Unlock()
		return
	}
	if g.still == nil {
		g.still = make(chan struct{})
	}
	still := g.still
	g.mu.Unlock()
	<-still
}

// proceed undoes pause.
func (g *gate) proceed() { g.set(false) }

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	if !shut {
		g.stillLocked() // whoever pauses waits for nothing any more
	}
	g.rearmLocked()
}

func (g *gate) stillLocked() {
	if g.still != nil {
		close(g.still)
		g.still = nil
	}
}

// rearmLocked makes reads look again.
func (g *gate) rearmLocked() error {
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
	if g.shut {
		return g.sock.SetReadDeadline(past)
	}
	return g.sock.SetReadDeadline(g.readBy)
}

// SetReadDeadline implements net.PacketConn.
func (g *gate) SetReadDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.readBy = t
	return g.rearmLocked()
}

// Close implements net.PacketConn.
func (g *gate) Close() error {
	g.mu.Lock()
	g.closed = true
	g.rearmLocked()
	g.mu.Unlock()
	return g.sock.Close()
}

// answered waits until the readers have come back, so that what they have read is answered, but not beyond ctx. Pause before it.
func (g *gate) answered(ctx context.Context) {
	g.mu.Lock()
	if g.out == 0 {
		g.mu.Unlock()
		return
	}
	if g.back == nil {
		g.back = make(chan struct{})
	}
	back := g.back
	g.mu.Unlock()
	select {
	case <-back:
	case <-ctx.Done():
	}
}

// comeBack is called when a reader wants another datagram.
func (g *gate) comeBack() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.out > 0 {
		g.out--
	}
	if g.out == 0 && g.back != nil {
		close(g.back)
		g.back = nil
	}
}

// read calls the socket's read while it is our turn.
func (g *gate) read(do func() error) error {
	g.comeBack()
	for {
		if err := g.turn(); err != nil {
			return err
		}
		err := do()
		g.left(err == nil)
		if !errors.Is(err, os.ErrDeadlineExceeded) || g.expired() {
			return err
		}
	}
}

// turn waits until it is our turn to read, as long as the app's deadline allows.
func (g *gate) turn() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.shut && !g.closed {
		if g.changed == nil {
			g.changed = make(chan struct{})
		}
		changed, by := g.changed, g.readBy
		g.mu.Unlock()
		late := awaitChange(changed, by)
		g.mu.Lock()
		if late && g.readBy.Equal(by) {
			return os.ErrDeadlineExceeded
		}
	}
	control(g.sock, keepNonblocking)
	g.reading++
	return nil // a closed socket says so itself
}

// left is called when a read has come back, with a datagram for the app or without.
func (g *gate) left(full bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if full {
		g.out++
	}
	if g.reading--; g.reading == 0 {
		g.stillLocked()
	}
}

// awaitChange waits for a change, not beyond by if that is a time.
func awaitChange(changed <-chan struct{}, by time.Time) (late bool) {
	var limit <-chan time.Time
	if !by.IsZero() {
		timer := time.NewTimer(time.Until(by))
		defer timer.Stop()
		limit = timer.C
	}
	select {
	case <-changed:
		return false
	case <-limit:
		return true
	}
}

// expired says that a read failed by the app's deadline and not by ours.
func (g *gate) expired() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.shut && !g.readBy.IsZero() && !time.Now().Before(g.readBy)
}

// packetConn is a packet conn whose reads can be paused.
type packetConn interface {
	net.PacketConn
	pause()
	proceed()
	answered(context.Context)
}

// gated wraps the kinds of socket that can be shared; nil: another kind.
func gated(p net.PacketConn) packetConn {
	switch p := p.(type) {
	case *net.UDPConn:
		return &udpConn{p, gate{sock: p}}
	case *net.UnixConn:
		return &unixgramConn{p, gate{sock: p}}
	}
	return nil
}

// udpConn is a *net.UDPConn that knows when to read. What is read through SyscallConn we do not see.
type udpConn struct {
	*net.UDPConn
	gate
}

func (c *udpConn) Close() error                      { return c.gate.Close() }
func (c *udpConn) SetReadDeadline(t time.Time) error { return c.gate.SetReadDeadline(t) }

func (c *udpConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *udpConn) Read(b []byte) (n int, err error) {
	err = c.read(func() error { n, err = c.UDPConn.Read(b); return err })
	return n, err
}

func (c *udpConn) ReadFrom(b []byte) (n int, from net.Addr, err error) {
	err = c.read(func() error { n, from, err = c.UDPConn.ReadFrom(b); return err })
	return n, from, err
}

func (c *udpConn) ReadFromUDP(b []byte) (n int, from *net.UDPAddr, err error) {
	err = c.read(func() error { n, from, err = c.UDPConn.ReadFromUDP(b); return err })
	return n, from, err
}

func (c *udpConn) ReadFromUDPAddrPort(b []byte) (n int, from netip.AddrPort, err error) {
	err = c.read(func() error { n, from, err = c.UDPConn.ReadFromUDPAddrPort(b); return err })
	return n, from, err
}

func (c *udpConn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, from *net.UDPAddr, err error) {
	err = c.read(func() error { n, oobn, flags, from, err = c.UDPConn.ReadMsgUDP(b, oob); return err })
	return n, oobn, flags, from, err
}

func (c *udpConn) ReadMsgUDPAddrPort(b, oob []byte) (n, oobn, flags int, from netip.AddrPort, err error) {
	err = c.read(func() error { n, oobn, flags, from, err = c.UDPConn.ReadMsgUDPAddrPort(b, oob); return err })
	return n, oobn, flags, from, err
}

// unixgramConn is the same of a *net.UnixConn.
type unixgramConn struct {
	*net.UnixConn
	gate
}

func (c *unixgramConn) Close() error                      { return c.gate.Close() }
func (c *unixgramConn) SetReadDeadline(t time.Time) error { return c.gate.SetReadDeadline(t) }

func (c *unixgramConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *unixgramConn) Read(b []byte) (n int, err error) {
	err = c.read(func() error { n, err = c.UnixConn.Read(b); return err })
	return n, err
}

func (c *unixgramConn) ReadFrom(b []byte) (n int, from net.Addr, err error) {
	err = c.read(func() error { n, from, err = c.UnixConn.ReadFrom(b); return err })
	return n, from, err
}

func (c *unixgramConn) ReadFromUnix(b []byte) (n int, from *net.UnixAddr, err error) {
	err = c.read(func() error { n, from, err = c.UnixConn.ReadFromUnix(b); return err })
	return n, from, err
}

func (c *unixgramConn) ReadMsgUnix(b, oob []byte) (n, oobn, flags int, from *net.UnixAddr, err error) {
	err = c.read(func() error { n, oobn, flags, from, err = c.UnixConn.ReadMsgUnix(b, oob); return err })
	return n, oobn, flags, from, err
}
